"""The session engine for Django: what Django documents for sessions, and what ours adds."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from adapters.django_site import AGE, COOKIE, SECRET, STORES, Browser, Site, running
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core import signing
from django.core.management import CommandError, call_command
from django.http import HttpRequest
from django.test import RequestFactory, override_settings
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from tieredsession import SessionTooLarge, StoreUnavailable
from tieredsession.adapters.django import SessionStore, get_manager, purge_view, use_manager
from tieredsession.errors import UnstorableError
from tieredsession.events import SessionMerged
from tieredsession.keyring import Keyring
from tieredsession.merge import counter
from tieredsession.options import StoreOptions
from tieredsession.stores import MemorySessionStore
from tieredsession.testing import FakeClock

CORRUPTED = ("django.security.SuspiciousSession", logging.WARNING, "Session data corrupted")

MakeSite = Callable[..., Site]

BIG = Random(1).randbytes(5000)
"""More than a cookie holds, however it is written."""

server_stores = pytest.mark.parametrize("where", ["memory", "sqlite", "tiered"], indirect=True)
cookie_store = pytest.mark.parametrize("where", ["cookie"], indirect=True)
any_store = pytest.mark.parametrize("where", ["memory"], indirect=True)
one_of_each = pytest.mark.parametrize("where", ["cookie", "memory"], indirect=True)


@pytest.fixture(params=list(STORES))
def where(request: pytest.FixtureRequest) -> str:
    """The store that the test runs on."""
    return str(request.param)


@pytest.fixture
def make_site(where: str, tmp_path: Path) -> Iterator[MakeSite]:
    """Makes a site over the test's store; keywords are settings."""
    with ExitStack() as stack:

        def make(**changes: Any) -> Site:
            changes = {**STORES[where], **changes}
            if "SESSION_STORE_URL" in changes:
                url = changes["SESSION_STORE_URL"]
                changes["SESSION_STORE_URL"] = url.format(folder=tmp_path)
            return stack.enter_context(running(**changes))

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site with the settings that one has without choosing any."""
    return make_site()


def count(request: HttpRequest) -> int:
    """Count the visit."""
    number: int = request.session.get("count", 0) + 1
    request.session["count"] = number
    return number


def look(request: HttpRequest) -> Any:
    """Read one value."""
    return request.session.get("a")


def put(**data: Any) -> Callable[[HttpRequest], None]:
    """A view that adds *data*."""
    return lambda request: request.session.update(data)


def expire(expiry: Any) -> Callable[[HttpRequest], None]:
    """A view that sets the session's own expiry."""
    return lambda request: request.session.set_expiry(expiry)


def cycle(request: HttpRequest) -> None:
    """Go on under a new id."""
    request.session.cycle_key()


def flush(request: HttpRequest) -> None:
    """Log out."""
    request.session.flush()


def key(browser: Browser) -> SessionStore:
    """The engine's session under the cookie of *browser*, unread."""
    return SessionStore(browser.cookie)


# -- a request ------------------------------------------------------------------------


def test_visits_are_counted(site: Site) -> None:
    """What a view puts into the session is there at the next visit, and nobody else's."""
    browser = site.browser()
    assert [browser.visit(count).result for _ in range(3)] == [1, 2, 3]
    assert site.browser().visit(count).result == 1


def test_an_untouched_session_costs_nothing(site: Site) -> None:
    """A request that leaves its session alone makes no call, and its answer has no header."""
    browser = site.browser(a=1)
    response = browser.visit(lambda request: None)
    assert site.calls == []
    assert not response.cookies
    assert "Vary" not in response
    assert not site.browser().visit(look).cookies


def test_the_cookie_is_written_by_djangos_settings(make_site: MakeSite) -> None:
    """Name, age, path, domain and flags of the cookie are as Django's settings say."""
    site = make_site(
        SESSION_COOKIE_NAME="sid",
        SESSION_COOKIE_AGE=3600,
        SESSION_COOKIE_DOMAIN=".example.org",
        SESSION_COOKIE_PATH="/app",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Strict",
    )
    cookie = site.browser().put(a=1).cookies["sid"]
    assert (cookie["max-age"], cookie["domain"], cookie["path"]) == (3600, ".example.org", "/app")
    assert (cookie["secure"], cookie["httponly"], cookie["samesite"]) == (True, True, "Strict")


