"""The manager: how often a request asks its store, what it tells observers, what it refuses."""

from __future__ import annotations

import json
import os
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tieredsession import (
    ConfigurationError,
    Conflict,
    Record,
    Saved,
    Session,
    SessionManager,
    SessionTooLarge,
    StoreError,
    StoreUnavailable,
    UnstorableError,
)
from tieredsession.codec import MsgpackCodec
from tieredsession.cookies import CookieWriter, Reply
from tieredsession.errors import HeadersSentError
from tieredsession.events import CookieNearLimit, StoreFailed

if TYPE_CHECKING:
    from conftest import Browser, MakeSite, Site

    from tieredsession.testing import FakeClock

Step = Callable[[Session], Any]

# -- what a request costs -------------------------------------------------------------


def _thrice(session: Session) -> None:
    for key in "abc":
        session.get(key)


def _write_thrice(session: Session) -> None:
    for key in "abc":
        session[key] = key


COSTS: dict[str, tuple[Step, list[str]]] = {
    "untouched": (lambda session: session.accessed, []),
    "read": (lambda session: session["a"], ["load"]),
    "read thrice": (_thrice, ["load"]),
    "written": (lambda session: session.update(b=2), ["load", "update"]),
    "written thrice": (_write_thrice, ["load", "update"]),
    "renewed": (lambda session: session.renew(), ["load", "delete", "create"]),
    "destroyed": (lambda session: session.destroy(), ["load", "delete"]),
    "emptied": (lambda session: session.clear(), ["load", "delete"]),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_calls_of_a_request(site: Site, name: str) -> None:
    """A request asks its store no more often than what it does needs (lineage R6, R24)."""
    view, calls = COSTS[name]
    site.browser(a=1).visit(view)
    assert site.calls == calls


COSTS_OF_STRANGERS: dict[str, tuple[Step, list[str]]] = {
    "untouched": (lambda session: session.accessed, []),
    "read": (lambda session: session.get("a"), []),
    "written": (lambda session: session.update(a=1), ["create"]),
    "written and cleared": (lambda session: (session.update(a=1), session.popitem()), []),
}


@pytest.mark.parametrize("name", COSTS_OF_STRANGERS)
def test_the_calls_of_a_visitor_without_a_cookie(site: Site, name: str) -> None:
    """A visitor without a cookie costs nothing but the session that he is given (lineage 1, 4)."""
    view, calls = COSTS_OF_STRANGERS[name]
    visit = site.browser().visit(view)
    assert site.calls == calls
    assert len(visit.set_cookies) == len(calls)
    assert site.rows == (len(calls) if site.store.revocable else 0)


@pytest.mark.server_stores
def test_an_unknown_id_is_looked_up_once(site: Site) -> None:
    """An authentic id of no session costs one lookup, however often it is read (lineage R6)."""
    browser = site.browser(a=1)
    thief = browser.copy()
    browser.visit(lambda session: session.destroy())
    site.chaos.calls.clear()
    thief.visit(_thrice)
    assert site.calls == ["load"]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    "change", [lambda t: t[::-1], lambda t: t[:-1], lambda t: "x", lambda t: t + t]
)
def test_a_forged_id_costs_no_call(site: Site, change: Callable[[str], str]) -> None:
    """A forged or malformed id never reaches the tier behind the store (R5, security 12)."""
    browser = site.browser(a=1)
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        connection.execute("DROP TABLE sessions")
    with pytest.raises(StoreError):
        browser.data()
    browser.cookie = change(browser.cookie)
    assert browser.data() == {}


def test_other_cookies_cost_nothing(site: Site) -> None:
    """Cookies of other names, even broken ones, are not ours to look at (lineage 59)."""
    good = site.header(site.browser(a=1).cookie)
    for header in ("other=1", "a[b;c]=2; =; ;;x", "__Host-idx=1", "x__Host-id=1"):
        assert site.send(header).result == {}
        assert site.events == []
        assert site.send(f"{header}; {good}").result == {"a": 1}


