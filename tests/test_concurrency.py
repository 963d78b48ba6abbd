"""Requests that overlap: two sessions of one visitor are opened, and closed in a chosen order.

No schedule here is left to chance; only the last two tests use threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest

from tieredsession import Session
from tieredsession.cookies import Reply
from tieredsession.events import SessionMerged
from tieredsession.merge import MISSING, counter, union

if TYPE_CHECKING:
    from conftest import Browser, MakeSite, Site

    from tieredsession.testing import FakeClock

Step = Callable[[Session], Any]

pytestmark = pytest.mark.server_stores


def overlap(site: Site, browser: Browser, theirs: Step, mine: Step) -> Reply | None:
    """Two requests read the session; *theirs* changes and saves it first, then *mine*."""
    other, own = site.open(browser), site.open(browser)
    assert dict(other) == dict(own)
    theirs(other)
    mine(own)
    browser.take(site.manager.close(other))
    reply = site.manager.close(own)
    browser.take(reply)
    return reply


def put(**data: Any) -> Step:
    """A step that assigns *data*."""
    return lambda session: session.update(data)


def steps(*each: Step) -> Step:
    """Several steps as one."""

    def run(session: Session) -> None:
        for step in each:
            step(session)

    return run


def drop(key: str) -> Step:
    """A step that removes *key*."""
    return lambda session: session.pop(key)


# -- two writers ----------------------------------------------------------------------

BASE = {"a": 1, "d": {"x": 1, "y": {"z": 1}}, "l": [1]}

MERGES: dict[str, tuple[Step, Step, dict[str, Any], tuple[str, ...]]] = {
    "other keys": (put(b=2), put(c=3), {**BASE, "b": 2, "c": 3}, ()),
    "the same key": (put(a=2), put(a=3), {**BASE, "a": 3}, ("a",)),
    "the same value": (put(a=2), put(a=2, b=1), {**BASE, "a": 2, "b": 1}, ()),
    "they alone": (put(a=2), put(b=1), {**BASE, "a": 2, "b": 1}, ()),
    "I removed": (put(b=2), drop("a"), {"b": 2, "d": BASE["d"], "l": [1]}, ()),
    "they removed": (drop("a"), put(b=2), {"b": 2, "d": BASE["d"], "l": [1]}, ()),
    "both removed": (
        steps(drop("a"), put(b=1)),
        steps(drop("a"), put(c=1)),
        {"b": 1, "c": 1, "d": BASE["d"], "l": [1]},
        (),
    ),
    "they removed what I changed": (drop("a"), put(a=9), {**BASE, "a": 9}, ("a",)),
    "I removed what they changed": (put(a=9), drop("a"), {"d": BASE["d"], "l": [1]}, ("a",)),
    "inside one dict": (
        lambda s: s["d"].update(x=2),
        lambda s: s["d"]["y"].update(z=2, w=3),
        {**BASE, "d": {"x": 2, "y": {"z": 2, "w": 3}}},
        (),
    ),
    "inside one dict, the same": (
        lambda s: s["d"].update(x=2, n=1),
        lambda s: s["d"].update(x=3),
        {**BASE, "d": {"x": 3, "y": {"z": 1}, "n": 1}},
        ("d",),
    ),
    "two new dicts": (put(n={"a": 1}), put(n={"b": 2}), {**BASE, "n": {"a": 1, "b": 2}}, ()),
    "a dict that is none now": (
        lambda s: s["d"].update(x=2),
        put(d="gone"),
        {**BASE, "d": "gone"},
        ("d",),
    ),
    "lists": (
        lambda s: s["l"].append(2),
        lambda s: s["l"].append(3),
        {**BASE, "l": [1, 3]},
        ("l",),
    ),
    "other types": (put(a=1.0), put(a=True), {**BASE, "a": True}, ("a",)),
}


@pytest.mark.parametrize("name", MERGES)
def test_two_writers(site: Site, name: str) -> None:
    """Both writers' changes survive; where they meet, the later one's does (P5)."""
    theirs, mine, expected, contested = MERGES[name]
    browser = site.browser(**BASE)
    overlap(site, browser, theirs, mine)
    assert repr(sorted(browser.data().items())) == repr(sorted(expected.items()))
    assert [event.keys for event in site.events.of(SessionMerged)] == [contested]


def test_a_merge_names_the_session(site: Site) -> None:
    """Observers are told which session was merged."""
    browser = site.browser(a=1)
    overlap(site, browser, put(b=1), put(c=1))
    (merged,) = site.events.of(SessionMerged)
    assert merged.session is not None
    assert merged.session == site.store.label(browser.cookie)


def test_three_writers(site: Site) -> None:
    """A writer who is overtaken twice merges with both."""
    browser = site.browser(a=1)
    sessions = [site.open(browser) for _ in range(3)]
    for number, session in enumerate(sessions):
        session[f"k{number}"] = number
    for session in reversed(sessions):
        site.manager.close(session)
    assert browser.data() == {"a": 1, "k0": 0, "k1": 1, "k2": 2}


def test_overtaken_again_while_merging(site: Site) -> None:
    """A writer who is overtaken between the merge and the next try merges once more."""
    browser = site.browser(a=1)
    mine, first, second = (site.open(browser) for _ in range(3))
    mine["mine"] = 1
    first["first"] = 1
    second["second"] = 1
    # One plan for each update in turn: of mine, of the first (in between), of mine again.
    site.chaos.before("update", lambda: site.manager.close(first))
    site.chaos.before("update", lambda: None)
    site.chaos.before("update", lambda: site.manager.close(second))
    site.manager.close(mine)
    assert browser.data() == {"a": 1, "mine": 1, "first": 1, "second": 1}
    assert len(site.events.of(SessionMerged)) == 3


class Cart:
    """What only pickle can keep; two of them are never equal."""

    def __init__(self) -> None:
        self.items: list[str] = []


def test_a_pickled_object_that_one_changed(make_site: MakeSite) -> None:
    """A change inside a pickled object is not undone by whoever left the object alone (P5)."""
    site = make_site(SESSION_PICKLE=True)
    browser = site.browser(cart=Cart(), n=0)
    other, own = site.open(browser), site.open(browser)
    own["n"] = 1
    other["cart"].items.append("tea")
    site.manager.close(other)
    site.manager.close(own)
    assert browser.visit(lambda s: (s["cart"].items, s["n"])).result == (["tea"], 1)


def test_a_reader_does_not_undo_a_writer(site: Site) -> None:
    """A request that only read saves nothing, whatever was saved in the meantime."""
    browser = site.browser(a=1)
    overlap(site, browser, put(a=2), len)
    assert browser.data() == {"a": 2}


def test_a_refresh_does_not_undo_a_writer(site: Site, clock: FakeClock) -> None:
    """A request that only extends the expiry keeps what was saved in the meantime."""
    browser = site.browser(a=1)
    clock.advance(7 * 24 * 3600)
    overlap(site, browser, put(a=2), len)
    assert browser.data() == {"a": 2}


def test_the_same_request_twice(site: Site) -> None:
    """A request that a proxy or a double click sends twice has the effect of one (P10)."""
    browser = site.browser(a=1)
    overlap(site, browser, put(a=2, b=[1]), put(a=2, b=[1]))
    assert browser.data() == {"a": 2, "b": [1]}


def test_a_save_that_failed_does_not_undo_a_later_one(site: Site) -> None:
    """A save that is tried again after another succeeded reverts nothing of it (I10)."""
    browser = site.browser(a=1, n=0)
    first = site.open(browser)
    first["a"] = 2
    site.chaos.fail("update")
    with pytest.raises(Exception, match="made to fail"):
        first.save()
    browser.put(n=1, late=True)
    first.save()
    assert browser.data() == {"a": 2, "n": 1, "late": True}


def test_a_lost_reply(site: Site) -> None:
    """A save whose reply got lost may be tried again, and counts once."""
    browser = site.browser(count=0)
    session = site.open(browser)
    session["count"] += 1
    site.chaos.lose_reply("update")
    with pytest.raises(Exception, match="get lost"):
        session.save()
    session.save()
    assert browser.data() == {"count": 1}


# -- rules ----------------------------------------------------------------------------


def _loudest(base: Any, mine: Any, theirs: Any) -> Any:
    return max(mine, theirs)


RULES: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "counter": (counter, 10, 13, 11, 14),
    "counter, by the same": (counter, 10, 11, 11, 12),
    "counter, new": (counter, MISSING, 3, 1, 4),
    "counter, reset": (counter, 10, 0, 12, 2),
    "counter, removed by me": (counter, 10, MISSING, 12, 2),
    "union of lists": (union, [1, 2], [2, 3], [1, 2, 4], [2, 4, 3]),
    "union of sets": (union, {1, 2}, {2, 3}, {1, 2, 4}, {2, 3, 4}),
    "one's own": (_loudest, "a", "b", "c", "c"),
    "to drop it": (lambda *_: MISSING, "a", "b", "c", MISSING),
}


def _become(value: Any) -> Step:
    if value is MISSING:
        return lambda session: session.pop("key")
    return lambda session: session.update(key=value)


@pytest.mark.parametrize("name", RULES)
def test_merge_rules(make_site: MakeSite, name: str) -> None:
    """Where both changed a key that has a rule, the rule decides (P5)."""
    rule, base, mine, theirs, expected = RULES[name]
    site = make_site(SESSION_MERGE_RULES={"key": rule})
    browser = site.browser(other=1, **({} if base is MISSING else {"key": base}))
    overlap(site, browser, _become(theirs), _become(mine))
    assert browser.data().get("key", MISSING) == expected


def test_a_rule_is_not_asked_without_need(make_site: MakeSite) -> None:
    """A rule has nothing to say while only one of the two changed its key."""

    def rule(base: Any, mine: Any, theirs: Any) -> Any:
        raise AssertionError("nobody asked")

    site = make_site(SESSION_MERGE_RULES={"key": rule})
    browser = site.browser(key=1)
    overlap(site, browser, put(key=2), put(other=3))
    overlap(site, browser, put(other=4), put(key=5))
    assert browser.data() == {"key": 5, "other": 4}


def test_flash_messages_of_both(site: Site) -> None:
    """Messages that two requests flash are all shown, and those shown are not shown again (P5)."""
    browser = site.browser(a=1)
    overlap(site, browser, lambda s: s.flash("theirs"), lambda s: s.flash("mine"))
    shown = browser.visit(lambda session: session.flashes(peek=True)).result
    assert shown == [("message", "theirs"), ("message", "mine")]
    overlap(site, browser, lambda s: s.flashes(), lambda s: s.flash("new", queue="q"))
    overlap(site, browser, lambda s: s.flash("newer"), lambda s: s.flash("last", queue="q"))
    assert browser.visit(lambda s: (s.flashes(), s.flashes("q"))).result == (
        [("message", "newer")],
        [("message", "new"), ("message", "last")],
    )


def test_a_message_that_is_flashed_again_while_it_is_shown(site: Site) -> None:
    """A message that waits for its second time is shown again, whoever takes the first (P5)."""
    browser = site.browser(a=1)
    browser.visit(lambda session: session.flash("Saved."))
    overlap(site, browser, lambda s: s.flashes(), lambda s: s.flash("Saved."))
    assert browser.visit(lambda session: session.flashes()).result == [("message", "Saved.")]


# -- the dead stay dead ---------------------------------------------------------------

ENDS: dict[str, Step] = {
    "destroy": lambda session: session.destroy(),
    "clear": lambda session: session.clear(),
    "renew": lambda session: session.renew(),
    "bind": lambda session: session.bind("ann"),
}

LATE: dict[str, Step] = {
    "change": put(b=2),
    "nested change": lambda session: session["list"].append(2),
    "renewal": lambda session: session.renew(),
    "login": lambda session: session.bind("bob"),
    "emptying": lambda session: session.clear(),
    "forced save": lambda session: setattr(session, "modified", True),
}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("end", ENDS)
def test_a_slow_request_revives_nothing(site: Site, end: str, late: str) -> None:
    """What a slow request saves after the session's end is dropped (I6, P6, security 46)."""
    browser = site.browser(list=[1])
    slow, old = site.open(browser), browser.copy()
    LATE[late](slow)
    browser.visit(ENDS[end])
    rows = site.rows
    reply = site.manager.close(slow)
    assert reply is not None
    assert reply.set_cookie is None
    assert site.events.names[-1] == "SessionGone"
    assert site.rows == rows
    assert dict(slow) == {}
    assert slow.principal is None
    assert old.data() == {}