def test_a_cookie_that_ends_with_the_browser(make_site: MakeSite) -> None:
    """``SESSION_EXPIRE_AT_BROWSER_CLOSE`` and ``set_expiry(0)`` leave out the cookie's age."""
    assert make_site().browser().put(a=1).cookies[COOKIE]["max-age"] == AGE
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=True)
    assert site.browser().put(a=1).cookies[COOKIE]["max-age"] == ""
    browser = make_site().browser(a=1)
    response = browser.visit(expire(0))
    assert response.cookies[COOKIE]["max-age"] == ""


@pytest.mark.parametrize("cookie", ["x" * 32, "malformed", "1", "a; sessionid=b", "é" * 20])
def test_a_cookie_that_stands_for_nothing(site: Site, cookie: str) -> None:
    """A cookie that is no session's is no session, and the browser is told to forget it."""
    browser = Browser(cookie)
    response = browser.visit(look)
    assert response.cookies[COOKIE]["max-age"] == 0
    assert response.result is None
    assert browser.cookie == ""


def test_an_error_saves_nothing(site: Site) -> None:
    """An answer of 5xx saves nothing and sets no cookie."""
    for browser in (site.browser(), site.browser(a=1)):
        before = browser.data()
        assert not browser.visit(put(a=2), status=500).cookies
        assert browser.data() == before


def test_test_cookies(site: Site) -> None:
    """The test cookie works once the browser has sent it back, until it is deleted."""
    browser = site.browser()
    browser.visit(lambda request: request.session.set_test_cookie())
    assert browser.visit(lambda request: request.session.test_cookie_worked()).result is True
    browser.visit(lambda request: request.session.delete_test_cookie())
    assert browser.visit(lambda request: request.session.test_cookie_worked()).result is False


# -- changes --------------------------------------------------------------------------


def test_a_change_inside_a_value_is_saved(site: Site) -> None:
    """A change inside a nested value is found and saved, and nobody sets a flag."""
    browser = site.browser(cart={"items": [1]})
    browser.visit(lambda request: request.session["cart"]["items"].append(2))
    assert browser.data() == {"cart": {"items": [1, 2]}}


def test_a_change_that_was_saved_by_hand(site: Site) -> None:
    """A session that was saved in the middle of a request has been modified all the same."""
    browser = site.browser(nested=[])
    response = browser.visit(
        lambda request: request.session["nested"].append(1),
        lambda request: request.session.save(),
    )
    assert response.cookies[COOKIE]["max-age"] == AGE
    assert browser.data() == {"nested": [1]}


def test_looking_is_no_change(site: Site) -> None:
    """A session that was read has not been modified, and nothing is saved."""
    browser = site.browser(cart={"items": [1]})
    response = browser.visit(lambda request: request.session["cart"]["items"][0])
    assert not response.cookies
    assert response["Vary"] == "Cookie"
    assert site.calls == ["load"]
    session = key(browser)
    assert (session.modified, session.accessed) == (False, False)
    session.get("cart")
    assert (session.modified, session.accessed) == (False, True)


def test_what_is_said_to_be_unmodified_is_not_saved(site: Site) -> None:
    """``modified = False`` drops the changes so far, and later ones are found again."""
    browser = site.browser(a=1, nested=[])

    def changed(request: HttpRequest) -> None:
        request.session["a"] = 2
        request.session.modified = False
        assert request.session.modified is False

    def changed_again(request: HttpRequest) -> None:
        changed(request)
        request.session["nested"].append(1)
        assert request.session.modified is True

    browser.visit(changed)
    assert browser.data() == {"a": 1, "nested": []}
    browser.visit(changed_again)
    assert browser.data() == {"a": 2, "nested": [1]}


def test_a_missing_key_that_is_popped(site: Site) -> None:
    """``pop`` of a key that is not there is no change, and hides none."""
    browser = site.browser(nested=[])
    assert not browser.visit(lambda request: request.session.pop("b", None)).cookies
    browser.visit(
        lambda request: request.session["nested"].append(1),
        lambda request: request.session.pop("b", None),
    )
    assert browser.data() == {"nested": [1]}