def test_a_cookie_without_a_value(site: Site) -> None:
    """A missing cookie and an empty one are a new session (lineage 58)."""
    for header in ("", "__Host-id=", "__Host-id", "__Host-id=;"):
        visit = site.send(header, lambda session: session.new)
        assert visit.result is True
        assert visit.set_cookies == []
    assert site.calls == []
    assert site.events == []


# -- the manager by itself ------------------------------------------------------------


class OneRecord:
    """A store for one session, under the token ``token``, that never says no."""

    revocable = True

    def __init__(self, payload: bytes = b"\x80") -> None:
        self.record = Record(payload, 2e9, 1e9)

    def load(self, token: str, now: float) -> Record | None:
        return self.record

    def create(self, record: Record, now: float) -> Saved:
        self.record = record
        return Saved("token", 1)

    def update(self, token: str, record: Record, now: float) -> Saved:
        self.record = record
        return Saved(token, record.version + 1)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        raise AssertionError("nobody ended anything")

    def label(self, token: str) -> str | None:
        return None


class Contested(OneRecord):
    """A store in which another request is always faster."""

    updates = 0

    def update(self, token: str, record: Record, now: float) -> Saved:
        self.updates += 1
        raise Conflict(self.record._replace(version=self.updates))


CODEC = MsgpackCodec()
A_ONE = CODEC.encode({"a": 1})


def _manager(store: OneRecord, **options: Any) -> SessionManager:
    return SessionManager(store, CODEC, CookieWriter("id"), clock=lambda: 1.5e9, **options)


def test_a_manager_needs_little() -> None:
    """A store, a codec and a cookie writer make a manager; the rest has defaults."""
    manager = _manager(OneRecord())
    session = manager.open(None)
    session["a"] = 1
    assert manager.close(session) == Reply(
        "id=token; Path=/; Secure; HttpOnly; SameSite=Lax", "private"
    )
    assert dict(manager.open("id=token")) == {"a": 1}


def test_a_manager_has_a_clock_of_its_own() -> None:
    """Without a clock the manager takes the system's."""
    manager = SessionManager(OneRecord(), CODEC, CookieWriter("id"))
    assert manager.clock() > 1.7e9


def test_an_untouched_session_owes_nothing() -> None:
    """Closing and finishing an untouched session answers None."""
    manager = _manager(OneRecord())
    session = manager.open("id=token")
    assert manager.close(session) is None
    assert session.headers_sent
    manager.finish(session)
    assert not session.accessed


def test_a_read_session_owes_its_vary() -> None:
    """A session that was read is owed a Vary and no cookie (lineage R30)."""
    manager = _manager(OneRecord(A_ONE))
    session = manager.open("id=token")
    assert session["a"] == 1
    assert manager.close(session) == Reply(None, "private")


def test_an_endless_conflict_ends() -> None:
    """A save that others keep overtaking gives up after random pauses, and says so."""
    naps: list[float] = []
    events: list[object] = []
    store = Contested(A_ONE)
    manager = _manager(store, sleep=naps.append, observers=[events.append])
    session = manager.open("id=token")
    session["b"] = 2
    with pytest.raises(StoreUnavailable, match="32 times"):
        manager.close(session)
    assert store.updates == 32
    assert len(naps) == 29
    assert len(set(naps)) > 1
    assert 0 <= min(naps) <= max(naps) < 0.07
    assert [type(event).__name__ for event in events] == ["SessionMerged"] * 32 + ["StoreFailed"]


def test_a_crowd_is_saved() -> None:
    """A save outlasts 31 others of that session, as many as a page may ever start at once."""

    class Crowded(Contested):
        def update(self, token: str, record: Record, now: float) -> Saved:
            if self.updates < 31:
                super().update(token, record, now)
            return OneRecord.update(self, token, record, now)

    store = Crowded(A_ONE)
    manager = _manager(store, sleep=lambda seconds: None)
    session = manager.open("id=token")
    session["b"] = 2
    manager.close(session)
    assert dict(manager.open("id=token")) == {"a": 1, "b": 2}


def test_a_conflict_without_observers() -> None:
    """Nobody has to watch for a conflict to be merged."""
    store = Contested(A_ONE)
    manager = _manager(store, sleep=lambda seconds: None)
    session = manager.open("id=token")
    session["b"] = 2
    with pytest.raises(StoreUnavailable):
        manager.close(session)


