"""When sessions end, when their expiry moves, and what the browser is told about it."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tieredsession import ConfigurationError, HeadersSentError, Session, SessionMiddleware, Settings

if TYPE_CHECKING:
    from conftest import MakeSite, Site

    from tieredsession.testing import FakeClock

HOUR = 3600
DAY = 24 * HOUR
IDLE = 14 * DAY


def _age(line: str) -> int | None:
    """The Max-Age of a Set-Cookie line."""
    for attribute in line.split("; "):
        if attribute.startswith("Max-Age="):
            return int(attribute.removeprefix("Max-Age="))
    return None


# -- the idle limit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("later", "data"),
    [(0, {"a": 1}), (IDLE - 1, {"a": 1}), (IDLE, {}), (IDLE + 1, {}), (1000 * DAY, {})],
    ids=["at once", "just in time", "to the second", "just late", "late"],
)
def test_the_idle_limit(site: Site, clock: FakeClock, later: int, data: dict[str, Any]) -> None:
    """An unused session lives to its limit, to the second (lineage 26-29, R4, security 37)."""
    browser = site.browser(a=1)
    clock.advance(later)
    assert browser.data() == data


def test_what_is_expired_is_over(site: Site, clock: FakeClock) -> None:
    """An expired session is refused with its reason, its cookie goes, and none of it returns."""
    browser = site.browser(a=1)
    old = browser.copy()
    clock.advance(IDLE)
    visit = browser.visit(lambda session: (session.new, session.created, dict(session)))
    assert visit.result == (True, None, {})
    assert visit.deletes_cookie
    assert site.events.reasons == ["expired"]
    browser.put(b=2)
    assert browser.data() == {"b": 2}
    assert site.open(browser).created == clock.now
    assert old.data() == {}


def test_an_expired_session_that_is_not_touched(site: Site, clock: FakeClock) -> None:
    """An expired cookie that nobody looks at costs nothing (lineage R14)."""
    browser = site.browser(a=1)
    clock.advance(IDLE)
    assert browser.visit(lambda session: None).set_cookies == []
    assert site.chaos.calls == []


def test_an_age_of_ones_own(make_site: MakeSite, clock: FakeClock) -> None:
    """SESSION_COOKIE_AGE is the idle limit, in seconds or as a timedelta (lineage 71)."""
    for age in (90, "90", timedelta(seconds=90)):
        site = make_site(SESSION_COOKIE_AGE=age)
        browser = site.browser(a=1)
        assert site.open(browser).expires == clock.now + 90


# -- use extends it, at times ---------------------------------------------------------


def test_use_keeps_a_session_alive(site: Site, clock: FakeClock) -> None:
    """A session that is used once a week lives on past its first expiry."""
    browser = site.browser(a=1)
    for _ in range(10):
        clock.advance(7 * DAY)
        assert browser.data() == {"a": 1}


@pytest.mark.parametrize(
    ("later", "refreshed"),
    [(1, False), (IDLE // 4 - 1, False), (IDLE // 4, True), (IDLE - 1, True)],
    ids=["at once", "before its time", "in its time", "at the last second"],
)
def test_a_refresh_is_throttled(site: Site, clock: FakeClock, later: int, refreshed: bool) -> None:
    """A mere read moves the expiry once a quarter of the lifetime has passed (lineage 36)."""
    browser = site.browser(a=1)
    before = site.open(browser).expires
    clock.advance(later)
    visit = browser.visit(dict)
    assert visit.result == {"a": 1}
    assert site.events.names == ["SessionRefreshed"] * refreshed
    assert site.calls.count("update") == refreshed
    expires = site.open(browser).expires
    assert expires == (clock.now + IDLE if refreshed else before)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_the_idle_limit_is_never_off_by_more_than_the_share(
    make_site: MakeSite, clock: FakeClock, share: float
) -> None:
    """A session ends between the refresh share short of its limit and the limit (security 43)."""
    idle = 1000
    site = make_site(SESSION_COOKIE_AGE=idle, SESSION_REFRESH=share)
    for first in (0, 50, 99, 100, 250, 499, 500, 989, 990, 999):
        browser = site.browser(a=1)
        clock.advance(first)
        assert browser.data() == {"a": 1}
        expires = site.open(browser).expires
        assert expires is not None
        assert idle * (1 - share) <= expires - clock.now <= idle


def test_a_change_alone_does_not_move_the_expiry(site: Site, clock: FakeClock) -> None:
    """A save before the refresh is due leaves the expiry, which the cookie need not follow."""
    browser = site.browser(a=1)
    before = site.open(browser).expires
    clock.advance(DAY)
    browser.put(a=2)
    assert site.open(browser).expires == before
    clock.advance(4 * DAY)
    browser.put(a=3)
    assert site.open(browser).expires == clock.now + IDLE


def test_an_untouched_session_is_not_extended(site: Site, clock: FakeClock) -> None:
    """Requests that do not touch the session do not keep it alive."""
    browser = site.browser(a=1)
    for _ in range(14):
        clock.advance(DAY)
        browser.visit(lambda session: None)
    assert browser.data() == {}


@pytest.mark.server_stores
def test_a_refresh_that_two_requests_are_due_for(site: Site, clock: FakeClock) -> None:
    """Two requests that refresh at once both succeed, and one write was for nothing at most."""
    browser = site.browser(a=1)
    clock.advance(7 * DAY)
    one, two = site.open(browser), site.open(browser)
    assert dict(one) == dict(two) == {"a": 1}
    assert site.manager.close(one) == site.manager.close(two)
    assert site.open(browser).expires == clock.now + IDLE


@pytest.mark.parametrize(
    "step",
    [
        lambda session: session.update(b=2),
        lambda session: session.renew(restart=True),
        lambda session: session.bind("ann"),
        lambda session: session.clear(),
    ],
    ids=["update", "renew", "bind", "clear"],
)
def test_a_session_that_runs_out_during_its_request(
    site: Site, clock: FakeClock, step: Any
) -> None:
    """Expired is for ever: what a request that took too long would save is dropped (P6)."""
    browser = site.browser(a=1)
    session = site.open(browser)
    step(session)
    clock.advance(IDLE)
    reply = site.manager.close(session)
    assert reply is not None
    assert reply.set_cookie is None
    assert site.events.names[-1] == "SessionGone"
    assert browser.data() == {}


# -- the absolute limit ---------------------------------------------------------------


def test_the_absolute_limit(make_site: MakeSite, clock: FakeClock) -> None:
    """A session that is used every minute ends at its absolute limit (security 38)."""
    site = make_site(SESSION_COOKIE_AGE=HOUR, SESSION_ABSOLUTE_AGE=2 * HOUR)
    browser = site.browser(a=1)
    for _ in range(119):
        clock.advance(60)
        assert browser.data() == {"a": 1}
    clock.advance(59)
    assert browser.data() == {"a": 1}
    clock.advance(1)
    site.events.clear()
    visit = browser.visit(dict)
    assert visit.result == {}
    assert visit.deletes_cookie
    assert site.events.reasons == ["expired"]


@pytest.mark.parametrize(
    ("absolute", "idle"),
    [(24 * HOUR, HOUR), (12 * HOUR, 15 * 60)],
    ids=["NIST level 2", "NIST level 3"],
)
def test_both_limits_at_once(
    make_site: MakeSite, clock: FakeClock, absolute: int, idle: int
) -> None:
    """Each limit ends a session at its second, whatever the other allows (security 39)."""
    site = make_site(SESSION_COOKIE_AGE=idle, SESSION_ABSOLUTE_AGE=absolute, SESSION_REFRESH=0)
    idler = site.browser(a=1)
    clock.advance(idle - 1)
    assert idler.data() == {"a": 1}
    clock.advance(idle)
    assert idler.data() == {}
    worker = site.browser(a=1)
    born = clock.now
    while clock.now + idle - 1 < born + absolute:
        clock.advance(idle - 1)
        assert worker.data() == {"a": 1}
    assert site.open(worker).expires == born + absolute
    clock.now = born + absolute - 1
    assert worker.data() == {"a": 1}
    clock.now = born + absolute
    assert worker.data() == {}


@pytest.mark.parametrize(("age", "data"), [(2 * DAY - 1, {"a": 1}), (2 * DAY, {}), (3 * DAY, {})])
def test_an_absolute_limit_that_came_later(
    make_site: MakeSite, clock: FakeClock, age: int, data: dict[str, Any]
) -> None:
    """A limit that is set while sessions live holds for those that exist already."""
    old = make_site()
    browser = old.browser(a=1)
    clock.advance(age)
    new = make_site(
        store=old.real_store if old.store.revocable else None,
        SESSION_COOKIE_AGE=DAY,
        SESSION_ABSOLUTE_AGE=2 * DAY,
    )
    assert dict(new.open(browser)) == data
    assert ("expired" in new.events.reasons) is not bool(data)


def test_a_renewal_does_not_restart_the_clocks(make_site: MakeSite, clock: FakeClock) -> None:
    """A new id neither extends the idle nor the absolute limit."""
    site = make_site(SESSION_COOKIE_AGE=HOUR, SESSION_ABSOLUTE_AGE=2 * HOUR)
    browser = site.browser(a=1)
    created, expires = (lambda s: (s.created, s.expires))(site.open(browser))
    clock.advance(600)
    browser.visit(lambda session: session.renew())
    session = site.open(browser)
    assert (session.created, session.expires) == (created, expires)


@pytest.mark.parametrize(
    "proof",
    [lambda session: session.renew(restart=True), lambda session: session.bind("ann")],
    ids=["renew", "bind"],
)
def test_a_proof_restarts_the_clocks(make_site: MakeSite, clock: FakeClock, proof: Any) -> None:
    """Who has proved again who they are gets both limits anew (security 40)."""
    site = make_site(SESSION_COOKIE_AGE=HOUR, SESSION_ABSOLUTE_AGE=2 * HOUR)
    browser = site.browser(a=1)
    clock.advance(HOUR - 1)
    assert browser.data() == {"a": 1}
    clock.advance(HOUR - 1)
    browser.visit(proof)
    session = site.open(browser)
    assert session.created == clock.now
    assert session.expires == clock.now + HOUR
    clock.advance(HOUR - 1)
    assert browser.data() == {"a": 1}


def test_an_absolute_limit_below_the_idle_one() -> None:
    """Limits that contradict each other stop the start (lineage 37)."""
    with pytest.raises(ConfigurationError, match="SESSION_ABSOLUTE_AGE"):
        Settings({"SECRET_KEY": "0123456789abcdefghijklmnopqrstuvw", "SESSION_ABSOLUTE_AGE": DAY})


# -- a lifetime of its own ------------------------------------------------------------


def test_a_lifetime_does_not_leak(site: Site, clock: FakeClock) -> None:
    """A lifetime set for one session holds for it alone (lineage R27)."""
    short, usual, long = site.browser(a=1), site.browser(a=1), site.browser(a=1)
    short.visit(lambda session: setattr(session, "lifetime", HOUR))
    long.visit(lambda session: setattr(session, "lifetime", timedelta(days=60)))
    clock.advance(HOUR - 1)
    assert short.data() == {"a": 1, "_lifetime": HOUR}
    clock.advance(HOUR)
    assert short.data() == {}
    clock.advance(IDLE - 2 * HOUR)
    assert usual.data() == {"a": 1}
    clock.advance(IDLE)
    assert usual.data() == {}
    assert long.data() == {"a": 1, "_lifetime": 60 * DAY}


def test_a_lifetime_is_kept_from_use_to_use(site: Site, clock: FakeClock) -> None:
    """A session's own lifetime is what each later use extends it by."""
    browser = site.browser(a=1)
    browser.visit(lambda session: setattr(session, "lifetime", HOUR))
    for _ in range(5):
        clock.advance(HOUR - 1)
        browser.data()
    assert site.open(browser).expires == clock.now + HOUR