def test_no_fragment_is_left(site: Site) -> None:
    """A deletion between a save's decision and its write leaves no part of a session (I7)."""
    browser = site.browser(list=[1])
    other = browser.copy()
    site.chaos.before("update", lambda: other.visit(lambda session: session.destroy()))
    browser.put(b=2)
    assert site.rows == 0
    assert site.events.names[-1] == "SessionGone"


def test_a_slow_refresh_revives_nothing(site: Site, clock: FakeClock) -> None:
    """A read that is due for a refresh does not bring a dead session back."""
    browser = site.browser(a=1)
    clock.advance(7 * 24 * 3600)
    slow = site.open(browser)
    assert dict(slow) == {"a": 1}
    browser.visit(lambda session: session.destroy())
    site.manager.close(slow)
    assert site.rows == 0


def test_the_other_tabs_cookie_is_left_alone(site: Site) -> None:
    """The slow tab's reply does not delete the cookie that the fast tab was just given."""
    browser = site.browser(a=1)
    slow = site.open(browser)
    slow["b"] = 2
    browser.visit(lambda session: session.renew())
    browser.take(site.manager.close(slow))
    assert browser.data() == {"a": 1}


def test_what_begins_after_the_end(site: Site) -> None:
    """A request that learns in its middle of the end may begin anew, under a new id."""
    browser = site.browser(a=1)
    slow, old = site.open(browser), browser.copy()
    slow["b"] = 2
    browser.visit(lambda session: session.destroy())
    slow.save()
    assert dict(slow) == {}
    assert slow.new
    slow["c"] = 3
    browser.take(site.manager.close(slow))
    assert browser.data() == {"c": 3}
    assert browser.cookie != old.cookie