def test_a_refusal_without_observers() -> None:
    """Nobody has to watch for a bad cookie to be refused, or for a failure to be one."""
    manager = _manager(OneRecord(b"\xc1"))
    assert dict(manager.open("id=token")) == {}
    assert dict(manager.open("id=" + "x" * 5000)) == {}


def test_a_conflict_with_what_nobody_can_read() -> None:
    """What another request saved and this one cannot read is not written over (security 76)."""
    store = Contested(A_ONE)
    manager = _manager(store)
    session = manager.open("id=token")
    session["b"] = 2
    store.record = store.record._replace(payload=b"\xc1")
    with pytest.raises(StoreError, match="cannot be merged"):
        manager.close(session)
    assert store.record.payload == b"\xc1"


class Lenient(OneRecord):
    """A store whose writes do not look at the expiry, as where that is no condition."""

    def load(self, token: str, now: float) -> Record | None:
        return self.record if self.record.expires > now else None


@pytest.mark.parametrize("extended", [True, False])
def test_the_manager_looks_at_the_clock_itself(clock: FakeClock, extended: bool) -> None:
    """What ran out during its request is saved only if another request has extended it (P6)."""
    store = Lenient(A_ONE)
    manager = SessionManager(store, CODEC, CookieWriter("id"), clock=clock)
    store.record = store.record._replace(expires=clock.now + 60)
    session = manager.open("id=token")
    session["b"] = 2
    clock.advance(60)
    if extended:
        store.record = store.record._replace(expires=clock.now + 60)
    before = store.record
    manager.close(session)
    assert dict(session) == ({"a": 1, "b": 2} if extended else {})
    assert (store.record == before) is not extended


def test_a_record_without_data() -> None:
    """A stored session without data loads as an empty one (lineage 21)."""
    assert dict(_manager(OneRecord()).open("id=token")) == {}


def test_finish_is_too_late_for_a_cookie() -> None:
    """Finishing refuses a change that needs a cookie, and saves one that does not."""
    manager = _manager(OneRecord())
    new = manager.open(None)
    new["list"] = []
    assert manager.close(new, 500) is not None
    with pytest.raises(HeadersSentError):
        new["list"] = [1]
    known = manager.open("id=token")
    known["list"] = []
    manager.close(known)
    known["list"].append(1)
    manager.finish(known)
    assert dict(manager.open("id=token")) == {"list": [1]}


def test_a_login_that_comes_too_late() -> None:
    """A login after the headers is refused as a whole: the old id does not become anybody's."""
    store = OneRecord(A_ONE)
    manager = _manager(store)
    session = manager.open("id=token")
    assert session["a"] == 1
    manager.close(session)
    with pytest.raises(HeadersSentError):
        session.bind("ann", device="phone")
    manager.finish(session)
    assert (session.principal, dict(session)) == (None, {"a": 1})
    assert store.record.principal is None


def test_a_late_save_does_not_begin_a_session() -> None:
    """Saving a new session after the headers is an error, not a row without a cookie (R23)."""
    store = OneRecord()
    manager = _manager(store)
    session = manager.open(None)
    session["a"] = 1
    manager.close(session, 500)
    with pytest.raises(HeadersSentError):
        session.save()
    assert store.record.payload == b"\x80"


# -- a store that fails ---------------------------------------------------------------


@pytest.mark.server_stores
def test_unknown_is_not_empty(site: Site) -> None:
    """While the store cannot answer nothing can be read, written or ended (security 76)."""
    browser = site.browser(a=1)
    site.chaos.down()
    session = site.open(browser)
    steps: list[Callable[[], Any]] = [
        lambda: session.get("a"),
        lambda: session.update(a=2),
        lambda: session.clear(),
        lambda: session.destroy(),
        lambda: session.renew(),
        lambda: session.bind("ann"),
        lambda: session.new,
    ]
    for step in steps:
        with pytest.raises(StoreUnavailable):
            step()
    assert site.manager.close(session) is None
    site.chaos.up()
    assert browser.data() == {"a": 1}
    assert set(site.events.names) == {"StoreFailed"}