def test_a_lifetime_is_below_the_absolute_limit(make_site: MakeSite, clock: FakeClock) -> None:
    """No lifetime of its own carries a session past the site's absolute limit."""
    site = make_site(SESSION_COOKIE_AGE=HOUR, SESSION_ABSOLUTE_AGE=DAY)
    browser = site.browser(a=1)
    browser.visit(lambda session: setattr(session, "lifetime", 30 * DAY))
    assert site.open(browser).expires == clock.now + DAY


def test_the_sites_age_was_lowered(make_site: MakeSite, clock: FakeClock) -> None:
    """A session that would outlive a lowered limit is brought down to it when it is used."""
    old = make_site()
    browser = old.browser(a=1)
    new = make_site(store=old.real_store if old.store.revocable else None, SESSION_COOKIE_AGE=HOUR)
    session = new.open(browser)
    assert dict(session) == {"a": 1}
    browser.take(new.manager.close(session))
    assert new.open(browser).expires == clock.now + HOUR


@pytest.mark.parametrize("value", ["soon", True, -5, 0, 2**33], ids=repr)
def test_a_lifetime_that_is_none(site: Site, clock: FakeClock, value: Any) -> None:
    """Whatever an application keeps under the key of the lifetime, the site's own is the rule."""
    browser = site.browser(_lifetime=value)
    assert site.open(browser).expires == clock.now + IDLE


