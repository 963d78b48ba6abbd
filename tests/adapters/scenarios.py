"""What the core promises, as given, when and then, for any front end on any store.

*Given* is a site and what its visitors did before; *when* a :class:`Browser` makes a visit, in
which a view does something to the session of its framework; *then* the answer, the next
visits and the calls to the tiers are as promised.

Each class is to be subclassed with the fixtures ``front_end``, the class of one, and
``setup``, a :class:`Setup`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, cast
from uuid import UUID

import pytest
from adapters.frontends import Answer, FrontEnd, Page, SetCookie, View, Visit, nothing

from tieredsession import HeadersSentError, SessionStore, Settings
from tieredsession.contracts import Cache, Record
from tieredsession.errors import CacheError, UnstorableError
from tieredsession.events import Event
from tieredsession.keyring import Keyring
from tieredsession.merge import counter
from tieredsession.observers import LoggingObserver
from tieredsession.options import StoreOptions
from tieredsession.registry import open_cache, open_store
from tieredsession.stores.tiered import TieredSessionStore
from tieredsession.testing import Chaos, FakeClock
from tieredsession.tokens import SessionIds

SECRET = "a long enough text, for tests alone: 0123456789"
OTHER_SECRET = "another secret, which has as many characters: 42"
DAY = 24 * 3600
AGE = 14 * DAY
ATTRIBUTES = {"path": "/", "secure": "", "httponly": "", "samesite": "Lax"}


class Role(str, Enum):
    """Text, to JSON."""

    ADMIN = "admin"


# -- given ----------------------------------------------------------------------------


class Calls(NamedTuple):
    """Calls to the cache, and to the store behind it (or the only one)."""

    cache: int
    store: int

    def __add__(self, other: tuple[int, ...]) -> Calls:  # type: ignore[override]  # a sum
        return Calls(self[0] + other[0], self[1] + other[1])


NONE = Calls(0, 0)


class Costs(NamedTuple):
    """What each kind of request costs; for the tiers it is the table of the design, section 6."""

    hit: Calls
    miss: Calls
    write: Calls
    new: Calls
    delete: Calls


@dataclass(frozen=True)
class Setup:
    """Where a site keeps its sessions: its *settings* for that, and what the calls *cost*.

    With *dead_cache*, the cache never answers, and attempts to reach it are not counted.
    """

    settings: dict[str, Any]
    costs: Costs
    dead_cache: bool = False


class _Counted:
    """A store whose calls go through *chaos*, except for a token that it refuses unasked."""

    def __init__(self, store: SessionStore, chaos: Chaos, ids: SessionIds) -> None:
        self._store, self._through, self._ids = store, chaos.wrap(store), ids

    def load(self, token: str, now: float) -> Record | None:
        store = self._store if self._ids.key(token) is None else self._through
        return store.load(token, now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._through, name)


class Site:
    """One process of a running site, whose calls to each tier are counted and may fail."""

    def __init__(
        self, front_end: type[FrontEnd], setup: Setup, clock: FakeClock, **overrides: Any
    ) -> None:
        settings = {"SECRET_KEY": SECRET, "SESSION_COOKIE_AGE": AGE, **setup.settings, **overrides}
        settings = {name: value for name, value in settings.items() if value is not None}
        self.setup = setup
        self.settings = Settings(settings)
        self.cookie_name = self.settings.session_cookie_name
        self.clock = clock
        self.events: list[Event] = []
        self.to_cache = Chaos(CacheError)
        self.to_store = Chaos()
        if setup.dead_cache:
            self.to_cache.down()
        self.closing = ExitStack()
        observers = (self.events.append, LoggingObserver())
        self.options = StoreOptions(
            Keyring(self.settings.secret_key, self.settings.secret_key_fallbacks),
            self.cookie_name,
        )
        store = open_store(Settings(settings, SESSION_CACHE_URL=None), observers)
        self._close_later(store)
        self.revocable = store.revocable
        if self.revocable:
            store = cast("SessionStore", _Counted(store, self.to_store, self.options.ids))
        else:
            store = self.to_store.wrap(store)
        self.cache: Cache | None = None
        if self.settings.session_cache_url is not None:
            self.cache = open_cache(self.settings.session_cache_url)
            self._close_later(self.cache)
            store = TieredSessionStore(
                self.to_cache.wrap(self.cache),
                store,
                self.options.ids,
                self.options.record_envelope,
                self.events.append,
                value_ttl=self.settings.session_cache_age,
                clock=clock,
            )
        self.front_end = front_end(settings, store, observers, clock)
        self.differs = front_end.differs

    def _close_later(self, tier: object) -> None:
        close = getattr(tier, "close", None)
        if close is not None:
            self.closing.callback(close)

    def calls(self) -> Calls:
        """The calls since last asked."""
        to_cache = 0 if self.setup.dead_cache else len(self.to_cache.calls)
        counted = Calls(to_cache, len(self.to_store.calls))
        self.to_cache.calls.clear()
        self.to_store.calls.clear()
        return counted

    def events_since(self) -> list[str]:
        """The names of the events since last asked, of sessions and not of caches."""
        names = [type(event).__name__ for event in self.events]
        self.events.clear()
        return [name for name in names if not name.startswith(("Cache", "Breaker"))]

    def evict(self, token: str) -> None:
        """Let the cache, if there is one, forget one session."""
        if self.cache is not None and not self.setup.dead_cache:
            self.cache.delete(self.options.ids.key(token) or "")

    def browser(self, **data: Any) -> Browser:
        """A visitor; one that has been here before if there is *data* to its session."""
        browser = Browser(self)
        if data:
            browser.visit(put(**data))
            assert browser.token
            self.calls()
            self.events.clear()
        return browser


class Browser:
    """A visitor with a cookie jar."""

    def __init__(self, site: Site, jar: dict[str, str] | None = None) -> None:
        self.site = site
        self.jar = jar or {}

    @property
    def token(self) -> str:
        """The token in the jar, empty if there is none."""
        return self.jar.get(self.site.cookie_name, "")

    @token.setter
    def token(self, token: str) -> None:
        self.jar[self.site.cookie_name] = token

    def copy(self, site: Site | None = None) -> Browser:
        """Another browser with the same cookies: another tab, or a thief; or on another *site*."""
        return Browser(site or self.site, dict(self.jar))

    def visit(
        self,
        view: View,
        *,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
        middle: View | None = None,
        watch: Callable[[Answer], Any] | None = None,
    ) -> Seen:
        """Make a request; *view*, *middle* and *watch* are those of a :class:`Visit`."""
        header = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        return self.send(header, Visit(view, middle, status, list(headers), watch))

    def send(self, cookie_header: str, visit: Visit) -> Seen:
        """Make a request with this very ``Cookie`` header."""
        seen = Seen(visit, self.site.front_end.send(visit, cookie_header), self.site.cookie_name)
        for cookie in seen.answer.set_cookies:
            if cookie.deletes:
                self.jar.pop(cookie.name, None)
            else:
                self.jar[cookie.name] = cookie.value
        return seen

    def data(self) -> dict[str, Any]:
        """What the session holds when a page looks at it."""
        seen = self.visit(look)
        assert seen.status == 200
        data: dict[str, Any] = seen.result
        return data


class Seen:
    """What came of a visit: the *answer* as the browser has it, and what the view returned."""

    def __init__(self, visit: Visit, answer: Answer, cookie_name: str) -> None:
        self.answer = answer
        self.status = answer.status
        self.result = visit.result
        self._cookie_name = cookie_name

    @property
    def cookies(self) -> list[SetCookie]:
        """What it says of the session cookie."""
        return [cookie for cookie in self.answer.set_cookies if cookie.name == self._cookie_name]

    @property
    def cookie(self) -> SetCookie:
        """The only thing that it says of it."""
        (cookie,) = self.cookies
        return cookie

    @property
    def varies(self) -> bool:
        """Whether caches are told that it depends on cookies."""
        fields = ",".join(self.answer.values("Vary")).lower().split(",")
        return "cookie" in [field.strip() for field in fields]

    @property
    def cache_control(self) -> set[str]:
        """What caches are told otherwise."""
        parts = ",".join(self.answer.values("Cache-Control")).split(",")
        return {part.strip() for part in parts if part.strip()}


MakeSite = Callable[..., Site]


# -- when: what views do --------------------------------------------------------------


def look(page: Page) -> dict[str, Any]:
    """Read all of the session."""
    return dict(page.session.items())


def put(**data: Any) -> View:
    """Add *data*."""
    return lambda page: page.session.update(data)


def count(page: Page) -> int:
    """Count visits."""
    page.session["count"] = page.session.get("count", 0) + 1
    visits: int = page.session["count"]
    return visits


def renew(page: Page) -> None:
    """Go on under a new id."""
    page.renew()


def destroy(page: Page) -> None:
    """Log out."""
    page.destroy()


def empty(page: Page) -> None:
    """Take out key by key."""
    for key in list(page.session.keys()):
        del page.session[key]


def fail(page: Page) -> None:
    """Have a bug."""
    raise ZeroDivisionError


def steps(*each: Callable[[Page], Any]) -> View:
    """Several steps as one view, which returns what the last returns."""

    def run(page: Page) -> Any:
        result = None
        for step in each:
            result = step(page)
        return result

    return run


# -- then -----------------------------------------------------------------------------


class Scenarios:
    """The fixtures of the cases."""

    @pytest.fixture
    def make_site(
        self, front_end: type[FrontEnd], setup: Setup, clock: FakeClock
    ) -> Iterator[MakeSite]:
        """Makes a process of the site, over the same tiers as any other; keywords are settings."""
        with ExitStack() as closing:

            def make(**overrides: Any) -> Site:
                site = Site(front_end, setup, clock, **overrides)
                closing.push(site.closing)
                return site

            yield make

    @pytest.fixture
    def site(self, make_site: MakeSite) -> Site:
        """A site with the settings that one has without choosing any."""
        return make_site()

    @pytest.fixture
    def costs(self, setup: Setup) -> Costs:
        """What each kind of request costs."""
        return setup.costs


VALUES: dict[str, Any] = {
    "none": None,
    "bool": True,
    "int": -(2**31),
    "big integer": 2**200,
    "float": 0.1,
    "complex": 1 - 2j,
    "text": "Zürich \U0001f600 \x00",
    "bytes": bytes(range(256)),
    "list": [1, [2, [3]]],
    "dict": {"a": {"b": 1}, 1: "one", (1, 2): "pair", None: 0},
    "tuple": (1, ("two", 3.0)),
    "set": {1, 2, 3},
    "frozenset": frozenset({"a", ("b",)}),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "date": date(2027, 1, 15),
    "time": time(12, 30, 15, 999),
    "aware": datetime(2027, 1, 15, 8, 0, 0, 5, timezone(timedelta(hours=2))),
    "utc": datetime(2027, 1, 15, 8, tzinfo=timezone.utc),
    "naive": datetime(2027, 1, 15, 8, 0, 0, 5),
    "timedelta": timedelta(days=-1, microseconds=1),
}

BAD: dict[str, Callable[[str], str]] = {
    "tampered": lambda token: token[:20] + ("A" if token[20] != "A" else "B") + token[21:],
    "truncated": lambda token: token[:-4],
    "reversed": lambda token: token[::-1],
    "longer": lambda token: token + "AAAA",
    "all zero": lambda token: "A" * len(token),
    "a plain word": lambda token: "hello",
    "another library's": lambda token: "eyJhIjoxfQ.Z1x2Yw.q0n4Zt0aYq2J0M1bqjv8mQhZb4k",
    "a path": lambda token: "../../etc/passwd",
    "a wildcard": lambda token: "*",
    "quoted": lambda token: f'"{token}"',
    "251 bytes": lambda token: "a" * 251,
    "5000 bytes": lambda token: "a" * 5000,
}


class EveryStore(Scenarios):
    """The cases that every store answers alike."""

    # -- laziness

    @pytest.mark.parametrize("cookie", ["none", "valid", "bad"])
    def test_an_untouched_session(self, site: Site, costs: Costs, cookie: str) -> None:
        """A request that does not touch its session costs no call and no header (security 75)."""
        browser = site.browser(a=1) if cookie == "valid" else site.browser()
        if cookie == "bad":
            browser.token = "nonsense"
        seen = browser.visit(nothing)
        assert (seen.status, seen.answer.body) == (200, b"page")
        ahead = cookie == "valid" and site.revocable and site.differs("loads ahead")
        assert site.calls() == (costs.hit if ahead else NONE)
        assert seen.answer.set_cookies == []
        assert seen.answer.values("Vary") == seen.answer.values("Cache-Control") == []
        assert site.events_since() == []

    def test_a_look_without_a_cookie(self, site: Site) -> None:
        """A look at the session of a new visitor costs no call and sets no cookie (lineage 2)."""
        seen = site.browser().visit(lambda page: (page.session.get("a"), "a" in page.session))
        assert seen.result == (None, False)
        assert site.calls() == NONE
        assert seen.answer.set_cookies == []
        assert seen.varies

    def test_a_look(self, site: Site, costs: Costs) -> None:
        """A look at a saved session costs one read, and the answer varies on cookies (R6, R30)."""
        browser = site.browser(a=1)
        seen = browser.visit(lambda page: (page.session["a"], page.session.get("b"), look(page)))
        assert seen.result == (1, None, {"a": 1})
        assert site.calls() == costs.hit
        assert seen.answer.set_cookies == []
        assert seen.varies

    def test_the_first_change(self, site: Site, costs: Costs) -> None:
        """The first change makes a session with one cookie, which no cache shares (20, 21, 74)."""
        seen = site.browser().visit(put(a=1))
        assert site.calls() == costs.new
        assert seen.cookie.value
        assert seen.cookie.attributes == ATTRIBUTES
        assert seen.varies
        assert ("private" in seen.cache_control) is not site.differs("says nothing to caches")
        assert site.events_since() == ["SessionCreated"]

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("no-store", {"no-store"}),
            ("public, max-age=60", {"private", "max-age=60"}),
            ("private, max-age=60", {"private", "max-age=60"}),
        ],
        ids=["stricter", "public", "as strict"],
    )
    def test_what_the_view_says_of_caches(self, site: Site, theirs: str, ours: set[str]) -> None:
        """Beside a cookie, the view's word on caches stays if it is as strict as ours (74)."""
        seen = site.browser().visit(put(a=1), headers=[("Cache-Control", theirs)])
        assert seen.cookie
        if site.differs("says nothing to caches"):
            ours = set(theirs.split(", "))
        assert seen.cache_control == ours

    def test_what_the_view_says_of_varying(self, site: Site) -> None:
        """What else an answer varies on stays beside the cookie."""
        seen = site.browser(a=1).visit(look, headers=[("Vary", "Accept-Language")])
        assert seen.varies
        assert "accept-language" in ",".join(seen.answer.values("Vary")).lower()

    # -- the dict

    def test_a_counter(self, site: Site) -> None:
        """Five visits of one browser count to five (lineage 8)."""
        browser = site.browser()
        assert [browser.visit(count).result for _ in range(5)] == [1, 2, 3, 4, 5]

    def test_two_visitors(self, site: Site) -> None:
        """Two browsers that take turns do not see each other's data (lineage 10)."""
        one, other = site.browser(), site.browser()
        for number in range(3):
            one.visit(put(one=number))
            other.visit(put(other=number))
        assert one.token != other.token
        assert (one.data(), other.data()) == ({"one": 2}, {"other": 2})

    def test_the_words_of_a_dict(self, site: Site) -> None:
        """A session has the words of a dict, whatever the framework calls its type (lineage 77)."""

        def use(page: Page) -> list[Any]:
            session = page.session
            with pytest.raises(KeyError):
                session["missing"]
            with pytest.raises(KeyError):
                del session["missing"]
            return [
                session.pop("a"),
                session.pop("missing", "default"),
                session.setdefault("b", 2),
                session.setdefault("b", 3),
                "b" in session,
                "a" in session,
                sorted(session.keys()),
            ]

        browser = site.browser(a=1, c=3)
        assert browser.visit(use).result == [1, "default", 2, 2, True, False, ["b", "c"]]
        assert browser.data() == {"b": 2, "c": 3}

    def test_all_types(self, site: Site) -> None:
        """What is stored comes back equal and of the same type, from every store (lineage 78)."""
        browser = site.browser()
        assert browser.visit(put(**VALUES)).status == 200
        data = browser.data()
        assert data == VALUES
        assert repr(data["dict"]) == repr(VALUES["dict"])
        assert {key: type(value) for key, value in data.items()} == {
            key: type(value) for key, value in VALUES.items()
        }
        assert data["aware"].utcoffset() == VALUES["aware"].utcoffset()

    def test_what_cannot_be_stored(self, site: Site) -> None:
        """A value that cannot be stored is refused where it is assigned (security 73)."""

        def assign(page: Page) -> str:
            with pytest.raises(UnstorableError) as caught:
                page.session["thing"] = object()
            return str(caught.value)

        browser = site.browser(a=1)
        seen = browser.visit(assign)
        assert "thing" in seen.result
        assert "object" in seen.result
        assert browser.data() == {"a": 1}

    def test_a_value_of_a_subclass(self, site: Site, costs: Costs) -> None:
        """A value of a subclass is refused, or comes back as the framework's own would."""
        values = {"role": Role.ADMIN, "claims": OrderedDict(sub="7", roles=[Role.ADMIN])}
        back = {"role": "admin", "claims": {"sub": "7", "roles": ["admin"]}}

        def assign(page: Page) -> None:
            for key, value in values.items():
                if site.differs("takes subclasses"):
                    page.session[key] = value
                else:
                    with pytest.raises(UnstorableError):
                        page.session[key] = value

        browser = site.browser(a=1)
        assert browser.visit(assign).status == 200
        site.calls()
        seen = browser.visit(lambda page: dict(page.session))
        assert seen.result == ({"a": 1, **back} if site.differs("takes subclasses") else {"a": 1})
        assert "Ordered" not in repr(seen.result)
        assert "ADMIN" not in repr(seen.result)
        assert site.calls() == costs.hit
        assert seen.answer.set_cookies == []

    def test_a_key_of_a_subclass(self, site: Site) -> None:
        """A key may be a member of an enum of strings, and is the string."""
        browser = site.browser()
        browser.visit(lambda page: page.session.__setitem__(Role.ADMIN, 1))
        assert browser.visit(lambda page: page.session[Role.ADMIN]).result == 1
        assert {type(key) for key in browser.data()} == {str}

    # -- what counts as a change

    def test_a_nested_change(self, site: Site, costs: Costs) -> None:
        """A change inside a nested value is found and saved, without any flag (R13)."""
        browser = site.browser(cart={"items": [1]})
        browser.visit(lambda page: page.session["cart"]["items"].append(2))
        assert site.calls() == costs.hit + costs.write
        assert browser.data() == {"cart": {"items": [1, 2]}}

    @pytest.mark.parametrize(
        "view",
        [
            put(a=1),
            lambda page: page.session.update(b=page.session.pop("b")),
            lambda page: page.session.update(a=page.session.pop("a")),
            steps(put(a=2), put(a=1)),
            steps(put(c=3), lambda page: page.session.pop("c")),
            lambda page: page.session.setdefault("a", 5),
        ],
        ids=["equal", "last out and in", "first out and in", "there and back", "in and out", "had"],
    )
    def test_no_change(self, site: Site, costs: Costs, view: View) -> None:
        """What leaves the data as it was is not written, and sets no cookie (R12, lineage 69)."""
        browser = site.browser(a=1, b={"x": [1]})
        before = browser.token
        seen = browser.visit(view)
        assert site.calls() == costs.hit
        if site.differs("assigning sets a cookie"):
            assert [cookie.value for cookie in seen.cookies] in ([], [before])
        else:
            assert seen.answer.set_cookies == []

    # -- cookies that are not as we sent them

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_cookie(self, site: Site, name: str) -> None:
        """A bad cookie is no session and no error, and is deleted once (lineage 50-55, R5, R15)."""
        browser = site.browser(a=1)
        browser.token = BAD[name](browser.token)
        told = ["TokenRefused"]
        if site.differs("own cookie parser"):
            if name == "quoted":
                assert browser.data() == {"a": 1}
                return
            if len(browser.token) < 8:
                told = []
        seen = browser.visit(look)
        assert (seen.status, seen.result) == (200, {})
        assert seen.cookie.deletes
        assert not browser.token
        assert {"path": "/", "secure": ""}.items() <= seen.cookie.attributes.items()
        if site.revocable:
            assert site.calls() == NONE
        assert site.events_since() == told
        assert browser.visit(look).answer.set_cookies == []
        assert site.events == []

    def test_an_empty_cookie(self, site: Site) -> None:
        """A cookie without a value is none at all (lineage 58)."""
        seen = site.browser().send(f"{site.cookie_name}=", Visit(look))
        assert (seen.status, seen.result) == (200, {})
        assert site.calls() == NONE
        assert all(cookie.deletes for cookie in seen.answer.set_cookies)
        assert bool(seen.answer.set_cookies) is site.differs("own cookie parser")

    def test_a_change_under_a_bad_cookie(self, site: Site) -> None:
        """A change under an id that was never issued begins a session under one of ours (8)."""
        browser = site.browser()
        browser.token = "A" * 32
        seen = browser.visit(put(a=1))
        assert seen.cookie.value not in ("", "A" * 32)
        assert not seen.cookie.deletes
        assert browser.data() == {"a": 1}

    @pytest.mark.parametrize("order", [1, -1], ids=["mine first", "theirs first"])
    def test_two_valid_cookies(self, site: Site, order: int) -> None:
        """Of two valid and different cookies of our name, in any order, none is believed (32)."""
        mine, theirs = site.browser(a=1).token, site.browser(b=2).token
        pairs = [f"{site.cookie_name}={token}" for token in (mine, theirs)][::order]
        seen = site.browser().send("; ".join(pairs), Visit(look))
        last = {"b": 2} if order == 1 else {"a": 1}
        expected = last if site.differs("own cookie parser") else {}
        assert (seen.status, seen.result) == (200, expected)

    @pytest.mark.parametrize("order", [1, -1], ids=["valid first", "bad first"])
    def test_a_valid_cookie_and_a_bad_one(self, site: Site, order: int) -> None:
        """A bad cookie of our name beside a valid one, in any order, takes nothing away (32)."""
        pairs = [f"{site.cookie_name}={token}" for token in (site.browser(a=1).token, "x")]
        seen = site.browser().send("; ".join(pairs[::order]), Visit(look))
        lost = order == 1 and site.differs("own cookie parser")
        assert (seen.status, seen.result) == (200, {} if lost else {"a": 1})

    def test_cookies_of_others(self, site: Site) -> None:
        """Other cookies, even illegal ones, do not disturb ours (lineage 59)."""
        token = site.browser(count=1).token
        header = f'a=b; {{"x": 1}}; $v=1; {site.cookie_name}x=1; {site.cookie_name}={token}; ü=1'
        assert site.browser().send(header.encode().decode("latin-1"), Visit(count)).result == 2

    def test_a_cookie_of_another_site(self, make_site: MakeSite) -> None:
        """A session that another site's key sealed is none of ours (security 63, lineage 57)."""
        browser = make_site(SECRET_KEY=OTHER_SECRET).browser(a=1)
        seen = browser.copy(make_site()).visit(look)
        assert (seen.status, seen.result) == (200, {})
        assert seen.cookie.deletes

    def test_a_cookie_of_another_name(self, make_site: MakeSite) -> None:
        """A session of one cookie is not accepted under the name of another (lineage 75, 63)."""
        shop = make_site(SESSION_COOKIE_NAME="__Host-shop").browser(a=1)
        admin = make_site(SESSION_COOKIE_NAME="__Host-admin").browser()
        admin.token = shop.token
        seen = admin.visit(look)
        assert (seen.status, seen.result) == (200, {})
        assert seen.cookie.deletes

    def test_a_new_key(self, make_site: MakeSite) -> None:
        """An old key opens what it sealed until the next write, which the new key seals (66)."""
        browser = make_site().browser(a=1)
        rolling = {"SECRET_KEY": OTHER_SECRET, "SECRET_KEY_FALLBACKS": [SECRET]}
        browser = browser.copy(make_site(**rolling))
        old = browser.token
        assert browser.data() == {"a": 1}
        assert browser.token == old
        assert browser.visit(put(b=2)).cookie.value != old
        browser = browser.copy(make_site(SECRET_KEY=OTHER_SECRET))
        assert browser.data() == {"a": 1, "b": 2}

    # -- time

    def test_the_end_of_a_session(self, site: Site) -> None:
        """A session lives to the last second of its age, and not one more (security 37, R4)."""
        browser, late = site.browser(a=1), site.browser(b=2)
        site.clock.advance(AGE - 1)
        assert browser.data() == {"a": 1}
        site.clock.advance(1)
        seen = late.visit(look)
        assert (seen.status, seen.result) == (200, {})
        assert seen.cookie.deletes

    def test_the_age_by_default(self, make_site: MakeSite) -> None:
        """An unused session lives for two weeks, or for what the framework says instead."""
        site = make_site(SESSION_COOKIE_AGE=None)
        age = 31 * DAY if site.differs("another age") else 14 * DAY
        browser, late = site.browser(a=1), site.browser(b=2)
        site.clock.advance(age - 1)
        assert browser.data() == {"a": 1}
        site.clock.advance(1)
        assert late.data() == {}

    def test_a_refresh(self, site: Site, costs: Costs) -> None:
        """A use is written down only once a quarter of the age has passed (security 40, 43)."""
        browser = site.browser(a=1)
        site.clock.advance(AGE / 4 - 1)
        browser.visit(look)
        assert site.calls() == costs.hit
        site.clock.advance(1)
        browser.visit(look)
        if site.differs("only changes extend"):
            assert site.calls() == costs.hit
            site.clock.advance(AGE * 3 / 4)
            assert browser.data() == {}
            return
        assert site.calls() == costs.hit + costs.write
        assert site.events_since() == ["SessionRefreshed"]
        browser.visit(look)
        assert site.calls() == costs.hit
        site.clock.advance(AGE - 1)
        assert browser.data() == {"a": 1}

    def test_the_absolute_limit(self, make_site: MakeSite) -> None:
        """A session in daily use ends at its absolute limit all the same (security 38)."""
        site = make_site(SESSION_ABSOLUTE_AGE=30 * DAY)
        browser = site.browser(count=0)
        for day in range(1, 30):
            site.clock.advance(DAY)
            assert browser.visit(count).result == day
        site.clock.advance(DAY - 1)
        assert browser.visit(count).result == 30
        site.clock.advance(1)
        assert browser.data() == {}

    def test_a_persistent_cookie(self, make_site: MakeSite) -> None:
        """A persistent cookie says how long it lives, and nothing else is changed (lineage 71)."""
        site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=False)
        attributes = dict(site.browser().visit(put(a=1)).cookie.attributes)
        attributes.pop("expires", None)
        assert attributes == {**ATTRIBUTES, "max-age": str(AGE)}

    def test_one_visitor_who_stays(self, site: Site) -> None:
        """A visitor who stays logged in has a longer session and cookie, alone (R27)."""
        browser, other = site.browser(), site.browser()
        seen = browser.visit(steps(put(a=1), lambda page: page.persist(90 * DAY)))
        assert seen.cookie.attributes["max-age"] == str(90 * DAY)
        assert "max-age" not in other.visit(put(a=1)).cookie.attributes
        site.clock.advance(90 * DAY - 1)
        assert browser.visit(lambda page: page.session.get("a")).result == 1
        assert other.visit(lambda page: page.session.get("a")).result is None

    # -- its life

    def test_a_renewed_session(self, site: Site) -> None:
        """A renewed session has another id, the same data and the same end (lineage 38, 40)."""
        browser = site.browser(a=1)
        old = browser.token
        site.clock.advance(DAY)
        seen = browser.visit(renew)
        assert seen.cookie.value
        assert seen.cookie.value != old or not site.revocable  # where the data is the token
        assert seen.cookie.attributes == ATTRIBUTES
        assert browser.data() == {"a": 1}
        site.clock.advance(AGE - DAY)
        if site.differs("only changes extend"):  # and this was one
            assert browser.data() == {"a": 1}
            site.clock.advance(DAY)
        assert browser.data() == {}

    def test_a_login(self, site: Site) -> None:
        """A login gives the session a principal and another id, and keeps its data (13, 41)."""
        browser = site.browser(cart=[1])
        before = browser.token
        browser.visit(lambda page: page.bind("ann"))
        assert browser.token != before
        assert browser.visit(lambda page: page.principal).result == "ann"
        assert browser.visit(lambda page: page.session["cart"]).result == [1]

    def test_another_login(self, site: Site) -> None:
        """Who logs in on another's session finds nothing of theirs (security 14, 19)."""
        browser = site.browser()
        browser.visit(steps(lambda page: page.bind("ann"), put(secret="ann's")))
        before = browser.token
        browser.visit(lambda page: page.bind("bob"))
        assert browser.token != before
        assert browser.visit(lambda page: page.principal).result == "bob"
        assert browser.visit(lambda page: page.session.get("secret")).result is None

    def test_a_logout(self, site: Site) -> None:
        """A logout deletes the cookie that the login set, with the same attributes (49, 43)."""
        browser = site.browser(a=1)
        seen = browser.visit(destroy)
        assert seen.cookie.deletes
        # A browser replaces a cookie of the same name, domain and path, if it may set it.
        assert {"path": "/", "secure": ""}.items() <= seen.cookie.attributes.items()
        assert "domain" not in seen.cookie.attributes
        assert site.events_since() == ["SessionEnded"]
        assert not browser.token
        assert browser.data() == {}

    def test_a_logout_and_a_change(self, site: Site) -> None:
        """What is assigned after a logout begins another session (lineage 44, 45, 47)."""
        browser = site.browser(a=1)
        before = browser.token
        seen = browser.visit(steps(destroy, put(b=2)))
        assert not seen.cookie.deletes
        assert seen.cookie.value not in ("", before)
        assert browser.data() == {"b": 2}

    def test_an_emptied_session(self, site: Site, costs: Costs) -> None:
        """A session that was emptied is deleted, and so is its cookie."""
        browser = site.browser(a=1, b=2)
        seen = browser.visit(empty)
        if site.differs("emptied lives on"):
            assert site.calls() == costs.hit + costs.write
            assert site.events_since() == ["SessionSaved"]
            assert browser.token
        else:
            assert site.calls() == costs.hit + costs.delete
            assert site.events_since() == ["SessionEnded"]
            assert seen.cookie.deletes
        assert browser.data() == {}

    def test_flash_messages(self, site: Site) -> None:
        """Messages wait for the next page that asks, in their order, once (lineage 81)."""
        browser = site.browser()
        assert browser.visit(lambda page: page.flashes()).result == []
        browser.visit(steps(lambda page: page.flash("one"), lambda page: page.flash("two")))
        browser.visit(count)
        assert browser.visit(lambda page: page.flashes()).result == ["one", "two"]
        assert browser.visit(lambda page: page.flashes()).result == []

    def test_csrf(self, site: Site) -> None:
        """A form's token is good for the session that it was made for, and no other (86)."""
        browser, thief = site.browser(), site.browser()
        assert browser.visit(lambda page: page.check_csrf("")).result is False
        token = browser.visit(lambda page: page.csrf_token()).result
        stolen = thief.visit(lambda page: page.csrf_token()).result
        browser.visit(count)
        assert browser.visit(lambda page: page.check_csrf(token)).result is True
        assert browser.visit(lambda page: page.check_csrf(stolen)).result is False
        assert browser.visit(lambda page: page.check_csrf("")).result is False
        assert thief.visit(lambda page: page.check_csrf(token)).result is False

    def test_csrf_after_renewal(self, site: Site) -> None:
        """A form from before a change of rights is refused after it (security 86)."""
        browser = site.browser(a=1)
        token = browser.visit(lambda page: page.csrf_token()).result
        browser.visit(renew)
        believed = browser.visit(lambda page: page.check_csrf(token)).result
        assert believed is site.differs("forms outlive renewal")

    # -- the response

    @pytest.mark.parametrize("data", [{}, {"a": 1}], ids=["new", "old"])
    @pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
    def test_a_change_is_saved_before_the_headers_leave(
        self, site: Site, make_site: MakeSite, data: dict[str, Any], streamed: bool
    ) -> None:
        """When the headers reach the server, another process reads what changed (I11)."""
        browser, other = site.browser(**data), make_site()
        found: list[dict[str, Any]] = []

        def watch(answer: Answer) -> None:
            early = browser.copy(other)
            for cookie in answer.set_cookies:
                early.jar[cookie.name] = cookie.value
            found.append(early.data())

        browser.visit(put(b=2), watch=watch, middle=nothing if streamed else None)
        assert found == [{**data, "b": 2}]

    def test_one_cookie_for_all(self, site: Site) -> None:
        """A request that does everything at once sets one cookie (security 26)."""
        browser = site.browser(a=1)
        seen = browser.visit(
            steps(put(b=1), renew, destroy, put(c=1), lambda page: page.bind("ann"), put(d=1))
        )
        assert seen.cookie.value
        assert browser.visit(lambda page: page.session.get("a")).result is None
        assert browser.visit(lambda page: page.session["d"]).result == 1

    # -- errors

    @pytest.mark.parametrize("status", [500, 503])
    def test_an_error_of_the_server(self, site: Site, status: int) -> None:
        """A response of 5xx saves nothing and sets no cookie, for a new visitor or an old one."""
        for browser in (site.browser(), site.browser(a=1)):
            before = browser.data()
            site.calls()
            seen = browser.visit(put(b=2), status=status)
            assert seen.status == status
            assert seen.cookies == []
            assert site.calls().store <= 1  # the look
            assert browser.data() == before

    @pytest.mark.parametrize("view", [renew, destroy], ids=["renew", "destroy"])
    def test_an_error_of_the_server_after_it_was_called(self, site: Site, view: View) -> None:
        """A renewal or a logout that ends in a response of 5xx has not happened."""
        browser = site.browser(a=1)
        seen = browser.visit(view, status=500)
        assert [cookie for cookie in seen.cookies if not cookie.deletes] == []
        if not site.differs("acts at once"):
            assert seen.cookies == []
            assert browser.data() == {"a": 1}
        elif site.revocable or view is destroy:
            assert browser.data() == {}

    @pytest.mark.parametrize("status", [302, 404])
    def test_an_error_of_the_client(self, site: Site, status: int) -> None:
        """A redirect or a response of 4xx saves as any other does (lineage 46)."""
        browser = site.browser()
        assert browser.visit(put(a=1), status=status).status == status
        assert browser.data() == {"a": 1}

    def test_a_view_that_fails(self, site: Site) -> None:
        """A view that raises an exception has saved nothing and set no cookie."""
        for browser in (site.browser(), site.browser(a=1)):
            before = browser.data()
            site.calls()
            seen = browser.visit(steps(put(b=2), fail))
            assert seen.status == 500
            assert seen.cookies == []
            assert site.calls().store <= 1  # the look
            assert browser.data() == before

    def test_no_secret_is_shown(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """Neither key nor token is in a body, a log or a header but the cookie's (11, 77, 78)."""
        caplog.set_level(logging.DEBUG)
        browser = site.browser()
        tokens, shown = set(), []

        def break_down(page: Page) -> None:
            look(page)
            site.to_store.down()
            page.session["a"] = "a private value"

        for view, status in (
            (put(a=1), 200),
            (renew, 200),
            (put(a=2), 404),
            (put(a=3), 500),
            (steps(put(a=4), fail), 200),
            (break_down, 200),
            (steps(lambda page: page.bind("ann"), put(b="a private value")), 200),
            (look, 200),
            (destroy, 200),
        ):
            seen = browser.visit(view, status=status)
            site.to_store.up()
            tokens.add(browser.token)
            headers = [(k, v) for k, v in seen.answer.headers if k.lower() != "set-cookie"]
            shown.append(f"{headers} {seen.answer.body!r} {seen.answer.error}")
        stale = browser.copy()
        for token in sorted(tokens - {""}):
            stale.token = token[:-1] + "x"
            seen = stale.visit(look)
            shown.append(f"{seen.answer.body!r}")
        assert len(tokens) >= 4
        text = "\n".join([*shown, caplog.text])
        assert "TokenRefused" in text
        assert "StoreFailed" in text
        for secret in (tokens - {""}) | {SECRET, "a private value"}:
            assert secret not in text


class ServerStores(Scenarios):
    """The cases of stores that keep the data on the server."""

    # -- dead stays dead

    def test_a_replay_after_logout(self, site: Site, make_site: MakeSite) -> None:
        """A cookie from before the logout is refused for ever, by any process (45, R1)."""
        browser = site.browser(a=1)
        thief = browser.copy()
        browser.visit(destroy)
        for process in (site, make_site()):
            for _ in range(2):
                copy = thief.copy(process)
                assert copy.data() == {}
                assert not copy.token
            assert thief.copy(process).visit(count).result == 1
            process.clock.advance(3600)

    def test_a_replay_after_renewal(self, site: Site, make_site: MakeSite) -> None:
        """The old id of a renewed session is dead in both tiers (security 13, R2)."""
        browser = site.browser(a=1)
        thief = browser.copy()
        browser.visit(renew)
        assert thief.copy().data() == {}
        assert thief.copy(make_site()).data() == {}
        assert browser.data() == {"a": 1}

    def test_two_renewals_at_once(self, site: Site) -> None:
        """Of two requests that renew one session, one has a successor and one has none (15)."""
        slow = site.browser(a=1)
        quick = slow.copy()
        before = slow.token
        seen = slow.visit(steps(look, lambda page: quick.visit(renew), renew))
        assert seen.status == (400 if site.differs("lost is 400") else 200)
        assert quick.token != before
        assert quick.data() == {"a": 1}
        assert [cookie for cookie in seen.cookies if cookie.value] == []
        assert slow.data() == {}

    @pytest.mark.parametrize("late", [put(b=2), count, renew], ids=["put", "count", "renew"])
    def test_a_slow_writer_after_logout(self, site: Site, late: View) -> None:
        """A request that began before the logout and saves after it revives nothing (46, I6)."""
        slow = site.browser(a=1)
        quick, thief = slow.copy(), slow.copy()
        seen = slow.visit(steps(look, lambda page: quick.visit(destroy), late))
        assert seen.status == (400 if site.differs("lost is 400") else 200)
        assert [cookie for cookie in seen.cookies if cookie.value] == []
        assert thief.data() == {}
        assert slow.data() == {}
        assert "SessionGone" in site.events_since()

    # -- two writers

    def test_two_writers(self, site: Site) -> None:
        """Two requests that change different keys both have their way (P5)."""
        slow = site.browser(a=1)
        quick = slow.copy()
        slow.visit(steps(look, lambda page: quick.visit(put(b=2)), put(c=3)))
        assert slow.data() == quick.data() == {"a": 1, "b": 2, "c": 3}

    def test_two_writers_of_one_key(self, site: Site) -> None:
        """Of two requests that change one key, the later one has its way (P5)."""
        slow = site.browser(a=1)
        quick = slow.copy()
        slow.visit(steps(look, lambda page: quick.visit(put(a=2, b=2)), put(a=3)))
        assert slow.data() == {"a": 3, "b": 2}

    def test_two_counts_at_once(self, make_site: MakeSite) -> None:
        """With a merge rule, two requests that count at once count twice (P5)."""
        site = make_site(SESSION_MERGE_RULES={"count": counter})
        slow = site.browser(count=1)
        quick = slow.copy()
        slow.visit(steps(look, lambda page: quick.visit(count), count))
        assert slow.data() == {"count": 3}

    # -- what it costs

    def test_what_each_request_costs(self, site: Site, costs: Costs) -> None:
        """Each kind of request makes the calls of the table in the design, and no more (R24)."""
        browser = site.browser(a=1)
        thief = browser.copy()
        for view, calls in (
            (nothing, costs.hit if site.differs("loads ahead") else NONE),
            (look, costs.hit),
            (put(a=1), costs.hit),
            (put(a=2), costs.hit + costs.write),
            (steps(put(a=3), put(b=1), put(a=4), look), costs.hit + costs.write),
            (renew, costs.hit + costs.delete + costs.new),
            (steps(look, destroy), costs.hit + costs.delete),
            (look, NONE),
            (steps(put(a=1), put(b=1)), costs.new),
        ):
            browser.visit(view)
            assert site.calls() == calls
        site.evict(browser.token)
        browser.visit(look)
        assert site.calls() == costs.miss
        browser.visit(look)
        assert site.calls() == costs.hit
        thief.token = thief.token[:-1] + ("A" if thief.token[-1] != "A" else "B")
        thief.visit(put(a=1))
        assert site.calls() == costs.new

    # -- streaming

    def test_a_change_in_the_middle_of_a_body(self, site: Site) -> None:
        """What changes while a body is streamed is saved at its end."""
        browser = site.browser(a=1)
        seen = browser.visit(put(b=2), middle=put(c=3))
        assert seen.answer.body == b"page"
        late = {} if site.differs("streams are not saved") else {"c": 3}
        assert browser.data() == {"a": 1, "b": 2, **late}

    # -- a store that is down

    def test_the_store_is_down_for_a_read(self, site: Site) -> None:
        """A session that cannot be read is not taken for empty: the answer is 503 (P4, 76)."""
        browser = site.browser(a=1)
        site.evict(browser.token)
        site.to_store.down()
        seen = browser.visit(count)
        assert seen.status == (500 if site.differs("unavailable is 500") else 503)
        assert seen.result is None
        assert seen.cookies == []
        site.to_store.up()
        assert browser.data() == {"a": 1}

    @pytest.mark.parametrize(
        "view", [put(a=2), renew, destroy, empty], ids=["change", "renew", "destroy", "empty"]
    )
    def test_the_store_is_down_for_a_write(self, site: Site, view: View) -> None:
        """A change that cannot be saved is not claimed to be, and the old data is there (17)."""
        browser = site.browser(a=1)
        down = steps(look, lambda page: site.to_store.down(), view)
        seen = browser.visit(down, headers=[("X-Saved", "yes")])
        assert seen.status == (500 if site.differs("unavailable is 500") else 503)
        assert seen.cookies == []
        assert seen.answer.body != b"page"
        assert seen.answer.values("X-Saved") == []
        site.to_store.up()
        assert browser.data() == {"a": 1}

    def test_the_store_is_down_for_a_new_visitor(self, site: Site) -> None:
        """A new session that cannot be saved sets no cookie, and is there on the second try."""
        browser = site.browser()
        site.to_store.down()
        seen = browser.visit(put(a=1))
        assert seen.status == (500 if site.differs("unavailable is 500") else 503)
        assert seen.cookies == []
        site.to_store.up()
        browser.visit(put(a=1))
        assert browser.data() == {"a": 1}

    def test_the_store_is_down_for_others(self, site: Site) -> None:
        """Who does not touch the session, or sends a bad cookie, is served without the store."""
        browser, stranger = site.browser(a=1), site.browser()
        stranger.token = "A" * 32
        site.to_store.down()
        assert browser.visit(nothing).status == 200
        seen = stranger.visit(look)
        assert (seen.status, seen.result) == (200, {})


class TwoTiers(Scenarios):
    """The cases of a cache in front of a durable store."""

    def test_the_cache_is_down(self, site: Site) -> None:
        """Without its cache a site goes on from the durable store, with nothing lost (P1, 76)."""
        browser = site.browser(count=1)
        site.to_cache.down()
        assert [browser.visit(count).result for _ in range(3)] == [2, 3, 4]
        browser.visit(renew)
        fresh = site.browser(a=1)
        assert fresh.data() == {"a": 1}
        site.to_cache.up()
        site.clock.advance(60)
        assert browser.data() == {"count": 4}
        assert fresh.data() == {"a": 1}

    def test_a_change_that_the_cache_missed(self, site: Site) -> None:
        """After an outage the cache does not answer with what it had before (P2, R7)."""
        browser = site.browser(a=1)
        browser.data()
        site.to_cache.down()
        browser.visit(put(a=2))
        site.to_cache.up()
        site.clock.advance(60)
        assert browser.data() == {"a": 2}

    def test_a_logout_that_the_cache_missed(self, site: Site) -> None:
        """A logout while the cache is down holds after it is back (security 16, 47, P3)."""
        browser, other = site.browser(a=1), site.browser(b=2)
        thief, old = browser.copy(), other.copy()
        site.to_cache.down()
        assert browser.visit(destroy).cookie.deletes
        other.visit(renew)
        site.to_cache.up()
        site.clock.advance(60)
        assert thief.data() == {}
        assert old.data() == {}
        assert other.data() == {"b": 2}

    def test_the_cache_forgets(self, site: Site, costs: Costs) -> None:
        """What the cache forgot is read from the durable store and cached again (13, 14, 17)."""
        browser = site.browser(a=1)
        site.evict(browser.token)
        assert browser.data() == {"a": 1}
        assert site.calls() == costs.miss
        assert browser.data() == {"a": 1}
        assert site.calls() == costs.hit

    def test_a_warm_session_without_the_store(self, site: Site) -> None:
        """A session that the cache holds is read while the store is down (P4)."""
        browser = site.browser(a=1)
        site.to_store.down()
        assert browser.data() == {"a": 1}

    def test_two_processes(self, make_site: MakeSite) -> None:
        """What one process saved, the next request reads in another, and cached (P1)."""
        one, other = make_site(), make_site()
        browser = one.browser(count=0)
        for number in range(1, 7):
            browser = browser.copy((one, other)[number % 2])
            assert browser.visit(count).result == number


class CookieStore(Scenarios):
    """The cases of the store whose token is the data."""

    @pytest.mark.parametrize("old", [{}, {"a": 1}], ids=["new", "old"])
    def test_an_oversize_cookie(self, site: Site, old: dict[str, Any]) -> None:
        """A cookie that browsers would drop is an error, and the old one stays valid (27, R17)."""
        browser = site.browser(**old)
        seen = browser.visit(put(big=bytes(hash(str(n)) % 256 for n in range(5000))))
        assert seen.status == 500
        assert seen.cookies == []
        assert seen.answer.body != b"page"
        assert browser.data() == old

    def test_a_change_in_the_middle_of_a_body(self, site: Site) -> None:
        """A change that would need a cookie after the headers is refused where it is made."""
        caught: list[BaseException] = []

        def late(page: Page) -> None:
            try:
                page.session["c"] = 3
            except HeadersSentError as error:
                caught.append(error)

        browser = site.browser(a=1)
        seen = browser.visit(put(b=2), middle=late)
        assert bool(caught) is not site.differs("streams are not saved")
        assert seen.answer.body == b"page"
        assert browser.data() == {"a": 1, "b": 2}

    def test_the_data_is_in_the_cookie(self, make_site: MakeSite) -> None:
        """Another process with the same key reads the session, and nothing else is shared."""
        browser = make_site().browser(a=1)
        assert browser.copy(make_site()).data() == {"a": 1}