VALUES = {
    "tuple": (1, (2, 3)),
    "date": datetime(2026, 1, 2, tzinfo=timezone.utc),
    "decimal": Decimal("1.10"),
    "set": {1, 2},
    "numbers as keys": {1: "one", (2, 3): "two"},
    "bytes": b"\x00",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@one_of_each
def test_values_keep_their_type(site: Site, value: Any) -> None:
    """A value comes back equal and of the same type, where JSON would change or refuse it."""
    browser = site.browser(a=value)
    assert browser.data() == {"a": value}
    assert type(browser.data()["a"]) is type(value)


SETTERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "item": lambda session, name, value: session.__setitem__(name, value),
    "update": lambda session, name, value: session.update({name: value}),
    "setdefault": lambda session, name, value: session.setdefault(name, value),
    "aset": lambda session, name, value: asyncio.run(session.aset(name, value)),
    "aupdate": lambda session, name, value: asyncio.run(session.aupdate({name: value})),
    "asetdefault": lambda session, name, value: asyncio.run(session.asetdefault(name, value)),
}


@pytest.mark.parametrize("setter", SETTERS.values(), ids=SETTERS)
@any_store
def test_what_cannot_be_kept_is_refused_at_once(site: Site, setter: Any) -> None:
    """A value that would not come back is refused where it is assigned."""
    for value in (object(), gettext_lazy("text")):
        session = SessionStore()
        with pytest.raises(UnstorableError, match="'bad'"):
            setter(session, "bad", value)
        assert list(session.keys()) == []
    setter(SessionStore(), mark_safe("good"), mark_safe("<b>"))
    with pytest.raises(TypeError, match="a session key is a str, and 1 is a int"):
        setter(SessionStore(), 1, "one")


@any_store
def test_a_key_that_came_in_by_the_back_door(site: Site) -> None:
    """A key that is no string is refused by a save at the latest, and costs no data."""
    browser = site.browser(a=1)
    session = key(browser)
    session._session[1] = "one"
    with pytest.raises(TypeError, match="1 is a int"):
        session.save()
    assert browser.data() == {"a": 1}


# -- moving in ------------------------------------------------------------------------


class Signer(signing.TimestampSigner):  # type: ignore[misc]  # Django has no types here
    """Django's own, at the time of the tests."""

    def timestamp(self) -> str:
        return str(signing.b62_encode(int(FakeClock().now)))


@one_of_each
def test_a_session_of_django_s_signed_cookies(make_site: MakeSite) -> None:
    """A session in a cookie of Django's own goes on, and becomes ours when it changes."""
    make_site(SESSION_IMPORT_FROM={"kind": "django"})
    salt = "django.contrib.sessions.backends.signed_cookies"
    theirs = Signer(key=SECRET, salt=salt, fallback_keys=[])
    old = theirs.sign_object({"a": 1}, serializer=signing.JSONSerializer)
    browser = Browser(old)
    assert browser.data() == {"a": 1}
    assert browser.cookie == old
    browser.put(b=2)
    assert browser.cookie != old
    assert browser.data() == {"a": 1, "b": 2}
    browser.visit(flush)
    assert browser.data() == {}


# -- the engine's methods -------------------------------------------------------------


def test_a_session_that_was_emptied(site: Site) -> None:
    """A session that was emptied lives on without data, and a look at it is no change."""
    browser = site.browser(a=1)
    response = browser.visit(lambda request: request.session.pop("a"))
    assert response.cookies[COOKIE].value
    assert not browser.visit(look).cookies
    assert browser.data() == {}
    assert key(browser).exists(browser.cookie)


def test_cleared_without_a_look(site: Site) -> None:
    """``clear`` empties a session that was not read, and what follows is all that it holds."""
    browser = site.browser(a=1)
    browser.visit(lambda request: request.session.clear(), put(b=2))
    assert browser.data() == {"b": 2}


@server_stores
def test_a_new_session_by_hand(site: Site) -> None:
    """``create`` begins an empty session at once, under an id of its own."""
    session = SessionStore()
    session.create()
    assert len(session.session_key) == 32
    assert session.modified
    assert site.rows == 1
    assert SessionStore().exists(session.session_key)
    session.create()
    assert site.rows == 2