@pytest.mark.server_stores
def test_a_session_that_could_not_be_read_can_be_tried_again(site: Site) -> None:
    """A load that failed is made again at the next access."""
    session = site.open(site.browser(a=1))
    site.chaos.fail("load")
    with pytest.raises(StoreUnavailable):
        session.get("a")
    assert session["a"] == 1


@pytest.mark.parametrize(
    ("step", "method"),
    [
        (lambda session: session.update(b=2), "update"),
        (lambda session: session.destroy(), "delete"),
        (lambda session: session.renew(), "delete"),
    ],
    ids=["change", "logout", "renewal"],
)
def test_a_save_that_failed_can_be_tried_again(site: Site, step: Step, method: str) -> None:
    """What could not be saved is an error, is still there, and is saved by the next try (I10)."""
    browser = site.browser(a=1)
    session = site.open(browser)
    step(session)
    expected = dict(session)
    site.chaos.fail(method)
    with pytest.raises(StoreUnavailable):
        site.manager.close(session)
    assert not session.headers_sent
    assert dict(session) == expected
    assert browser.data() == {"a": 1}
    browser.take(site.manager.close(session))
    assert browser.data() == expected


def test_a_failed_logout_is_no_success(site: Site) -> None:
    """A logout that the store did not take is a 503 without a deletion cookie (security 47)."""
    browser = site.browser(a=1)
    site.chaos.fail("delete")
    visit = browser.visit(lambda session: session.destroy())
    assert visit.response.status_code == 503
    assert visit.set_cookies == []
    assert browser.data() == {"a": 1}


@pytest.mark.server_stores
def test_a_renewal_whose_second_half_fails(site: Site) -> None:
    """Where the new id cannot be saved, the old is dead and the reply an error (security 17)."""
    browser = site.browser(a=1)
    thief = browser.copy()
    site.chaos.fail("create")
    visit = browser.visit(lambda session: session.renew())
    assert visit.response.status_code == 503
    assert visit.set_cookies == []
    assert site.rows == 0
    assert thief.data() == {}


@pytest.mark.server_stores
def test_a_renewal_whose_second_half_is_tried_again(site: Site) -> None:
    """A request that saves again after that gets its new id, with its data."""
    browser = site.browser(a=1)

    def view(session: Session) -> None:
        session.renew()
        site.chaos.fail("create")
        with pytest.raises(StoreUnavailable):
            session.save()

    browser.visit(view)
    assert browser.data() == {"a": 1}
    assert site.rows == 1


@pytest.mark.server_stores
def test_a_renewal_whose_second_half_failed_is_not_taken_back(site: Site) -> None:
    """After that there is nothing to revert to: the session that was read is dead."""
    browser = site.browser(a=1)

    def view(session: Session) -> tuple[bool, float | None, dict[str, Any]]:
        session.renew()
        site.chaos.fail("create")
        with pytest.raises(StoreUnavailable):
            session.save()
        session.revert()
        return session.new, session.expires, dict(session)

    assert browser.visit(view).result == (True, None, {})
    assert site.rows == 0


@pytest.mark.parametrize("end", [Session.clear, Session.destroy], ids=["clear", "destroy"])
def test_what_follows_a_session_has_a_beginning_of_its_own(site: Site, end: Step) -> None:
    """A session that begins after the one before was ended and saved began then, not earlier."""
    browser = site.browser(a=1)
    site.clock.advance(3600)

    def view(session: Session) -> float | None:
        end(session)
        session.save()
        created = session.created
        session["b"] = 2
        return created

    assert browser.visit(view).result is None
    assert site.open(browser).created == int(site.clock())


@pytest.mark.parametrize("step", ["create", "update", "renew"])
def test_nothing_dies_for_what_cannot_be_stored(site: Site, step: str) -> None:
    """Data that no store can hold is refused before the old id is given up."""
    browser = site.browser(list=[])

    def view(session: Session) -> None:
        session["list"].append(object())
        if step == "renew":
            session.renew()
        if step == "create":
            session.bind("ann")

    with pytest.raises(TypeError, match="object"):
        browser.visit(view)
    assert browser.data() == {"list": []}