@pytest.mark.parametrize("first", ["destroy", "clear"])
def test_logout_twice(site: Site, first: str) -> None:
    """A logout that is sent twice has the effect of one, and deletes the cookie again (P10)."""
    browser = site.browser(a=1)
    reply = overlap(site, browser, ENDS[first], ENDS["destroy"])
    assert reply is not None
    assert "Max-Age=0" in (reply.set_cookie or "")
    assert site.rows == 0
    assert browser.data() == {}


def test_clear_twice(site: Site) -> None:
    """Two requests that clear one session end it once, and neither is an error (P10)."""
    browser = site.browser(a=1)
    overlap(site, browser, ENDS["clear"], ENDS["clear"])
    assert site.rows == 0
    assert browser.data() == {}


def test_a_new_session_after_two_logouts(site: Site) -> None:
    """What begins after destroy() is saved, even if another request was quicker to log out."""
    browser = site.browser(a=1)
    overlap(site, browser, ENDS["destroy"], steps(lambda s: s.destroy(), put(mine=1)))
    assert browser.data() == {"mine": 1}


def test_logout_is_stronger_than_a_write(site: Site) -> None:
    """A logout that finds the session changed ends it all the same (security 45)."""
    browser = site.browser(a=1)
    old = browser.copy()
    reply = overlap(site, browser, put(b=2), ENDS["destroy"])
    assert reply is not None
    assert "Max-Age=0" in (reply.set_cookie or "")
    assert site.rows == 0
    assert old.data() == {}