# -- what the browser is told ---------------------------------------------------------


def test_cookies_end_with_the_browser(site: Site) -> None:
    """Without asking for more, a cookie says nothing of time (lineage 71, security 30)."""
    line = site.browser().put(a=1).set_cookie
    assert "Expires" not in line
    assert "Max-Age" not in line


def test_persistent_cookies(make_site: MakeSite, clock: FakeClock) -> None:
    """A persistent cookie lives as long as its session, to the second (security 31)."""
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=False)
    browser = site.browser()
    assert _age(browser.put(a=1).set_cookie) == IDLE
    clock.advance(DAY)
    lines = browser.put(a=2).set_cookies
    assert [_age(line) for line in lines] == ([] if site.store.revocable else [IDLE - DAY])
    clock.advance(6 * DAY)
    assert _age(browser.visit(dict).set_cookie) == IDLE


def test_a_cookie_says_no_more_than_its_session(make_site: MakeSite, clock: FakeClock) -> None:
    """Near the absolute limit a persistent cookie is told what is left (security 31)."""
    site = make_site(
        SESSION_EXPIRE_AT_BROWSER_CLOSE=False,
        SESSION_COOKIE_AGE=HOUR,
        SESSION_ABSOLUTE_AGE=HOUR + 1200,
    )
    browser = site.browser(a=1)
    clock.advance(HOUR - 1)
    assert _age(browser.visit(dict).set_cookie) == 1201