# -- what observers are told ----------------------------------------------------------


def test_the_events_of_a_life(site: Site) -> None:
    """Each turn of a session's life is one event (security 78)."""
    browser = site.browser()
    steps: list[Step] = [
        lambda session: session.update(a=1),
        lambda session: session.get("a"),
        lambda session: session.update(a=2),
        lambda session: session.renew(),
        lambda session: session.bind("ann"),
        lambda session: session.destroy(),
        lambda session: session.get("a"),
    ]
    for step in steps:
        browser.visit(step)
    assert site.events.names == [
        "SessionCreated",
        "SessionSaved",
        "SessionRenewed",
        "SessionRenewed",
        "SessionEnded",
    ]


@pytest.mark.server_stores
def test_labels_follow_a_session(site: Site) -> None:
    """One session has one label until its id changes, and two sessions have two (security 78)."""
    one, two = site.browser(), site.browser()
    one.put(a=1)
    two.put(a=1)
    one.put(a=2)
    one.visit(lambda session: session.renew())
    one.visit(lambda session: session.destroy())
    first, other, again, renewed, ended = site.events.labels
    assert first == again
    assert renewed == ended
    assert len({first, other, renewed}) == 3
    assert all(label and len(label) == 12 for label in site.events.labels)


@pytest.mark.server_stores
def test_a_refusal_names_the_session(site: Site) -> None:
    """Of an authentic id that is refused, observers are told which session it is."""
    one, two = site.browser(), site.browser()
    one.put(a=1)
    two.put(a=1)
    site.send(f"{site.header(one.cookie)}; {site.header(two.cookie)}")
    assert site.events.reasons == ["ambiguous"]
    first, _, refused = site.events.labels
    assert refused == first


def test_a_failure_is_told_without_data(site: Site) -> None:
    """A store's failure is told by its class and message."""
    site.chaos.fail("create")
    site.browser().put(a="private")
    (event,) = site.events.of(StoreFailed)
    assert event.error == "StoreUnavailable: create was made to fail"