def test_a_logout_and_a_login_in_one(site: Site) -> None:
    """What began after a logout has nothing of what another request wrote before it."""
    browser = site.browser(a=1)
    overlap(site, browser, put(theirs=1), steps(lambda s: s.destroy(), put(mine=1)))
    assert browser.data() == {"mine": 1}
    assert site.rows == 1


# -- renewals that meet ---------------------------------------------------------------


@pytest.mark.parametrize("step", ["renew", "bind"])
def test_one_successor(site: Site, step: str) -> None:
    """Of two requests that renew one session, one has a successor to show (I12, security 15)."""
    browser = site.browser(a=1)
    one, two = site.open(browser), site.open(browser)
    ENDS[step](one)
    ENDS[step](two)
    first, second = site.manager.close(one), site.manager.close(two)
    assert first is not None
    assert first.set_cookie is not None
    assert second is not None
    assert second.set_cookie is None
    assert site.rows == 1
    assert two.principal is None
    browser.take(first)
    assert browser.data() == {"a": 1}


def test_a_renewal_takes_along_what_was_written(site: Site) -> None:
    """A renewal that finds the session changed renews it with the change."""
    browser = site.browser(a=1)
    old = browser.copy()
    overlap(site, browser, put(b=2), steps(lambda s: s.renew(), put(c=3)))
    assert browser.data() == {"a": 1, "b": 2, "c": 3}
    assert old.data() == {}
    assert site.rows == 1


@pytest.mark.parametrize("step", ["renew", "bind"])
def test_a_renewal_leaves_the_csrf_token_behind(site: Site, step: str) -> None:
    """A token that another request made under the old id is not the new id's (security 86)."""
    browser = site.browser(a=1)
    thief = site.open(browser)
    token = thief.csrf_token()
    own = site.open(browser)
    ENDS[step](own)
    site.manager.close(thief)
    browser.take(site.manager.close(own))
    assert browser.visit(lambda s: (s["a"], s.check_csrf_token(token))).result == (1, False)