@pytest.mark.server_stores
def test_a_browser_cookie_is_not_sent_again(site: Site, clock: FakeClock) -> None:
    """Moving the expiry of a session whose cookie says nothing of time needs no cookie."""
    browser = site.browser(a=1)
    clock.advance(7 * DAY)
    assert browser.visit(dict).set_cookies == []
    assert site.events.names == ["SessionRefreshed"]


@pytest.mark.parametrize("default", [True, False], ids=["browser", "persistent"])
def test_one_session_may_persist(make_site: MakeSite, default: bool) -> None:
    """Each visitor may choose, as with "remember me", against the site's own rule."""
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=default)
    browser, other = site.browser(a=1), site.browser()
    line = browser.visit(lambda session: setattr(session, "persistent", default)).set_cookie
    assert (_age(line) is not None) == default
    line = browser.visit(lambda session: setattr(session, "persistent", None)).set_cookie
    assert (_age(line) is not None) != default
    assert (_age(other.put(a=1).set_cookie) is not None) != default


def test_remember_me_for_a_while(site: Site) -> None:
    """A lifetime and a persistent cookie make "remember me for 30 days" (lineage 39)."""
    visit = site.browser().visit(
        lambda session: session.bind("ann"),
        lambda session: setattr(session, "persistent", True),
        lambda session: setattr(session, "lifetime", timedelta(days=30)),
    )
    assert _age(visit.set_cookie) == 30 * DAY


def test_browsers_keep_nothing_for_longer_than_400_days(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A persistent cookie of more than 400 days is cut to that, with a warning (security 29)."""
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=False, SESSION_COOKIE_AGE=timedelta(500))
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "SESSION_COOKIE_AGE: browsers cut a persistent cookie to 400 days"
    ]
    assert _age(site.browser().put(a=1).set_cookie) == 400 * DAY


def test_a_cookie_that_browsers_cut_is_renewed_in_time(make_site: MakeSite) -> None:
    """A session of years does not end for its cookie's sake while its visitor comes every week."""
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=False)
    browser = site.browser()
    browser.visit(lambda session: setattr(session, "lifetime", timedelta(days=3650)))
    for _ in range(15):
        site.clock.advance(7 * DAY)
        last = browser.visit(dict)
    assert _age(last.set_cookie) == 400 * DAY