def test_an_observer_that_raises(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """A failing observer is logged; the logout happens and the others are told (security 48)."""

    def broken(event: object) -> None:
        raise ZeroDivisionError

    site = make_site(observers=[broken])
    browser = site.browser(a=1)
    caplog.clear()
    browser.visit(lambda session: session.destroy())
    assert browser.data() == {}
    assert site.rows == 0
    assert site.events.names == ["SessionEnded"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("an observer failed on SessionEnded") == 1


# -- the sessions of a principal ------------------------------------------------------


def _login(site: Site, who: str, device: str | None = None) -> Browser:
    """A visitor who has just logged in."""
    browser = site.browser()
    browser.visit(lambda session: session.bind(who, device=device))
    return browser


@pytest.fixture
def users(make_site: MakeSite) -> Site:
    """A site that knows whose sessions are whose."""
    return make_site(SESSION_PRINCIPALS=True)


@pytest.mark.server_stores
def test_the_sessions_of_a_user(users: Site, clock: FakeClock) -> None:
    """A user's live sessions are listed, the latest used first, by no usable id (security 53)."""
    born = clock.now
    old = _login(users, "ann", "old laptop")
    clock.advance(100)
    phone = _login(users, "ann", "phone")
    _login(users, "bob", "bob's")
    clock.advance(5 * 24 * 3600)
    old.data()
    this = users.open(old)
    infos = users.manager.sessions_of("ann", this)
    assert [(info.device, info.current, info.created, info.last_seen) for info in infos] == [
        ("old laptop", True, born, clock.now),
        ("phone", False, born + 100, born + 100),
    ]
    for info in infos:
        assert users.send(users.header(info.handle)).result == {}
        assert info.handle not in (old.cookie, phone.cookie)
    assert users.manager.sessions_of("nobody") == []
    clock.advance(10 * 24 * 3600)
    assert [info.device for info in users.manager.sessions_of("ann")] == ["old laptop"]


@pytest.mark.server_stores
def test_a_session_near_its_end_was_not_seen_before_it_began(make_site: MakeSite) -> None:
    """Where an absolute limit cuts the lifetime, nobody was seen before the session began."""
    site = make_site(SESSION_PRINCIPALS=True, SESSION_COOKIE_AGE=600, SESSION_ABSOLUTE_AGE=600)
    _login(site, "ann").visit(lambda session: setattr(session, "lifetime", 3600))
    (info,) = site.manager.sessions_of("ann")
    assert info.last_seen == info.created == site.clock.now


@pytest.mark.server_stores
def test_one_session_of_a_user_is_ended(users: Site) -> None:
    """A user ends one of his sessions from another, and nobody else's (security 53)."""
    laptop, phone, other = _login(users, "ann"), _login(users, "ann"), _login(users, "bob")
    infos = users.manager.sessions_of("ann", users.open(laptop))
    (handle,) = [info.handle for info in infos if not info.current]
    assert users.manager.end_session("bob", handle) is False
    assert users.manager.end_session("ann", handle) is True
    assert users.manager.end_session("ann", handle) is False
    owners = [users.open(browser).principal for browser in (laptop, phone, other)]
    assert owners == ["ann", None, "bob"]


@pytest.mark.server_stores
@pytest.mark.parametrize("keep", [True, False])
def test_all_sessions_of_a_user_are_ended(users: Site, keep: bool) -> None:
    """All sessions of a user end at once, or all but the one that asks (security 50-52)."""
    browsers = [_login(users, "ann") for _ in range(3)]
    other = _login(users, "bob")
    mine = users.open(browsers[0])
    assert users.manager.end_all("ann", keep=mine if keep else None) == 3 - keep
    owners = [users.open(browser).principal for browser in browsers]
    assert owners == (["ann", None, None] if keep else [None] * 3)
    assert users.open(other).principal == "bob"


@pytest.mark.server_stores
def test_a_new_visitor_ends_all(users: Site) -> None:
    """A visitor whose own session is not saved yet has none to keep."""
    _login(users, "ann")
    assert users.manager.end_all("ann", keep=users.manager.open(None)) == 1


@pytest.mark.server_stores
def test_a_session_that_is_busy_is_ended(users: Site) -> None:
    """A session that another request saves meanwhile is ended all the same."""
    browser = _login(users, "ann")
    users.chaos.before("end", lambda: browser.put(a=1))
    assert users.manager.end_all("ann") == 1
    assert users.open(browser).principal is None


@pytest.mark.server_stores
def test_a_session_that_its_user_leaves_is_not_ended(users: Site) -> None:
    """A session that clear() leaves to nobody meanwhile is not ended as the user's."""
    browser = _login(users, "ann")
    users.chaos.before("end", lambda: browser.visit(lambda s: s.clear(), lambda s: s.update(a=1)))
    assert users.manager.end_all("ann") == 0
    assert browser.data() == {"a": 1}


@pytest.mark.server_stores
def test_a_session_that_ends_by_itself(users: Site) -> None:
    """A session that another request ends meanwhile is not counted."""
    browser = _login(users, "ann")
    users.chaos.before("end", lambda: browser.visit(lambda session: session.destroy()))
    assert users.manager.end_all("ann") == 0


@pytest.mark.server_stores
@pytest.mark.parametrize(
    "leave",
    [
        lambda session: session.destroy(),
        lambda session: (session.clear(), session.update(a=1)),
        lambda session: session.bind(None),
        lambda session: session.bind("bob"),
    ],
    ids=["destroy", "clear", "unbind", "another"],
)
def test_who_left_is_not_listed(users: Site, leave: Step) -> None:
    """A session that is no longer a user's is not among his."""
    _login(users, "ann").visit(leave)
    assert users.manager.sessions_of("ann") == []


@pytest.mark.server_stores
def test_what_a_new_limit_has_ended_is_not_listed(
    users: Site, make_site: MakeSite, clock: FakeClock
) -> None:
    """A session that an absolute limit has ended is not listed, even if it began without one."""
    browser = _login(users, "ann")
    clock.advance(3 * 24 * 3600)
    site = make_site(
        store=users.real_store,
        SESSION_PRINCIPALS=True,
        SESSION_COOKIE_AGE=24 * 3600,
        SESSION_ABSOLUTE_AGE=2 * 24 * 3600,
    )
    assert site.open(browser).principal is None
    assert site.manager.sessions_of("ann") == []
    assert len(users.manager.sessions_of("ann")) == 1


@pytest.mark.server_stores
def test_a_session_that_nobody_can_read_is_listed(users: Site, clock: FakeClock) -> None:
    """A session whose data is damaged can be seen, and ended."""
    record = Record(b"\xc1", clock.now + 3600, clock.now, "ann")
    users.real_store.create(record, clock.now)
    (info,) = users.manager.sessions_of("ann")
    assert info.device is None
    assert users.manager.end_session("ann", info.handle)


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "sqlite"])
def test_without_an_index_nobody_is_found(site: Site) -> None:
    """Without SESSION_PRINCIPALS to ask for a user's sessions is an error that names it."""
    for call in (site.manager.sessions_of, site.manager.end_all):
        with pytest.raises(ConfigurationError, match="SESSION_PRINCIPALS"):
            call("ann")


