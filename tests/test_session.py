"""The session as an application sees it: a dict, its life, its messages, its tokens."""

from __future__ import annotations

import datetime as dt
import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tieredsession import Session, UnstorableError
from tieredsession.session import MAX_LIFETIME

if TYPE_CHECKING:
    from conftest import Browser, MakeSite, Site

    from tieredsession.testing import FakeClock

# -- laziness and flags ---------------------------------------------------------------


def test_a_fresh_session_is_inert(site: Site) -> None:
    """A session that nobody used has read nothing, and to look at it is harmless (lineage 3)."""
    session = site.manager.open(site.header("whatever"))
    assert not session.accessed
    assert not session.modified
    assert not session.headers_sent
    assert repr(session) == "<Session, not read yet>"
    assert not session.accessed
    session.revert()
    session.save()
    assert not session.accessed
    assert site.chaos.calls == []


def test_flags_of_a_new_session(site: Site) -> None:
    """A new session is new and unmodified until the first assignment (lineage 3, 5)."""
    session = site.manager.open(None)
    assert session.new
    assert session.accessed
    assert not session.modified
    assert session.created is None
    assert session.expires is None
    assert session.principal is None
    session["key"] = "value"
    assert session.modified
    assert session.new
    assert site.calls == []


def test_flags_of_a_saved_session(site: Site) -> None:
    """A saved session comes back equal, not new, unmodified, and another object (lineage 6)."""
    browser = site.browser(items=[1, 2])
    first, second = site.open(browser), site.open(browser)
    assert first == second == {"items": [1, 2]}
    assert first["items"] is not second["items"]
    assert not first.new
    assert not first.modified
    assert first.created == int(site.clock.now)
    assert first.expires == int(site.clock.now) + 14 * 24 * 3600


def test_a_session_is_saved_once_it_was_saved(site: Site) -> None:
    """After an explicit save a session is neither new nor modified."""
    session = site.manager.open(None)
    session["key"] = 1
    session.save()
    assert not session.new
    assert not session.modified
    assert session.created == session.expires - 14 * 24 * 3600  # type: ignore[operator]  # no None after a save


def test_sessions_have_no_public_memory_of_their_data(site: Site) -> None:
    """A repr tells how much a session holds and nothing of what (security 88)."""
    session = site.manager.open(None)
    session["card"] = "4111"
    assert repr(session) == "<Session, new, 1 keys>"
    session.save()
    assert repr(session) == "<Session, saved, 1 keys>"


def test_a_session_is_not_pickled(site: Site) -> None:
    """Pickling a session is refused and names the way out (security 88)."""
    with pytest.raises(TypeError, match=r"use copy\(\)"):
        pickle.dumps(site.manager.open(None))


def test_copy_is_detached(site: Site) -> None:
    """A copy is a plain dict, and changing it, at any depth, changes no session (R29)."""
    browser = site.browser(a=[1])

    def view(session: Session) -> object:
        copy = session.copy()
        copy["b"] = 2
        copy["a"].append(2)
        return type(copy), session.modified

    assert browser.visit(view).result == (dict, False)
    assert browser.data() == {"a": [1]}


# -- the dict -------------------------------------------------------------------------


def test_it_is_a_dict(site: Site) -> None:
    """A session answers like a dict to everything that one asks a dict (lineage 77)."""
    session = site.open(site.browser(a=1, b=2))
    assert session["a"] == 1
    assert session.get("a") == 1
    assert session.get("z") is None
    assert session.get("z", 9) == 9
    assert "a" in session
    assert "z" not in session
    assert len(session) == 2
    assert list(session) == ["a", "b"]
    assert list(session.items()) == [("a", 1), ("b", 2)]
    assert session.pop("a") == 1
    assert session.pop("a", 7) == 7
    assert session.setdefault("b", 5) == 2
    assert session.setdefault("c", 5) == 5
    del session["c"]
    for missing in (
        lambda: session["c"],
        lambda: session.pop("c"),
        lambda: session.__delitem__("c"),
    ):
        with pytest.raises(KeyError, match="c"):
            missing()
    session.update({"d": 4}, e=5)
    assert session == {"b": 2, "d": 4, "e": 5}
    assert session.popitem() == ("b", 2)
    session.clear()
    assert not session