@server_stores
def test_a_session_that_must_be_new(site: Site) -> None:
    """``save(must_create=True)`` never takes a key that is in use, nor one that was chosen."""
    browser = site.browser(a=1)
    with pytest.raises(CreateError):
        SessionStore(browser.cookie).save(must_create=True)
    session = SessionStore("chosen by somebody else")
    session.save(must_create=True)
    assert session.session_key != "chosen by somebody else"
    assert not session.exists("chosen by somebody else")
    assert browser.data() == {"a": 1}


def test_the_key_of_nothing(site: Site) -> None:
    """A key that stands for nothing exists not, loads nothing, and cannot be saved."""
    for unknown in ("unknown, unknown", "x" * 32):
        session = SessionStore(unknown)
        assert not session.exists(unknown)
        with pytest.raises(UpdateError):
            session.save()
        assert session.load() == {}
        assert session.session_key is None
        session.delete(unknown)
    if site.real_store.revocable:
        assert site.rows == 0


def test_no_key_at_all(site: Site) -> None:
    """Without a key there is nothing to look for, and nobody is asked or told."""
    session = SessionStore()
    assert not session.exists(None)
    assert session.load() == {}
    session.delete()
    assert (site.calls, site.event_names) == ([], [])


def test_a_key_is_cycled(site: Site) -> None:
    """``cycle_key`` keeps the data, also when it was not read, and of a new session as well."""
    browser = site.browser(a=1)
    browser.visit(cycle)
    assert browser.data() == {"a": 1}
    fresh = site.browser()
    fresh.visit(cycle, put(a=2))
    assert fresh.data() == {"a": 2}


@server_stores
def test_the_old_key_is_dead_first(site: Site) -> None:
    """``cycle_key`` ends the old id in every tier before there is a new one."""
    browser = site.browser(a=1)
    thief = browser.copy()
    browser.visit(cycle, put(b=2))
    assert browser.cookie != thief.cookie
    assert site.calls == ["load", "delete", "create", "update"]
    assert thief.data() == {}
    assert browser.data() == {"a": 1, "b": 2}


def test_flush(site: Site) -> None:
    """``flush`` ends the session: the browser forgets it, and what follows is another one."""
    browser = site.browser(a=1)
    old = browser.copy()
    response = browser.visit(look, flush)
    assert response.cookies[COOKIE]["max-age"] == 0
    assert browser.data() == {}
    if site.real_store.revocable:
        assert old.data() == {}
        assert "SessionEnded" in site.event_names
    browser = site.browser(a=1)
    browser.visit(flush, put(b=2))
    assert browser.data() == {"b": 2}


@server_stores
def test_a_session_is_deleted_by_its_key(site: Site) -> None:
    """``delete`` ends the session under any key, and its own stays dead."""
    own, other = site.browser(a=1), site.browser(b=2)
    session = key(own)
    session.delete(other.cookie)
    assert other.data() == {}
    assert session["a"] == 1
    session.delete()
    with pytest.raises(UpdateError):
        session.save()
    assert own.data() == {}


@pytest.mark.parametrize("where", ["cookie", "hybrid"], indirect=True)
def test_a_cookie_is_deleted(site: Site) -> None:
    """Where the data is the cookie, ``delete`` has the browser forget it."""
    browser = site.browser(a=1)
    response = browser.visit(look, lambda request: request.session.delete())
    assert response.cookies[COOKIE]["max-age"] == 0
    assert browser.data() == {}


@server_stores
def test_load_is_a_look_at_the_store(site: Site) -> None:
    """``load`` answers what the store holds now, and what this request changed is still saved."""
    browser = site.browser(a=1)
    session = key(browser)
    session["b"] = 2
    browser.put(c=3)
    assert session.load() == {"a": 1, "c": 3}
    session.save()
    assert browser.data() == {"a": 1, "b": 2, "c": 3}


@server_stores
def test_clearsessions(site: Site) -> None:
    """``manage.py clearsessions`` deletes all that has expired, however much, and nothing else."""
    for number in range(1001):
        session = SessionStore()
        session["number"] = number
        session.set_expiry(60)
        session.save()
    browser = site.browser(a=1)
    site.clock.advance(660)
    call_command("clearsessions")
    assert site.rows == 1002
    site.clock.advance(1)
    call_command("clearsessions")
    assert site.rows == 1
    assert browser.data() == {"a": 1}