def test_a_device_that_cannot_be_kept(site: Site) -> None:
    """A login whose device is refused is no login."""
    session = site.open(site.browser(a=1))
    device: Any = object()
    with pytest.raises(TypeError, match="_device"):
        session.bind("ann", device=device)
    assert session.principal is None
    assert not session.modified


def test_a_name_that_cannot_be_kept(site: Site) -> None:
    """A login under a name that no store can hold is refused at once, and is no login."""
    session = site.open(site.browser(a=1))
    with pytest.raises(UnstorableError, match="principal"):
        session.bind("ann\ud800")
    assert session.principal is None
    assert not session.modified


# -- the size of the cookie -----------------------------------------------------------


def _fill(site: Site, limit: int) -> bytes:
    """As many bytes as make the cookie's whole line *limit* bytes long, or just less."""

    def line(size: int) -> int:
        session = site.manager.open(None)
        session["fill"] = bytes(size)
        try:
            reply = site.manager.close(session)
        except SessionTooLarge as error:
            return error.size
        assert reply is not None
        return len(reply.set_cookie or "")

    return bytes(bisect_right(range(5000), limit, key=line) - 1)


@pytest.mark.parametrize("kind", ["cookie-signed"])
def test_the_largest_cookie(make_site: MakeSite) -> None:
    """A line of at most 4096 bytes is sent, and one byte of data more is refused (security 27)."""
    site = make_site(SESSION_COOKIE_COMPRESS=False)
    fill = _fill(site, 4096)
    browser = site.browser()
    assert 4094 <= len(browser.put(fill=fill).set_cookie) <= 4096
    with pytest.raises(SessionTooLarge, match="4096"):
        browser.put(fill=fill + b"x")
    assert browser.data() == {"fill": fill}


@pytest.mark.parametrize("kind", ["cookie-signed"])
def test_a_cookie_near_its_limit(make_site: MakeSite) -> None:
    """From three quarters of the limit on each save of a cookie is told to the observers."""
    site = make_site(SESSION_COOKIE_COMPRESS=False)
    fill = _fill(site, 3072)
    site.events.clear()
    browser = site.browser()
    browser.put(fill=fill)
    assert site.events.of(CookieNearLimit) == []
    visit = browser.put(fill=fill + b"x")
    assert site.events.of(CookieNearLimit) == [CookieNearLimit(len(visit.set_cookie), 4096)]


@pytest.mark.cookie_stores
def test_a_cookie_too_large_can_be_made_smaller(site: Site) -> None:
    """A view that finds its session too large may take out what is too much, and go on."""
    browser = site.browser(a=1)

    def view(session: Session) -> None:
        session["big"] = os.urandom(9000)
        with pytest.raises(SessionTooLarge):
            session.save()
        del session["big"]
        session["b"] = 2

    browser.visit(view)
    assert browser.data() == {"a": 1, "b": 2}