def test_a_renewal_keeps_its_own_csrf_token(site: Site) -> None:
    """The token of the form that a login shows is good, whatever another request made."""
    browser = site.browser(a=1)
    own = site.open(browser)
    own.bind("ann")
    token = own.csrf_token()
    browser.copy().visit(lambda session: session.csrf_token())
    browser.take(site.manager.close(own))
    assert browser.visit(lambda session: session.check_csrf_token(token)).result


def test_a_logout_before_a_renewal(site: Site) -> None:
    """A session that was ended while it was being renewed is not renewed (I12)."""
    browser = site.browser(a=1)
    reply = overlap(site, browser, ENDS["destroy"], ENDS["renew"])
    assert reply is not None
    assert reply.set_cookie is None
    assert site.rows == 0


def test_nothing_of_another_principal_comes_in_by_the_merge(site: Site) -> None:
    """What the first user's slow request saves is not the second user's after a login (19)."""
    browser = site.browser()
    browser.visit(lambda s: s.bind("ann"), put(a=1))
    overlap(site, browser, put(secret="ann's"), steps(lambda s: s.bind("bob"), put(b=2)))
    assert browser.visit(lambda s: (s.principal, dict(s))).result == ("bob", {"b": 2})


def test_a_login_takes_along_what_nobody_wrote(site: Site) -> None:
    """A login of a visitor who was nobody keeps what another request of his saved."""
    browser = site.browser(a=1)
    overlap(site, browser, put(cart=[1]), steps(lambda s: s.bind("ann"), put(b=2)))
    assert browser.visit(lambda s: (s.principal, dict(s))).result == (
        "ann",
        {"a": 1, "cart": [1], "b": 2},
    )


@pytest.mark.parametrize("left", [ENDS["clear"], steps(ENDS["clear"], put(c=1))], ids=["", "fill"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_write_beside_a_clear_logs_nobody_in(site: Site, left: Step, first: bool) -> None:
    """clear() logs out, whichever of two requests is the later."""
    browser = site.browser()
    browser.visit(lambda s: s.bind("ann"), put(a=1))
    order = (left, put(b=2)) if first else (put(b=2), left)
    overlap(site, browser, *order)
    assert browser.visit(lambda session: session.principal).result is None
    assert "a" not in browser.data()


def test_a_write_beside_a_clear_is_dropped(site: Site) -> None:
    """What a user's slow request saves after clear() is not in what nobody's session holds."""
    browser = site.browser()
    browser.visit(lambda s: s.bind("ann"), put(a=1))
    overlap(site, browser, steps(ENDS["clear"], put(c=1)), put(secret="ann's"))
    assert browser.data() == {"c": 1}
    assert site.events.names[-1] == "SessionGone"


# -- the cookie store -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted"])
def test_the_last_cookie_wins(site: Site) -> None:
    """Where the cookie is the store, the browser keeps what was answered last."""
    browser = site.browser(a=1)
    overlap(site, browser, put(b=2), put(c=3))
    assert browser.data() == {"a": 1, "c": 3}


# -- threads --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "memory", "sqlite"])
def test_a_hundred_threads_share_a_middleware(site: Site) -> None:
    """A hundred visitors at once see their own data alone (lineage R28, security 85)."""
    barrier = Barrier(100)

    def visitor(number: int) -> bool:
        browser = site.browser()
        barrier.wait(30)
        for round_ in range(5):
            browser.put(me=number, round=round_)
            if browser.data() != {"me": number, "round": round_}:
                return False
        return True

    with ThreadPoolExecutor(100) as pool:
        assert all(pool.map(visitor, range(100)))
    assert site.rows == (100 if site.store.revocable else 0)


def test_threads_that_write_to_one_session(make_site: MakeSite) -> None:
    """Eight writers to one session lose no key and no count (P5)."""
    site = make_site(SESSION_MERGE_RULES={"count": counter})
    browser = site.browser(count=0)
    header = site.header(browser.cookie)

    def writer(number: int) -> None:
        session = site.manager.open(header)
        session["count"] += 1
        session[f"k{number}"] = number
        site.manager.close(session)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(writer, range(24)))
    assert browser.data() == {"count": 24, **{f"k{n}": n for n in range(24)}}