@pytest.mark.parametrize("where", ["hybrid"], indirect=True)
def test_clearsessions_behind_a_cookie(site: Site) -> None:
    """The server half of a hybrid store is swept."""
    browser = site.browser(big=BIG)
    assert site.rows == 1
    site.clock.advance(AGE + 601)
    call_command("clearsessions")
    assert site.rows == 0
    assert browser.data() == {}


@cookie_store
def test_clearsessions_of_cookies(site: Site) -> None:
    """Where nothing is kept, there is nothing to clear."""
    call_command("clearsessions")
    asyncio.run(SessionStore.aclear_expired())


@any_store
def test_clearsessions_of_what_cannot_be_swept(site: Site) -> None:
    """A store on the server that cannot be swept is named, as Django wants it."""

    class Unswept:
        revocable = True

    get_manager().store = Unswept()  # type: ignore[assignment]  # all that is looked at
    with pytest.raises(CommandError, match="doesn't support clearing expired sessions"):
        call_command("clearsessions")


# -- two requests at once -------------------------------------------------------------


@server_stores
def test_two_requests_lose_nothing(make_site: MakeSite) -> None:
    """What two requests change at once is merged, key by key, and by the site's rules."""
    site = make_site(SESSION_MERGE_RULES={"count": counter})
    slow = site.browser(count=1, cart={"a": 1})
    quick = slow.copy()

    def meanwhile(request: HttpRequest) -> None:
        quick.visit(count, lambda request: request.session["cart"].update(b=2))

    slow.visit(look, meanwhile, count, lambda request: request.session["cart"].update(c=3))
    assert slow.data() == {"count": 3, "cart": {"a": 1, "b": 2, "c": 3}}
    assert any(isinstance(event, SessionMerged) for event in site.events)


@pytest.mark.parametrize("late", [put(b=2), count, cycle], ids=["put", "count", "cycle"])
@server_stores
def test_dead_stays_dead(site: Site, late: Any) -> None:
    """A request that was overtaken by a logout is answered 400, and revives nothing."""
    slow = site.browser(a=1)
    quick, thief = slow.copy(), slow.copy()
    response = slow.visit(look, lambda request: quick.visit(flush), late)
    assert response.status_code == 400
    assert not response.cookies
    assert "SessionGone" in site.event_names
    assert site.rows == 0
    assert thief.data() == {}


@server_stores
def test_a_lost_save_stays_lost(site: Site) -> None:
    """A session that was ended is not saved by a second try, under any id."""
    browser = site.browser(a=1)
    session = key(browser)
    session["b"] = 2
    browser.visit(flush)
    for _ in range(2):
        with pytest.raises(UpdateError):
            session.save()
    assert site.rows == 0


@server_stores
def test_a_look_at_a_dead_session_revives_nothing(site: Site) -> None:
    """A session that ``load`` finds ended goes on under no other id, whatever was read before."""
    slow = site.browser(a=1)
    quick = slow.copy()
    response = slow.visit(
        look, lambda request: quick.visit(flush), lambda request: request.session.load(), put(b=2)
    )
    assert response.status_code == 400
    assert site.rows == 0


@server_stores
def test_of_two_cycles_one_has_a_successor(site: Site) -> None:
    """Of two requests that cycle one key, one goes on, and the other is interrupted."""
    slow = site.browser(a=1)
    quick = slow.copy()
    session = key(slow)
    session.get("a")
    quick.visit(cycle)
    with pytest.raises(SessionInterrupted):
        session.cycle_key()
    assert quick.data() == {"a": 1}
    assert site.rows == 1


@server_stores
def test_a_logout_after_a_change(site: Site) -> None:
    """A logout ends a session that another request has changed since it was read."""
    slow = site.browser(a=1)
    quick = slow.copy()
    slow.visit(look, lambda request: quick.put(b=2), flush)
    assert quick.data() == {}
    assert site.rows == 0


# -- expiry ---------------------------------------------------------------------------