@pytest.mark.cookie_stores
def test_a_renewal_too_large_can_be_taken_back(site: Site) -> None:
    """A login that does not fit into the cookie, and is reverted, leaves the session as it was."""
    browser = site.browser(a=1)

    def view(session: Session) -> None:
        session["big"] = os.urandom(9000)
        session.bind("ann")
        with pytest.raises(SessionTooLarge):
            session.save()
        session.revert()
        session["b"] = 2

    browser.visit(view)
    assert browser.visit(lambda s: (dict(s), s.principal)).result == ({"a": 1, "b": 2}, None)


@pytest.mark.cookie_stores
@pytest.mark.parametrize(
    ("then", "data"),
    [(Session.clear, {}), (Session.destroy, {}), (Session.revert, {"a": 1})],
    ids=["clear", "destroy", "revert"],
)
def test_a_cookie_whose_renewal_failed(site: Site, then: Step, data: dict[str, Any]) -> None:
    """A cookie that could not be renewed is still good, so it can be kept, and has to be ended."""
    browser = site.browser(a=1)

    def view(session: Session) -> None:
        session.bind("ann")
        site.chaos.fail("create")
        with pytest.raises(StoreUnavailable):
            session.save()
        then(session)

    browser.visit(view)
    assert browser.data() == data


def _set_and_save(session: Session, value: object) -> None:
    session["value"] = value
    session.save()


@pytest.mark.server_stores
def test_values_of_any_size(site: Site) -> None:
    """A server store keeps a megabyte; more is refused, stored nowhere, and survived (79)."""
    browser = site.browser(a=1)
    for size in (1 << 10, 1 << 15, (1 << 20) - 50_000):
        browser.put(value=bytes(size))
        assert browser.data() == {"a": 1, "value": bytes(size)}

    def too_much(session: Session) -> None:
        with pytest.raises(UnstorableError, match="1048576"):
            _set_and_save(session, bytes(2 << 20))
        session.revert()

    assert browser.visit(too_much).response.status_code == 200
    assert len(browser.data()["value"]) == (1 << 20) - 50_000


# -- the codec ------------------------------------------------------------------------


class JsonCodec:
    """Somebody's own codec."""

    def check(self, key: str, value: Any) -> None:
        json.dumps(value)

    def encode(self, data: Mapping[str, Any]) -> bytes:
        return json.dumps(data).encode()

    def decode(self, payload: bytes) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(payload)
        return data


def test_a_codec_of_ones_own() -> None:
    """A manager takes any codec, and uses it in both directions (lineage 83)."""
    store = OneRecord()
    manager = SessionManager(store, JsonCodec(), CookieWriter("id"), clock=lambda: 1.5e9)
    session = manager.open(None)
    session["a"] = [1]
    manager.close(session)
    assert store.record.payload == b'{"a": [1]}'
    assert dict(manager.open("id=token")) == {"a": [1]}
    with pytest.raises(TypeError, match="bytes"):
        session["b"] = b"bytes"


# -- laziness of the decoder ----------------------------------------------------------


class CountingCodec(MsgpackCodec):
    """The codec, with a count of what it decoded and encoded."""

    decoded = encoded = 0

    def decode(self, payload: bytes) -> dict[str, Any]:
        self.decoded += 1
        return super().decode(payload)

    def encode(self, data: Mapping[str, Any]) -> bytes:
        self.encoded += 1
        return super().encode(data)


def test_nothing_is_decoded_unread(site: Site) -> None:
    """A session is decoded once when it is read, and never when it is not."""
    browser = site.browser(a=1)
    codec = CountingCodec()
    site.manager.codec = codec
    browser.visit(lambda session: session.accessed)
    assert codec.decoded == 0
    browser.visit(_thrice)
    assert codec.decoded == 1


def test_nothing_is_encoded_that_could_not_change(site: Site) -> None:
    """A request that saw only values that cannot change need not encode them to find that out."""
    browser = site.browser(a=1, b="text", c=[1])
    codec = CountingCodec()
    site.manager.codec = codec
    browser.visit(lambda session: (session["a"], session.get("b"), "c" in session, len(session)))
    assert codec.encoded == 0
    browser.visit(lambda session: session["c"])
    assert codec.encoded > 0