def test_a_missing_key_does_not_modify(browser: Browser, site: Site) -> None:
    """Looking for, or popping, what is not there saves nothing and sets no cookie (lineage 2)."""
    visit = browser.visit(lambda session: (session.get("a"), session.pop("a", 1), "a" in session))
    assert visit.result == (None, 1, False)
    assert visit.set_cookies == []
    assert site.calls == []


VALUES: dict[str, Any] = {
    "json": {"a": [1, 2.5, None, True, "x", {"y": []}]},
    "bytes": b"\x00\xff",
    "text": "Žluťoučký kůň 🐎",
    "list": [1, [2, [3]]],
    "tuple": (1, ("a", None)),
    "set": {1, 2, 3},
    "frozenset": frozenset({"a", (1, 2)}),
    "datetime": dt.datetime(2030, 1, 2, 3, 4, 5, 6),
    "aware": dt.datetime(2030, 1, 2, tzinfo=dt.timezone.utc),
    "date": dt.date(1970, 1, 1),
    "time": dt.time(23, 59, 59, 999),
    "timedelta": dt.timedelta(days=-1, microseconds=1),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "complex": 1 - 2j,
    "huge": 2**200,
    "scalar keys": {1: "a", None: "b", 2.5: "c", (1, 2): "e"},
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_of_the_same_type(site: Site, name: str) -> None:
    """What is stored comes back equal and of the same type from every store (lineage 78)."""
    value = VALUES[name]
    found = site.browser(value=value).visit(lambda session: session["value"]).result
    assert found == value
    assert type(found) is type(value)


def test_keys_of_any_script(browser: Browser) -> None:
    """Keys and values of any script survive a round trip (lineage 63)."""
    browser.visit(lambda session: session.update({"ключ": "значение", "": "empty key"}))
    assert browser.data() == {"ключ": "значение", "": "empty key"}


@pytest.mark.one_of_each
@pytest.mark.parametrize("key", [1, None, b"bytes", ("a",)], ids=repr)
def test_keys_are_strings(site: Site, key: Any) -> None:
    """A key that is no string is refused, and the refusal names key and type."""
    session = site.manager.open(None)
    with pytest.raises(
        TypeError,
        match=f"{key!r} is a {type(key).__name__}".replace("(", r"\(").replace(")", r"\)"),
    ):
        session[key] = 1
    assert not session.accessed


class Opaque:
    """What no session can hold."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Opaque(), "session['cart'] is a {module}.Opaque"),
        ([{"deep": Opaque()}], "session['cart'][0]['deep'] is a {module}.Opaque"),
        (len, "session['cart'] is a builtin_function_or_method"),
        (type("Text", (str,), {})("x"), "store str(value)"),
        ("lone \udc80", "session['cart'] is a str"),
    ],
    ids=["object", "nested", "function", "subclass", "surrogate"],
)
def test_bad_values_are_refused_when_assigned(site: Site, value: Any, message: str) -> None:
    """What cannot be stored is refused at its assignment, by key and type (security 73)."""
    browser = site.browser(kept=1)
    session = site.open(browser)
    with pytest.raises(UnstorableError) as caught:
        session["cart"] = value
    assert message.format(module=__name__) in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert dict(session) == {"kept": 1}
    assert not session.modified


def test_a_bad_value_inside_a_good_one_stops_the_response(site: Site) -> None:
    """What went into a nested value unseen is refused at the save, which changes nothing."""
    browser = site.browser(items=[1])
    with pytest.raises(UnstorableError, match=r"session\['items'\]\[1\]"):
        browser.visit(lambda session: session["items"].append(Opaque()))
    assert browser.data() == {"items": [1]}


# -- what counts as a change ----------------------------------------------------------


def _again(session: Session) -> None:
    session["a"] = [1, {"b": 2}]


def _put_back(session: Session) -> None:
    session["a"] = session.pop("a")


def _changed_and_back(session: Session) -> None:
    session["a"].append(3)
    session["a"].pop()


def _popped_nothing(session: Session) -> None:
    session.pop("zzz", None)


def _set_and_unset(session: Session) -> None:
    session["new"] = 1
    del session["new"]


NO_CHANGE = [_again, _put_back, _changed_and_back, _popped_nothing, _set_and_unset, dict, repr]


@pytest.mark.one_of_each
@pytest.mark.parametrize("view", NO_CHANGE, ids=lambda view: view.__name__)
def test_no_change_writes_nothing(site: Site, view: Any) -> None:
    """What leaves the data as it was makes no store call and no cookie (lineage R12)."""
    browser = site.browser(a=[1, {"b": 2}], c=3)
    visit = browser.visit(lambda session: (view(session), session.modified))
    assert visit.result[1] is False
    assert visit.set_cookies == []
    assert "update" not in site.calls


CHANGES: dict[str, Any] = {
    "nested list": lambda session: session["a"].append(3),
    "deeper": lambda session: session["a"][1].update(b=9),
    "nested, by get": lambda session: session.get("a").append(3),
    "nested, by setdefault": lambda session: session.setdefault("a", []).append(3),
    "nested, by values": lambda session: next(iter(session.values())).append(3),
    "nested, by items": lambda session: dict(session.items())["a"].append(3),
    "same length": lambda session: session.update(c=4),
    "another key, same length": lambda session: session.update(d=session.pop("c")),
    "equal, of another type": lambda session: session.update(c=3.0),
    "true for one": lambda session: session.update(one=True),
    "deleted": lambda session: session.pop("c"),
    "added": lambda session: session.update(new=None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found(site: Site, name: str) -> None:
    """Any change, at any depth, is saved without a flag (lineage R13)."""
    browser = site.browser(a=[1, {"b": 2}], c=3, one=1)
    before = browser.data()
    visit = browser.visit(lambda session: (CHANGES[name](session), session.modified, dict(session)))
    assert visit.result[1] is True
    after = browser.data()
    assert repr(after) != repr(before)
    assert after == visit.result[2]
    assert site.calls.count("update") == 1


def test_modified_forces_a_save(site: Site) -> None:
    """Assigning True to ``modified`` saves what did not change."""
    browser = site.browser(a=1)
    browser.visit(lambda session: setattr(session, "modified", True))
    assert site.calls == ["load", "update"]
    assert site.events.names == ["SessionSaved"]


def test_modified_can_be_taken_back(site: Site) -> None:
    """Assigning False to ``modified`` takes back an earlier True."""
    browser = site.browser(a=1)

    def view(session: Session) -> None:
        session.modified = True
        session.modified = False

    browser.visit(view)
    assert site.calls == ["load"]


@pytest.mark.parametrize(
    "step",
    [
        lambda session: session.renew(),
        lambda session: session.destroy(),
        lambda session: session.clear(),
        lambda session: session.bind(None),
        lambda session: setattr(session, "lifetime", None),
        lambda session: (session.clear(), session.update(a=1)),
    ],
    ids=["renew", "destroy", "clear", "unbind", "lifetime", "clear and fill"],
)
def test_what_else_is_a_change(site: Site, step: Any) -> None:
    """A session is modified by whatever a save would write, with the same data or not."""
    browser = site.browser(a=1)
    browser.visit(lambda session: session.bind("ann"))
    session = site.open(browser)
    step(session)
    assert session.modified
    session.save()
    assert not session.modified


LOOKS: dict[str, Callable[[Session, Site], Any]] = {
    "get": lambda session, site: session.get("a"),
    "item": lambda session, site: session["a"],
    "in": lambda session, site: "a" in session,
    "iter": lambda session, site: list(session),
    "len": lambda session, site: len(session),
    "copy": lambda session, site: session.copy(),
    "new": lambda session, site: session.new,
    "created": lambda session, site: session.created,
    "expires": lambda session, site: session.expires,
    "principal": lambda session, site: session.principal,
    "sessions": lambda session, site: site.manager.sessions_of("ann", session),
    "end_all": lambda session, site: site.manager.end_all("ann", keep=session),
}


@pytest.mark.any_store
@pytest.mark.parametrize("name", LOOKS)
def test_a_look_changes_nothing(site: Site, name: str) -> None:
    """However one looks at a session, its changes are still there, and it is read once."""
    session = site.open(site.browser(a=1))
    session["b"] = 2
    LOOKS[name](session, site)
    assert dict(session) == {"a": 1, "b": 2}
    assert site.calls.count("load") == 1


# -- save, revert ---------------------------------------------------------------------


def test_save_without_a_change(site: Site) -> None:
    """A save with nothing to save has no effect, and a later change is saved (lineage 11)."""
    browser = site.browser(a=1)

    def view(session: Session) -> list[str]:
        _ = session["a"]
        session.save()
        calls = list(site.calls)
        session["b"] = 2
        return calls

    assert browser.visit(view).result == ["load"]
    assert browser.data() == {"a": 1, "b": 2}


def test_save_in_the_middle(site: Site) -> None:
    """What save() kept is in the store at once, and one cookie stands for all (security 26)."""
    browser = site.browser()

    def view(session: Session) -> None:
        session["a"] = 1
        session.save()
        session["b"] = 2
        session.save()
        session["c"] = 3

    visit = browser.visit(view)
    assert len(visit.set_cookies) == 1
    assert browser.data() == {"a": 1, "b": 2, "c": 3}


def test_three_requests_add_a_key_each(browser: Browser) -> None:
    """What three requests added one after the other is all there (lineage 12)."""
    for key in "abc":
        browser.put(**{key: key})
    assert browser.data() == {"a": "a", "b": "b", "c": "c"}


def test_a_counter(browser: Browser) -> None:
    """Five visits count 1, 2, 3, 4, 5 (lineage 8, 9)."""

    def view(session: Session) -> int:
        session["count"] = session.get("count", 0) + 1
        return int(session["count"])

    assert [browser.visit(view).result for _ in range(5)] == [1, 2, 3, 4, 5]


def test_two_visitors(site: Site) -> None:
    """Two visitors who write in turns see their own data and have ids of their own (lineage 10)."""
    one, two = site.browser(), site.browser()
    for number in range(3):
        one.put(mine=f"one {number}")
        two.put(mine=f"two {number}")
    assert one.data() == {"mine": "one 2"}
    assert two.data() == {"mine": "two 2"}
    assert one.cookie != two.cookie
    assert site.rows == (2 if site.store.revocable else 0)


def test_revert_forgets_the_changes(site: Site) -> None:
    """After revert() a session is as at the start of the request, and unsaved (lineage 48)."""
    browser = site.browser(a=[1])

    def view(session: Session) -> object:
        session["a"].append(2)
        session["b"] = 1
        session.revert()
        return dict(session), session.modified

    assert browser.visit(view).result == ({"a": [1]}, False)
    assert browser.data() == {"a": [1]}
    assert "update" not in site.calls


def test_revert_takes_back_ends_and_renewals(site: Site) -> None:
    """What revert() forgets includes destroy(), renew() and bind()."""
    browser = site.browser(a=1)
    cookie = browser.cookie

    def view(session: Session) -> None:
        session.bind("ann")
        session.renew()
        session.destroy()
        session.revert()

    assert browser.visit(view).set_cookies == []
    assert browser.cookie == cookie
    assert browser.data() == {"a": 1}


def test_revert_stops_at_the_last_save(site: Site) -> None:
    """What was saved in the middle stays, and so does its cookie."""
    browser = site.browser()

    def view(session: Session) -> None:
        session["a"] = 1
        session.save()
        session["b"] = 2
        session.revert()

    browser.visit(view)
    assert browser.data() == {"a": 1}


def test_revert_of_a_new_session(site: Site) -> None:
    """A new session that is reverted leaves nothing behind (lineage 69)."""
    visit = site.browser().visit(lambda s: s.update(a=1), lambda s: s.revert())
    assert visit.set_cookies == []
    assert site.calls == []


# -- the end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        lambda session: session.destroy(),
        lambda session: session.clear(),
        lambda session: session.pop("a"),
    ],
    ids=["destroy", "clear", "emptied"],
)
def test_the_end_of_a_session(site: Site, end: Any) -> None:
    """A session that is destroyed or left empty is deleted, and so is its cookie (lineage 43)."""
    browser = site.browser(a=1)
    visit = browser.visit(end)
    assert visit.deletes_cookie
    assert len(visit.set_cookies) == 1
    assert browser.cookie == ""
    assert browser.data() == {}
    assert site.rows == 0
    assert site.events.names == ["SessionEnded"]


def test_the_end_of_what_never_was(site: Site) -> None:
    """Destroying a session that nobody saved makes no call and no cookie."""
    visit = site.browser().visit(lambda s: s.update(a=1), lambda s: s.destroy())
    assert visit.set_cookies == []
    assert site.calls == []


def test_an_emptied_session_that_is_filled_again(site: Site) -> None:
    """clear() and an assignment keep the session and drop the old keys (lineage 49)."""
    browser = site.browser(a=1, b=2)
    cookie = browser.cookie
    browser.visit(lambda s: s.clear(), lambda s: s.update(c=3))
    assert browser.data() == {"c": 3}
    assert browser.cookie == cookie or not site.store.revocable


def test_an_emptied_session_that_was_saved(site: Site, clock: FakeClock) -> None:
    """What is assigned after an empty session was saved begins another, with an age of its own."""
    browser = site.browser(a=1)
    clock.advance(60)
    session = site.open(browser)
    session.clear()
    session.save()
    assert session.created is None
    session["b"] = 2
    browser.take(site.manager.close(session))
    assert site.open(browser).created == clock.now


def test_destroy_then_assign(site: Site) -> None:
    """What is assigned after destroy() begins another session, of one row (lineage 44)."""
    browser = site.browser(old=1)
    cookie = browser.cookie

    def view(session: Session) -> None:
        session.destroy()
        with pytest.raises(KeyError):
            session["old"]
        session["new"] = 2

    visit = browser.visit(view)
    assert len(visit.set_cookies) == 1
    assert not visit.deletes_cookie
    assert browser.cookie != cookie
    assert browser.data() == {"new": 2}
    assert site.rows == (1 if site.store.revocable else 0)
    assert site.events.names == ["SessionEnded", "SessionCreated"]


def test_save_destroy_set_save(site: Site) -> None:
    """The last save decides: no deletion meets the new session (lineage 45, 47)."""
    browser = site.browser()

    def view(session: Session) -> None:
        session["user"] = "old"
        session.save()
        session.destroy()
        session.save()
        session["user"] = "new"
        session.save()

    visit = browser.visit(view)
    assert len(visit.set_cookies) == 1
    assert not visit.deletes_cookie
    assert browser.data() == {"user": "new"}


def test_login_and_logout(browser: Browser) -> None:
    """A private page is open between login and logout, and closed around them (lineage 46)."""

    def login(session: Session) -> None:
        session.bind("ann")
        session["name"] = "Ann"

    doors = [browser.visit(lambda session: session.principal).result]
    browser.visit(login)
    doors.append(browser.visit(lambda session: session.principal).result)
    browser.visit(lambda session: session.destroy())
    doors.append(browser.visit(lambda session: session.principal).result)
    assert doors == [None, "ann", None]


# -- renew and bind -------------------------------------------------------------------


def test_renew_keeps_everything_but_the_id(site: Site) -> None:
    """renew() changes the id and keeps data, creation and expiry, in one row (lineage 38, 40)."""
    browser = site.browser(a=1)
    cookie = browser.cookie
    site.clock.advance(3600)

    def look(session: Session) -> object:
        return dict(session), session.created, session.expires

    before = browser.visit(look).result
    visit = browser.visit(lambda session: session.renew())
    assert visit.token == browser.cookie
    assert browser.cookie != cookie or not site.store.revocable
    assert browser.visit(look).result == before
    assert site.rows == (1 if site.store.revocable else 0)
    assert "SessionRenewed" in site.events.names


def test_renew_with_a_new_lifetime(site: Site) -> None:
    """A lifetime that is set along with renew() counts from this request (lineage 39)."""
    browser = site.browser(a=1)
    site.clock.advance(1000)
    browser.visit(lambda s: s.renew(), lambda s: setattr(s, "lifetime", 60))
    assert site.open(browser).expires == int(site.clock.now) + 60


def test_renew_of_a_new_session(site: Site) -> None:
    """A visitor without a session who is renewed and given data gets a session as ever (R3)."""
    browser = site.browser()
    visit = browser.visit(lambda s: s.renew(), lambda s: s.update(user="ann"))
    assert visit.token
    assert browser.data() == {"user": "ann"}
    assert site.events.names == ["SessionCreated"]


@pytest.mark.server_stores
def test_renew_of_an_emptied_session(site: Site) -> None:
    """A login that clears the old data first gets a new id all the same (lineage R3)."""
    browser = site.browser(old=1)
    thief = browser.copy()
    browser.visit(lambda s: s.clear(), lambda s: s.renew(), lambda s: s.update(user="ann"))
    assert browser.data() == {"user": "ann"}
    assert browser.cookie != thief.cookie
    assert thief.data() == {}


@pytest.mark.server_stores
def test_renew_twice(site: Site) -> None:
    """To prove oneself again changes the id again (security 14)."""
    browser = site.browser(user="ann")
    cookies = [browser.cookie]
    for _ in range(2):
        browser.visit(lambda session: session.renew())
        cookies.append(browser.cookie)
    assert len(set(cookies)) == 3
    assert [bool(site.send(site.header(cookie)).result) for cookie in cookies] == [
        False,
        False,
        True,
    ]


def test_bind_remembers_the_principal(site: Site) -> None:
    """bind() says whose session it is until it is bound to nobody."""
    browser = site.browser(cart=[1])
    browser.visit(lambda session: session.bind("ann"))
    assert browser.visit(lambda session: (session.principal, dict(session))).result == (
        "ann",
        {"cart": [1]},
    )
    browser.visit(lambda session: session.bind(None))
    assert browser.visit(lambda session: (session.principal, dict(session))).result == (
        None,
        {"cart": [1]},
    )


@pytest.mark.server_stores
def test_bind_changes_the_id(site: Site) -> None:
    """The id of before a login, and of before a logout, is dead after it (security 13)."""
    browser = site.browser(a=1)
    before = browser.copy()
    browser.visit(lambda session: session.bind("ann"))
    during = browser.copy()
    browser.visit(lambda session: session.bind(None))
    assert len({before.cookie, during.cookie, browser.cookie}) == 3
    assert before.data() == {}
    assert during.data() == {}


def test_bind_to_another_principal_clears(site: Site) -> None:
    """What one user put into a session is gone when another logs in (security 19)."""
    browser = site.browser(cart=[1])
    browser.visit(lambda s: s.bind("ann"), lambda s: s.update(secret="ann's"))
    browser.visit(lambda s: s.bind("bob"), lambda s: s.update(name="Bob"))
    assert browser.visit(lambda session: (session.principal, dict(session))).result == (
        "bob",
        {"name": "Bob"},
    )


def test_bind_to_the_same_principal(site: Site) -> None:
    """Binding a session to whom it is bound already changes nothing."""
    browser = site.browser(a=1)
    browser.visit(lambda session: session.bind("ann"))
    site.chaos.calls.clear()
    assert browser.visit(lambda session: session.bind("ann")).set_cookies == []
    assert site.calls == ["load"]


@pytest.mark.parametrize("earlier", [None, "bob"], ids=["nobody", "another"])
def test_bind_needs_no_data(site: Site, earlier: str | None) -> None:
    """A login that stores nothing but the principal is a login."""
    browser = site.browser()
    if earlier is not None:
        browser.visit(lambda s: s.bind(earlier), lambda s: s.update(name=earlier))
    browser.visit(lambda session: session.bind("ann"))
    looks = [browser.visit(lambda s: (s.principal, dict(s))).result for _ in range(2)]
    assert looks == [("ann", {})] * 2


def test_clear_unbinds(site: Site) -> None:
    """clear() leaves nobody logged in."""
    browser = site.browser()
    browser.visit(lambda s: s.bind("ann"), lambda s: s.update(name="Ann"))
    assert browser.visit(lambda session: session.clear()).deletes_cookie
    assert browser.visit(lambda session: session.principal).result is None


@pytest.mark.one_of_each
@pytest.mark.parametrize("principal", ["", 7, b"ann"], ids=repr)
def test_a_principal_is_a_name(site: Site, principal: Any) -> None:
    """A principal that is no text, or an empty one, is refused."""
    with pytest.raises(TypeError, match="non-empty str"):
        site.manager.open(None).bind(principal)


# -- lifetime and persistence ---------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [
        *((1, 1), (90, 90), (90.9, 90), (dt.timedelta(minutes=2), 120)),
        (MAX_LIFETIME, MAX_LIFETIME),
    ],
    ids=["shortest", "int", "float", "timedelta", "longest"],
)
def test_lifetime_in_seconds_or_as_a_timedelta(site: Site, lifetime: Any, seconds: int) -> None:
    """A session's own lifetime is what it was set to, and counts at once (lineage 71)."""
    browser = site.browser(a=1)
    site.clock.advance(50)
    browser.visit(lambda session: setattr(session, "lifetime", lifetime))
    session = site.open(browser)
    assert session.lifetime == seconds
    assert session.expires == int(site.clock.now) + seconds


def test_lifetime_goes_back_to_the_sites(site: Site) -> None:
    """A lifetime of None is the site's own again."""
    browser = site.browser(a=1)
    assert site.open(browser).lifetime is None
    browser.visit(lambda session: setattr(session, "lifetime", 60))
    browser.visit(lambda session: setattr(session, "lifetime", None))
    assert site.open(browser).expires == int(site.clock.now) + 14 * 24 * 3600


@pytest.mark.one_of_each
@pytest.mark.parametrize(
    "lifetime", [0, -1, 0.5, dt.timedelta(0), 2**33, dt.timedelta.max, math.inf, math.nan], ids=repr
)
def test_a_lifetime_is_positive_and_finite(site: Site, lifetime: Any) -> None:
    """A lifetime of no time, or of more than a record can say, is refused when it is set."""
    session = site.open(site.browser(a=1))
    with pytest.raises(ValueError, match="lifetime"):
        session.lifetime = lifetime
    assert not session.modified


@pytest.mark.one_of_each
@pytest.mark.parametrize("earlier", [None, True, False])
@pytest.mark.parametrize("later", [None, True, False])
def test_persistent_is_remembered(site: Site, earlier: bool | None, later: bool | None) -> None:
    """A session remembers whether its cookie outlives the browser, until told otherwise."""
    browser = site.browser(a=1)
    assert site.open(browser).persistent is None
    browser.visit(lambda session: setattr(session, "persistent", earlier))
    assert site.open(browser).persistent is earlier
    browser.visit(lambda session: setattr(session, "persistent", later))
    assert site.open(browser).persistent is later


# -- flash messages -------------------------------------------------------------------


def test_flashes_are_seen_once(browser: Browser) -> None:
    """Messages come in order, with category, on the next page and not again (lineage 81)."""
    assert browser.visit(lambda session: session.flashes()).result == []

    def view(session: Session) -> None:
        session.flash("Saved.")
        session.flash("Disk full.", "error")

    browser.visit(view)
    expected = [("message", "Saved."), ("error", "Disk full.")]
    assert browser.visit(lambda session: (session.flashes(), session.flashes())).result == (
        expected,
        [],
    )
    assert browser.visit(lambda session: session.flashes()).result == []


def test_asking_for_no_flashes_writes_nothing(site: Site) -> None:
    """An empty queue changes nothing."""
    browser = site.browser(a=1)
    visit = browser.visit(
        lambda session: (session.flashes(), session.flashes("other"), session.modified)
    )
    assert visit.result == ([], [], False)
    assert site.calls == ["load"]


def test_peek_leaves_the_messages(site: Site) -> None:
    """Peeking removes nothing and saves nothing."""
    browser = site.browser()
    browser.visit(lambda session: session.flash("hi"))
    peeks = [browser.visit(lambda session: session.flashes(peek=True)).result for _ in range(2)]
    assert peeks == [[("message", "hi")]] * 2
    assert "update" not in site.calls
    assert browser.visit(lambda session: session.flashes()).result == [("message", "hi")]


@pytest.mark.one_of_each
def test_queues_do_not_see_each_other(browser: Browser) -> None:
    """Taking the messages of one queue leaves those of another."""
    browser.visit(lambda s: s.flash("a"), lambda s: s.flash("b", queue="admin"))
    assert browser.visit(lambda session: session.flashes()).result == [("message", "a")]
    assert browser.visit(lambda session: session.flashes("admin")).result == [("message", "b")]


@pytest.mark.one_of_each
def test_no_duplicates(browser: Browser) -> None:
    """With ``duplicate=False`` a message that waits already is not added again."""

    def view(session: Session) -> object:
        for category in ("message", "message", "error"):
            session.flash("same", category, duplicate=False)
        session.flash("same")
        return session.flashes()

    assert browser.visit(view).result == [
        ("message", "same"),
        ("error", "same"),
        ("message", "same"),
    ]


@pytest.mark.one_of_each
def test_a_queue_keeps_fifty(browser: Browser) -> None:
    """Beyond fifty messages of one queue the oldest are dropped."""

    def view(session: Session) -> None:
        for number in range(60):
            session.flash(number)

    browser.visit(view)
    messages = [message for _, message in browser.visit(lambda session: session.flashes()).result]
    assert messages == list(range(10, 60))


def test_a_message_that_cannot_be_kept(site: Site) -> None:
    """A message that no session can hold is refused like any value."""
    session = site.manager.open(None)
    with pytest.raises(UnstorableError):
        session.flash(Opaque())
    assert session.flashes() == []


# -- cross-site request forgery -------------------------------------------------------


def test_the_csrf_token_of_a_session(site: Site) -> None:
    """The token stays the same from form to form, and only it is accepted (security 86)."""
    browser, other = site.browser(), site.browser()
    token = browser.visit(lambda session: session.csrf_token()).result
    foreign = other.visit(lambda session: session.csrf_token()).result
    assert browser.visit(lambda session: session.csrf_token()).result == token
    assert token != foreign
    assert len(token) >= 22
    given = [token, foreign, "", None, token + "é", "\ud800"]
    visit = browser.visit(lambda session: [session.check_csrf_token(each) for each in given])
    assert visit.result == [True, False, False, False, False, False]


@pytest.mark.one_of_each
def test_no_csrf_token_is_accepted_without_one(site: Site) -> None:
    """A visitor who was never given a token cannot have the right one."""
    visit = site.browser().visit(
        lambda session: [session.check_csrf_token(given) for given in ("", "None", "\ud800")]
    )
    assert visit.result == [False] * 3
    assert visit.set_cookies == []


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.renew(),
        lambda session: session.bind("ann"),
        lambda session: (session.destroy(), session.update(b=1)),
    ],
    ids=["renew", "bind", "destroy"],
)
def test_the_csrf_token_goes_with_the_id(site: Site, change: Any) -> None:
    """A new id comes with a new token, and the old token is refused (security 86)."""
    browser = site.browser(a=1)
    token = browser.visit(lambda session: session.csrf_token()).result
    browser.visit(change)
    assert browser.visit(lambda session: session.check_csrf_token(token)).result is False
    assert browser.visit(lambda session: session.csrf_token()).result != token


# -- the settings that reach the data -------------------------------------------------


@pytest.mark.server_stores
def test_pickle_is_off_until_it_is_switched_on(make_site: MakeSite) -> None:
    """What only pickle can keep is kept with SESSION_PICKLE, and refused without."""
    with pytest.raises(UnstorableError, match="SESSION_PICKLE"):
        make_site().manager.open(None)["range"] = range(3)
    assert make_site(SESSION_PICKLE=True).browser(range=range(3)).data() == {"range": range(3)}