def test_an_expiry_is_counted_from_the_last_change(site: Site) -> None:
    """Reading a session does not lengthen its life, and changing it does, to the second."""
    browser = site.browser(a=1)
    site.clock.advance(AGE - 1)
    assert browser.data() == {"a": 1}
    browser.put(a=1)
    site.clock.advance(AGE - 1)
    assert browser.data() == {"a": 1}
    site.clock.advance(1)
    assert browser.data() == {}


def test_saved_on_every_request(make_site: MakeSite) -> None:
    """With ``SESSION_SAVE_EVERY_REQUEST``, every request lengthens the life of its session."""
    site = make_site(SESSION_SAVE_EVERY_REQUEST=True)
    browser = site.browser(a=1)
    for _ in range(3):
        site.clock.advance(AGE - 1)
        assert browser.visit(lambda request: None).cookies[COOKIE]["max-age"] == AGE
    assert browser.data() == {"a": 1}


@pytest.mark.parametrize(
    "of",
    [lambda now: 3600, lambda now: timedelta(hours=1), lambda now: now + timedelta(hours=1)],
    ids=["seconds", "timedelta", "datetime"],
)
def test_an_expiry_of_its_own(site: Site, of: Callable[[datetime], Any]) -> None:
    """``set_expiry`` holds for the cookie and for the server, whoever keeps the cookie longer."""
    now = datetime.now(timezone.utc)  # Django asks nobody else for the time
    site.clock.now = now.timestamp()
    browser = site.browser(a=1)
    response = browser.visit(expire(of(now)))
    assert 3500 < response.cookies[COOKIE]["max-age"] <= 3600
    site.clock.advance(3500)
    assert browser.data()["a"] == 1
    site.clock.advance(200)
    assert key(browser).get("a") is None


def test_the_global_expiry_again(site: Site) -> None:
    """``set_expiry(None)`` goes back to the site's own age, and so does 0 on the server."""
    browser = site.browser(a=1)
    for expiry in (0, None):
        browser.visit(expire(60))
        browser.visit(expire(expiry))
        site.clock.advance(AGE - 1)
        assert browser.data()["a"] == 1


@pytest.mark.parametrize(
    "expiry", [-1, datetime(1960, 1, 1, tzinfo=timezone.utc)], ids=["ago", "long ago"]
)
def test_an_expiry_in_the_past(site: Site, expiry: Any) -> None:
    """With an expiry in the past a session is over at once, for the server as for the browser."""
    browser = site.browser(a=1)
    copy = browser.copy()
    response = browser.visit(expire(expiry))
    assert response.cookies[COOKIE]["max-age"] < 0
    assert Browser(response.cookies[COOKIE].value).data() == {}
    if site.real_store.revocable:
        assert copy.data() == {}


def test_an_expiry_beyond_all_time(site: Site) -> None:
    """An expiry in the far future is cut to ten years, and breaks nothing."""
    browser = site.browser(a=1)
    session = key(browser)
    session.set_expiry(datetime(9999, 12, 31, tzinfo=timezone.utc))
    session.save()
    site.clock.advance(9 * 365 * 24 * 3600)
    assert SessionStore(session.session_key)["a"] == 1
    site.clock.advance(2 * 365 * 24 * 3600)
    assert "a" not in SessionStore(session.session_key)


def test_an_expiry_of_a_cycled_key(site: Site) -> None:
    """A cycled key counts as a change: its expiry is counted from then, in one write."""
    browser = site.browser(a=1)
    site.clock.advance(AGE - 1)
    site.chaos.calls.clear()
    browser.visit(cycle)
    create = "create_successor" if hasattr(site.real_store, "create_successor") else "create"
    assert site.calls == ["load", "delete", create]
    site.clock.advance(AGE - 1)
    assert browser.data() == {"a": 1}


@server_stores
def test_an_expiry_that_another_request_set(site: Site) -> None:
    """A save that is merged with another one ends when the merged session says."""
    slow = site.browser(a=1)
    quick = slow.copy()
    slow.visit(
        look,
        lambda request: quick.visit(expire(60)),
        put(b=2),
    )
    assert slow.data() == {"a": 1, "b": 2, "_session_expiry": 60}
    site.clock.advance(61)
    assert slow.data() == {}