def test_clear_forgets_a_persistent_cookie(site: Site) -> None:
    """A cookie that outlived the browser for a user does not do so for nobody, after clear()."""
    browser = site.browser()
    visit = browser.visit(lambda s: s.bind("ann"), lambda s: setattr(s, "persistent", True))
    assert _age(visit.set_cookie) == IDLE
    visit = browser.visit(lambda s: s.clear(), lambda s: s.flash("Good bye"))
    assert _age(visit.set_cookie) is None


@pytest.mark.server_stores
def test_a_late_save_does_not_leave_the_cookie_behind(make_site: MakeSite) -> None:
    """After a save that no cookie could follow, the next page extends the cookie all the same."""
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=False)
    browser = site.browser(a=1)
    site.clock.advance(10 * DAY)
    session = site.open(browser)
    site.manager.close(session)
    session["b"] = 2
    site.manager.finish(session)
    visit = browser.visit(dict)
    assert visit.result == {"a": 1, "b": 2}
    assert _age(visit.set_cookie) == IDLE


@pytest.mark.server_stores
@pytest.mark.parametrize("persistent", [True, False])
def test_late_saves_keep_a_session_alive(make_site: MakeSite, persistent: bool) -> None:
    """A session that a stream or a websocket goes on to save does not end meanwhile."""
    site = make_site(SESSION_EXPIRE_AT_BROWSER_CLOSE=not persistent)
    session = site.open(site.browser(day=0))
    site.manager.close(session)
    for day in range(50):
        session["day"] = day
        session.save()
        assert dict(session) == {"day": day}
        assert session.expires is not None
        assert session.expires >= site.clock.now + 0.75 * IDLE
        site.clock.advance(DAY)


@pytest.mark.server_stores
@pytest.mark.parametrize("name", ["persistent", "lifetime"])
def test_the_age_of_a_cookie_cannot_change_late(site: Site, name: str) -> None:
    """What only a cookie can tell the browser is refused after the headers have left."""
    session = site.open(site.browser(a=1))
    assert dict(session) == {"a": 1}
    site.manager.close(session)
    with pytest.raises(HeadersSentError):
        setattr(session, name, True)


# -- clocks that disagree -------------------------------------------------------------


@pytest.mark.parametrize(("behind", "data"), [(300, {"a": 1}), (301, {})], ids=["5 min", "more"])
def test_a_session_from_the_future(
    site: Site, clock: FakeClock, behind: int, data: dict[str, Any]
) -> None:
    """A session born up to five minutes ahead is believed, and no other (security 42, 64)."""
    browser = site.browser(a=1)
    clock.advance(-behind)
    assert browser.data() == data
    assert site.events.reasons == ([] if data else ["future"])


@pytest.mark.parametrize("skew", [-300, 0, 300])
def test_two_nodes_of_different_time(make_site: MakeSite, clock: FakeClock, skew: int) -> None:
    """On a node that is off by a skew, a session ends off by that skew alone (security 42)."""
    site = make_site(SESSION_COOKIE_AGE=HOUR)
    born = clock.now
    browser = site.browser(a=1)
    for elapsed, data in [(0, {"a": 1}), (HOUR - skew - 1, {"a": 1}), (HOUR - skew, {})]:
        clock.now = born + elapsed + skew
        assert dict(site.open(browser)) == data


def test_a_clock_that_was_turned_back(site: Site, clock: FakeClock) -> None:
    """A clock set back a minute costs nobody a session and makes none live longer."""
    browser = site.browser(a=1)
    expires = site.open(browser).expires
    clock.advance(-60)
    browser.put(a=2)
    assert browser.data() == {"a": 2}
    assert site.open(browser).expires == expires


def test_fractions_of_a_second(site: Site, clock: FakeClock) -> None:
    """Times are whole seconds: what is answered before a save is what is loaded after it."""
    clock.advance(0.75)
    browser = site.browser()

    def view(session: Session) -> object:
        session["a"] = 1
        session.save()
        return session.created, session.expires

    times = browser.visit(view).result
    assert times == (int(clock.now), int(clock.now) + IDLE)
    assert browser.visit(lambda session: (session.created, session.expires)).result == times


def test_the_middleware_has_a_clock_of_its_own() -> None:
    """Without a clock the middleware takes the system's."""
    middleware = SessionMiddleware(
        lambda environ, start_response: [], {"SECRET_KEY": "0123456789abcdefghijklmnopqrstuvw"}
    )
    assert middleware.manager.clock() > 1.7e9