def test_an_age_of_a_subclass(site: Site) -> None:
    """``get_session_cookie_age`` of a subclass is what counts, as in Django."""

    class Short(SessionStore):
        def get_session_cookie_age(self) -> int:
            return 60

    session = Short()
    session["a"] = 1
    session.save()
    site.clock.advance(59)
    assert Short(session.session_key)["a"] == 1
    site.clock.advance(1)
    assert "a" not in Short(session.session_key)


def test_an_absolute_age_counts_from_the_login(make_site: MakeSite) -> None:
    """``SESSION_ABSOLUTE_AGE`` ends a session in use, and begins anew with a login alone."""
    site = make_site(SESSION_ABSOLUTE_AGE=2 * AGE)
    browser = site.browser(a=1)
    site.clock.advance(AGE - 1)
    browser.visit(cycle, put(_auth_user_id="7"))
    for number in range(2):
        site.clock.advance(AGE - 1)
        browser.visit(put(b=number), cycle)
        assert browser.data()["b"] == number
    site.clock.advance(3)
    assert browser.data() == {}


# -- when something fails -------------------------------------------------------------


@server_stores
def test_a_store_that_does_not_answer_a_read(site: Site) -> None:
    """A session that cannot be read is an error, and never taken for an empty one."""
    browser = site.browser(a=1)
    for views in ((look,), (count,), (lambda request: request.session.clear(), put(b=2))):
        site.chaos.fail("load")
        with pytest.raises(StoreUnavailable):
            browser.visit(*views)
        assert browser.data() == {"a": 1}


@pytest.mark.parametrize("view", [put(a=2), cycle, flush], ids=["change", "cycle", "flush"])
@server_stores
def test_a_store_that_does_not_answer_a_write(site: Site, view: Any) -> None:
    """What could not be saved is an error of the request, and the old session is still there."""
    browser = site.browser(a=1)
    with pytest.raises(StoreUnavailable):
        browser.visit(look, lambda request: site.chaos.down(), view)
    site.chaos.up()
    assert browser.data() == {"a": 1}


@cookie_store
def test_a_cookie_too_large(site: Site) -> None:
    """A cookie that browsers would drop is an error, and the old one stays valid."""
    browser = site.browser(a=1)
    with pytest.raises(SessionTooLarge):
        browser.put(big=BIG)
    assert browser.data() == {"a": 1}


def test_the_security_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A forged session is told to Django's security log, and what is merely old is not."""
    browser = site.browser(a=1)
    old = browser.copy()
    browser.visit(flush)
    site.clock.advance(AGE + 1)
    old.data()
    Browser("malformed").data()
    assert caplog.record_tuples == []
    cookie = site.browser(a=1).cookie
    Browser(cookie[:-2] + ("AA" if cookie[-2:] != "AA" else "BA")).data()
    assert caplog.record_tuples == [CORRUPTED]


def flipped(sealed: bytes) -> bytes:
    """*sealed* with its last bit changed."""
    return sealed[:-1] + bytes((sealed[-1] ^ 1,))


@pytest.mark.parametrize("where", ["sqlite"], indirect=True)
def test_a_record_that_somebody_changed(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A record that was changed at rest is no session, and the security log has its line."""
    browser = site.browser(a=1)
    with closing(sqlite3.connect(site.database)) as connection, connection:
        ((data,),) = connection.execute("SELECT data FROM sessions")
        connection.execute("UPDATE sessions SET data = ?", (flipped(data),))
    assert browser.data() == {}
    assert caplog.record_tuples == [CORRUPTED]


@pytest.mark.parametrize("where", ["tiered"], indirect=True)
def test_a_cached_record_that_somebody_changed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """What was changed in the cache is not believed, and the security log has its line."""
    browser = site.browser(a=1)
    cache, name = (
        site.real_store.cache,
        StoreOptions(Keyring(SECRET), COOKIE).ids.key(browser.cookie),
    )
    cache.set(name, flipped(cache.get(name).value), 600)
    assert browser.data() == {"a": 1}
    assert caplog.record_tuples == [CORRUPTED]


# -- async ----------------------------------------------------------------------------


def test_the_async_twins(site: Site) -> None:
    """Every method has its twin, and they do the same."""

    async def life() -> None:
        session = SessionStore()
        await session.aset("a", 1)
        await session.aupdate({"b": [2]})
        await session.aset_test_cookie()
        await session.asave()
        first = SessionStore(session.session_key)
        assert await first.aexists(session.session_key)
        assert await first.atest_cookie_worked()
        await first.adelete_test_cookie()
        assert await first.aget("b") == [2]
        await first.aset_expiry(60)
        assert await first.aget_expiry_age() == 60
        await first.acycle_key()
        await first.aset("c", 3)
        await first.asave()
        second = SessionStore(first.session_key)
        kept = {"a": 1, "b": [2], "c": 3}
        assert {name: await second.aget(name) for name in kept} == kept
        assert await second.apop("a") == 1
        await second.aflush()
        assert second.session_key is None
        if site.real_store.revocable:
            assert not await second.aexists(first.session_key)
            assert not await second.aexists(session.session_key)
        await second.acreate()
        assert second.session_key
        await second.adelete()
        await SessionStore.aclear_expired()

    asyncio.run(life())


@server_stores
def test_the_event_loop_is_not_blocked(site: Site) -> None:
    """Whatever may wait for a tier does so in another thread than the event loop's."""
    browser = site.browser(a=1)
    threads: dict[str, int] = {}

    def note(name: str) -> None:
        threads[name] = threading.get_ident()

    async def life() -> None:
        for name in ("load", "update", "delete", "create"):
            site.chaos.before(name, partial(note, name))
        session = key(browser)
        await session.aset("b", 2)
        await session.asave()
        await session.acycle_key()

    asyncio.run(life())
    assert sorted(threads) == ["create", "delete", "load", "update"]
    assert threading.get_ident() not in threads.values()


@one_of_each
def test_tasks_that_touch_at_once(site: Site) -> None:
    """Of several tasks of a request that are the first to touch a session, none loses a change."""
    browser = site.browser(a=1)

    async def life() -> None:
        session = key(browser)
        await asyncio.gather(*(session.aset(name, 2) for name in "bcd"))
        await session.asave()
        browser.cookie = session.session_key

    asyncio.run(life())
    assert browser.data() == {"a": 1, "b": 2, "c": 2, "d": 2}


@server_stores
def test_an_async_cycle_kills_first(site: Site) -> None:
    """``acycle_key`` ends the old id before there is a new one, as its twin does."""
    browser = site.browser(a=1)
    session = key(browser)
    asyncio.run(session.acycle_key())
    assert site.calls == ["load", "delete", "create"]
    assert browser.data() == {}
    assert SessionStore(session.session_key)["a"] == 1


# -- the manager ----------------------------------------------------------------------


@any_store
def test_another_manager(site: Site) -> None:
    """``use_manager`` puts another manager in the place of the one that the settings make."""
    ours = get_manager()
    assert get_manager() is ours
    use_manager(None)
    made = get_manager()
    assert made is not ours
    assert made is get_manager()
    assert isinstance(made.store, MemorySessionStore)
    assert made.cookie.name == COOKIE


class Meeting(MemorySessionStore):
    """A store that is not made before another one is, or it is clear that none will be."""

    met = Barrier(2)

    @classmethod
    def from_options(cls, options: StoreOptions) -> Meeting:
        with suppress(BrokenBarrierError):
            cls.met.wait(0.2)
        return cls(options.ids, options.observer)


@any_store
def test_one_manager_for_all_threads(make_site: MakeSite) -> None:
    """Threads that ask for the manager at once are given the same one."""
    make_site()
    with override_settings(SESSION_STORE=f"{__name__}.Meeting"), ThreadPoolExecutor(2) as pool:
        use_manager(None)
        one, other = pool.map(lambda _: get_manager(), range(2))
    assert isinstance(one.store, Meeting)
    assert one is other


@server_stores
def test_who_is_told_of_a_purge(make_site: MakeSite) -> None:
    """The manager's observers hear of a purge, by command or page, and of who may not call it."""
    token = "only for whoever calls the purge in tests"
    site = make_site(SESSION_PURGE_TOKEN=token)
    request = RequestFactory().get("/", headers={"Authorization": f"Bearer {token}"})
    call_command("clearsessions")
    assert purge_view(request).status_code == 200
    assert purge_view(RequestFactory().get("/")).status_code == 403
    names = site.event_names
    assert (names.count("Purged"), names[-1]) == (2, "PurgeRefused")
