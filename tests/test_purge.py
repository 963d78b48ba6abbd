"""The purge: what it deletes, where it stops, how it goes on, and what nobody can make it do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import inf, nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tieredsession.contracts import Note, Swept
from tieredsession.errors import StoreUnavailable
from tieredsession.events import Purged
from tieredsession.pace import EVERY, GROWTH, Pace
from tieredsession.purge import (
    GRACE,
    PAGE,
    NothingToSweep,
    as_dict,
    find_sweepable,
    oldest_expired_age,
    purge,
)
from tieredsession.stores import HybridSessionStore
from tieredsession.testing import FakeClock

if TYPE_CHECKING:
    from conftest import Browser, MakeSite, Site

    from tieredsession.events import Event

HOUR = 3600.0
DAY = 24 * HOUR
IDLE = 14 * DAY
LATER = IDLE + GRACE + 1
NOW = 1_800_000_000.0


# -- on the stores --------------------------------------------------------------------


@pytest.mark.server_stores
def test_the_expired_go_and_the_live_stay(site: Site, clock: FakeClock) -> None:
    """A purge deletes sessions that expired longer ago than the grace, and no other (case 30)."""
    for number in range(5):
        site.browser(number=number)
    clock.advance(HOUR)
    live = site.browser(a=1)
    clock.advance(IDLE - HOUR + GRACE + 1)
    report = purge(site.real_store, clock=clock)
    assert (report.deleted, report.completed, report.oldest_expired_age) == (5, True, None)
    assert (report.scanned, report.spared, report.odd) == (5, 0, 0)
    assert site.rows == 1
    clock.advance(-GRACE - 2)
    assert live.data() == {"a": 1}


@pytest.mark.server_stores
def test_an_expired_row_is_left_for_the_grace(site: Site, clock: FakeClock) -> None:
    """A session that has just expired is still there, for clocks of a site differ (P9)."""
    site.browser(a=1)
    clock.advance(IDLE + GRACE - 1)
    assert purge(site.real_store, clock=clock).deleted == 0
    assert site.rows == 1
    assert purge(site.real_store, clock=clock, grace=0).deleted == 1
    assert site.rows == 0


@pytest.mark.server_stores
def test_a_purge_of_many_pages(site: Site, clock: FakeClock) -> None:
    """More expired sessions than fit on a page are deleted in one run (R21)."""
    for _ in range(2 * PAGE + 3):
        _create(site)
    clock.advance(LATER)
    report = purge(site.real_store, clock=clock)
    assert (report.deleted, report.scanned, site.rows) == (2 * PAGE + 3, 2 * PAGE + 3, 0)


@pytest.mark.server_stores
def test_a_limit(site: Site, clock: FakeClock) -> None:
    """With a limit so many are deleted, and the report says that it is not done."""
    for _ in range(7):
        _create(site)
    clock.advance(LATER)
    report = purge(site.real_store, clock=clock, limit=3)
    assert (report.deleted, report.completed, site.rows) == (3, False, 4)
    assert report.oldest_expired_age == LATER - IDLE
    assert report.next == 0


@pytest.mark.server_stores
def test_a_dry_run_with_a_limit(site: Site, clock: FakeClock) -> None:
    """A dry run with a limit counts no further than a run with it would delete."""
    for _ in range(7):
        _create(site)
    clock.advance(LATER)
    report = purge(site.real_store, clock=clock, limit=3, dry_run=True)
    assert (report.deleted, report.completed, site.rows) == (3, False, 7)
    report = purge(site.real_store, clock=clock, limit=9, dry_run=True)
    assert (report.deleted, report.completed, site.rows) == (7, True, 7)


@pytest.mark.parametrize("grace", [-1.0, -inf, nan])
@pytest.mark.any_store
def test_a_grace_below_nothing(site: Site, clock: FakeClock, grace: float) -> None:
    """A grace below 0, with which live sessions would be purged, is refused."""
    site.browser(a=1)
    with pytest.raises(ValueError, match="grace"):
        purge(site.real_store, clock=clock, grace=grace)
    assert site.rows == 1


@pytest.mark.server_stores
def test_a_dry_run(site: Site, clock: FakeClock) -> None:
    """A dry run counts what is expired and deletes nothing."""
    for _ in range(3):
        _create(site)
    clock.advance(LATER)
    report = purge(site.real_store, clock=clock, dry_run=True)
    assert (report.deleted, report.dry_run, site.rows) == (3, True, 3)


@pytest.mark.server_stores
def test_the_oldest_expired_age(site: Site, clock: FakeClock) -> None:
    """A site can be asked for how long its oldest expired session has been left."""
    assert oldest_expired_age(site.real_store, clock()) is None
    _create(site)
    assert oldest_expired_age(site.real_store, clock()) is None
    clock.advance(IDLE + 25)
    assert oldest_expired_age(site.real_store, clock()) == 25


@pytest.mark.server_stores
def test_a_session_of_its_own_lifetime(site: Site, clock: FakeClock) -> None:
    """A session with a longer lifetime outlives the site's in a purge as well (R18, R27)."""

    def extend(session: Any) -> None:
        session.lifetime = 60 * DAY
        session["a"] = 1

    kept = site.browser()
    kept.visit(extend)
    site.browser(b=1)
    clock.advance(LATER)
    assert purge(site.real_store, clock=clock).deleted == 1
    assert kept.data()["a"] == 1


@pytest.mark.cookie_stores
def test_a_store_without_rows(site: Site) -> None:
    """A store that keeps its data in cookies says that it has nothing to sweep."""
    with pytest.raises(NothingToSweep, match="keeps no rows"):
        purge(site.real_store)
    with pytest.raises(NothingToSweep, match="keeps no rows"):
        oldest_expired_age(site.real_store, 0.0)


@pytest.mark.any_store
def test_a_store_made_of_stores(make_site: MakeSite) -> None:
    """In a hybrid store the part on the server is what is swept."""
    server = make_site().real_store
    part: object = find_sweepable(HybridSessionStore(server, server))
    assert part is server


@pytest.mark.any_store
def test_the_report_is_an_event(site: Site, clock: FakeClock) -> None:
    """Observers are told what the caller is told, and it is JSON."""
    seen: list[Event] = []
    report = purge(site.real_store, clock=clock, observers=[seen.append])
    assert seen == [report]
    assert json.loads(json.dumps(as_dict(report)))["completed"] is True


Step = tuple[str, int]
_steps = st.lists(
    st.tuples(
        st.sampled_from(["create", "visit", "extend", "logout", "purge", "wait"]),
        st.integers(0, 30),
    ),
    min_size=10,
    max_size=80,
)


@pytest.mark.parametrize("kind", ["sqlite"])
@given(steps=_steps)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_weeks_of_life(make_site: MakeSite, clock: FakeClock, steps: list[Step]) -> None:
    """In weeks of logins, visits, extensions, logouts and purges no live session is deleted."""
    site = make_site()
    browsers: list[Browser] = []
    life: dict[int, tuple[float, float]] = {}  # browser to lifetime and expiry, while alive
    for action, number in steps:
        alive = [one for one, (_, expires) in life.items() if expires > clock()]
        if action == "wait":
            clock.advance(number * DAY / 4)
        elif action == "purge":
            purge(site.real_store, clock=clock)
            assert site.rows >= len(alive)
        elif action == "create":
            browsers.append(site.browser(number=number))
            life[len(browsers) - 1] = (IDLE, clock() + IDLE)
        elif alive:
            one = alive[number % len(alive)]
            lifetime, expires = life[one]
            if action == "logout":
                browsers[one].visit(lambda session: session.destroy())
                del life[one]
            elif action == "extend":
                _visit(browsers[one], lambda session: setattr(session, "lifetime", 30 * DAY))
                life[one] = (30 * DAY, clock() + 30 * DAY)
            else:
                _visit(browsers[one], lambda session: None)
                if clock() >= expires - lifetime * 0.75:
                    life[one] = (lifetime, clock() + lifetime)
    for one, (_, expires) in life.items():
        assert bool(browsers[one].data()) == (expires > clock())
    clock.advance(31 * DAY)
    assert purge(site.real_store, clock=clock).completed
    assert site.rows == 0


def _visit(browser: Browser, action: Callable[[Any], object]) -> None:
    def view(session: Any) -> None:
        assert "number" in session
        action(session)

    browser.visit(view)


def _create(site: Site) -> None:
    session = site.manager.open(None)
    session["a"] = 1
    site.manager.close(session)


# -- shards, marks, leases, canaries --------------------------------------------------


class Killed(BaseException):
    """Nobody catches a kill."""


class Shards:
    """A sharded store as Datastore is one: an index that may lie, rows, and notes.

    *rows* has the expiry of each row, or ``None`` for one that does not say; *index* what
    the index takes it for. *plan* is called with the name of each call before it is made.
    """

    shards: tuple[str, ...] = ("0", "1", "2", "3")

    def __init__(self, rate: float | None = None) -> None:
        self.sweep_rate = rate
        self.rows: dict[str, float | None] = {}
        self.index: dict[str, float] = {}
        self.notes: dict[str, Note] = {}
        self.plan: Callable[[str, str], object] = lambda call, shard: None
        self.since: list[tuple[str, float]] = []
        self.stale = False  # whether the sweep deletes nothing, and says that it does

    def add(self, number: int, expires: float | None, indexed: float | None = None) -> str:
        key = f"{number % 4}-{number:06}"
        self.rows[key] = expires
        found = expires if indexed is None else indexed
        if found is not None:
            self.index[key] = found
        return key

    def sweep(
        self,
        shard: str,
        since: float,
        until: float,
        limit: int,
        after: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Swept:
        self.plan("sweep", shard)
        self.since.append((shard, since))
        found = sorted(
            (expires, key)
            for key, expires in self.index.items()
            if key[0] == shard and since <= expires < until and (after is None or key > after)
        )
        return self._delete([key for _, key in found], until, limit, since, dry_run)

    def walk(
        self,
        shard: str,
        until: float,
        limit: int,
        after: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Swept:
        self.plan("walk", shard)
        keys = [k for k in sorted(self.rows) if k[0] == shard and (after is None or k > after)]
        return self._delete(keys, until, limit, 0.0, dry_run)

    def _delete(
        self, keys: list[str], until: float, limit: int, since: float, dry_run: bool
    ) -> Swept:
        page = keys[:limit]
        dead = [k for k in page if (e := self.rows.get(k)) is not None and e < until]
        odd = sum(1 for key in page if self.rows.get(key) is None)
        if not dry_run and not self.stale:
            for key in dead:
                del self.rows[key]
                self.index.pop(key, None)
        more = len(keys) > limit
        reached = since if more else until
        left = len(page) - len(dead) - odd
        return Swept(len(page), len(dead), left, odd, reached, page[-1] if more else None)

    def oldest(self, shard: str) -> float | None:
        self.plan("oldest", shard)
        found = [e for key, e in self.rows.items() if key[0] == shard and e is not None]
        return min(found, default=None)

    def read_notes(self, names: Sequence[str]) -> dict[str, Note]:
        self.plan("read_notes", "")
        return {name: self.notes[name] for name in names if name in self.notes}

    def write_note(self, name: str, data: bytes, version: int | None) -> int | None:
        self.plan("write_note", name)
        current = self.notes.get(name)
        if (None if current is None else current.version) != version:
            return None
        self.notes[name] = Note(data, (version or 0) + 1)
        return self.notes[name].version

    def plant(self, shard: str, expires: float) -> bool:
        self.plan("plant", shard)
        key = f"{shard}-canary"
        if key in self.rows:
            return False
        self.rows[key] = self.index[key] = expires
        return True

    @property
    def sessions(self) -> list[str]:
        return sorted(key for key in self.rows if "canary" not in key)


class Timer:
    """Monotonic seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def _full(store: Shards, count: int = 40) -> Shards:
    for number in range(count):
        store.add(number, NOW + number)
    return store


@pytest.fixture
def after() -> FakeClock:
    """A time at which all of :func:`_full` is to be deleted."""
    return FakeClock(NOW + DAY)


def test_every_shard_is_swept(after: FakeClock) -> None:
    """A run sweeps every shard, and says how many there are."""
    store = _full(Shards())
    live = store.add(99, NOW + 9 * DAY)
    report = purge(store, clock=after)
    assert (report.deleted, report.shards, report.shards_done) == (40, 4, 4)
    assert store.sessions == [live]
    assert (report.stuck, report.odd, report.spared, report.failed) == (0, 0, 0, 0)


def test_a_budget(after: FakeClock) -> None:
    """No page is begun after the budget, and the next run goes on until all is done."""
    store, timer = _full(Shards()), Timer()
    store.plan = lambda call, _: timer.sleep(30.0) if call == "sweep" else None
    first = purge(store, clock=after, budget=59.0, timer=timer)
    assert (first.shards_done, first.deleted, first.completed) == (2, 20, False)
    assert (first.seconds, first.rate) == (60.0, 20 / 60)
    assert first.oldest_expired_age is not None
    assert DAY - 40 < first.oldest_expired_age <= DAY
    after.advance(HOUR)
    second = purge(store, clock=after, budget=1000.0, timer=timer)
    assert (second.completed, second.seconds, store.sessions) == (True, 120.0, [])


def test_a_limit_over_several_shards(after: FakeClock) -> None:
    """A limit is for the whole run, however many shards it visits."""
    store = _full(Shards())
    report = purge(store, clock=after, limit=15)
    assert (report.deleted, len(store.sessions), report.completed) == (15, 25, False)


def test_a_run_over_a_slow_store_ends(after: FakeClock) -> None:
    """A run over a store whose every call hangs ends five calls after its budget."""
    store, timer = _full(Shards(rate=1000.0)), Timer()
    store.shards = tuple("0123456789abcdef")
    store.plan = lambda call, _: timer.sleep(20.0)
    report = purge(store, clock=after, budget=70.0, timer=timer, sleep=timer.sleep)
    assert not report.completed
    assert report.seconds == timer.now <= 70.0 + 5 * 20.0
    assert report.oldest_expired_age is None


def test_the_oldest_of_all_is_told(after: FakeClock) -> None:
    """Of several shards in which rows are left, the oldest row of all counts."""
    store = _full(Shards(), 4)
    for _ in range(10):  # whose order is another each time
        assert purge(store, clock=after, budget=0.0).oldest_expired_age == DAY


def test_the_oldest_of_some_is_not_told(after: FakeClock) -> None:
    """If not every shard can be asked for its oldest row in time, none is taken for the oldest."""
    store, timer = _full(Shards()), Timer()
    store.plan = lambda call, _: timer.sleep(6.0) if call == "oldest" else None
    report = purge(store, clock=after, budget=0.0, timer=timer)
    assert report.oldest_expired_age is None
    assert timer.now == 12.0


def test_no_page_is_begun_after_a_wait(after: FakeClock) -> None:
    """A run does not wait for its pace past the budget, to begin one more page."""
    store, timer = _full(Shards(rate=1.0), 4 * 3 * PAGE), Timer()
    report = purge(store, clock=after, budget=100.0, timer=timer, sleep=timer.sleep)
    assert (report.deleted, report.seconds) == (PAGE, 0.0)


def test_one_page_of_a_shard_at_a_time(after: FakeClock) -> None:
    """A run that stops within a shard is gone on with in that shard."""
    store, timer = _full(Shards(), 4 * 3 * PAGE), Timer()
    store.plan = lambda call, _: timer.sleep(1.0) if call == "sweep" else None
    deleted = 0
    runs = 0
    while runs < 20:
        report = purge(store, clock=after, budget=1.5, timer=timer)
        runs += 1
        deleted += report.deleted
        assert report.deleted <= 2 * PAGE
        if report.completed:
            break
        after.advance(60.0)
    assert store.sessions == []
    assert 12 * PAGE <= deleted <= 12 * PAGE + 4  # and canaries
    assert runs >= 6


def test_an_interrupt_gives_the_shard_back(after: FakeClock) -> None:
    """A run that is interrupted leaves its shard to the next at once."""
    store = _full(Shards())

    def interrupt(done: int, shards: int, deleted: int) -> None:
        if deleted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purge(store, clock=after, progress=interrupt)
    report = purge(store, clock=after)
    assert (report.shards_taken, report.completed, store.sessions) == (0, True, [])


def test_a_kill_leaves_a_lease_that_ends(after: FakeClock) -> None:
    """A killed worker's shard is left alone for as long as it might live, then swept (P11)."""
    store = _full(Shards())

    def kill(call: str, shard: str) -> None:
        if call == "sweep":
            store.plan = die
            raise Killed

    def die(call: str, shard: str) -> None:
        raise Killed

    store.plan = kill
    with pytest.raises(Killed):
        purge(store, clock=after, budget=480.0)
    store.plan = lambda call, shard: None
    early = purge(store, clock=after)
    assert (early.shards_taken, early.shards_done, early.completed) == (1, 3, False)
    assert early.next == HOUR
    after.advance(HOUR)
    late = purge(store, clock=after)
    assert (late.completed, store.sessions) == (True, [])


@pytest.mark.parametrize("budget", [inf, 9 * DAY, 480.0])
def test_a_lease_of_a_run_without_an_end(after: FakeClock, budget: float) -> None:
    """A shard is one worker's however long its budget, and free an hour after its death at most."""
    store = _full(Shards())
    others: list[Purged] = []

    def kill(call: str, shard: str) -> None:
        if call == "sweep":
            store.plan = lambda call, shard: None
            others.append(purge(store, clock=after))
            store.plan = die
            die(call, shard)

    def die(call: str, shard: str) -> None:
        raise Killed

    store.plan = kill
    with pytest.raises(Killed):
        purge(store, clock=after, budget=budget)
    (other,) = others
    assert (other.shards_taken, other.odd) == (1, 0)
    store.plan = lambda call, shard: None
    after.advance(HOUR)
    late = purge(store, clock=after)
    assert (late.completed, late.odd, store.sessions) == (True, 0, [])


def test_two_workers_share_the_shards(after: FakeClock) -> None:
    """Of two workers at once, each shard has one at a time, and nothing is counted twice."""
    store = _full(Shards())
    others: list[Purged] = []

    def second(call: str, shard: str) -> None:
        if call == "sweep":
            store.plan = lambda call, shard: None
            others.append(purge(store, clock=after))

    store.plan = second
    first = purge(store, clock=after)
    (other,) = others
    assert other.shards_taken == 1
    assert first.deleted + other.deleted == 40
    assert store.sessions == []


def test_a_shard_taken_between_look_and_lease(after: FakeClock) -> None:
    """Of two workers that want the same free shard, the slower leaves it."""
    store = _full(Shards())

    def overtake(call: str, name: str) -> None:
        if call == "write_note" and name.startswith("purge-"):
            store.plan = lambda call, shard: None
            store.notes[name] = Note(b'{"lease": 0.0}', 7)

    store.plan = overtake
    report = purge(store, clock=after)
    assert (report.shards_taken, report.shards_done) == (1, 3)


def test_a_run_begins_at_the_watermark(after: FakeClock) -> None:
    """What an earlier run has deleted is not read again, but for one full pass a day."""
    store = _full(Shards())
    purge(store, clock=after)
    assert {since for _, since in store.since} == {0.0}
    store.since.clear()
    after.advance(HOUR)
    purge(store, clock=after)
    assert {since for _, since in store.since} == {NOW + DAY - GRACE}
    below = store.add(8, NOW + 60)
    for _ in range(22):
        purge(store, clock=after)
        assert below in store.rows
        after.advance(HOUR)
    after.advance(HOUR)
    report = purge(store, clock=after)
    assert report.deleted >= 1
    assert below not in store.rows


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}x",
        b'{"reached": "soon"}',
        b'{"reached": 1e300}',
        b'{"reached": NaN}',
        b'{"reached": Infinity}',
        b'{"surprise": 1}',
        b'{"reached": 1%s}' % (b"0" * 400),
        b'{"reached": %s}' % (b"[" * 100_000),
        b'{"reached": -1e9}',
        b'{"full_pass": 1e300}',
        b'{"canary": 1e300}',
        b'{"lease": Infinity}',
        b"\xff\xfe",
    ],
)
def test_a_wrong_note(data: bytes, after: FakeClock) -> None:
    """A note that cannot be true is counted, and the shard is swept from the beginning."""
    store = _full(Shards())
    purge(store, clock=after)
    late = store.add(0, NOW)
    store.notes["purge-0"] = Note(data, 5)
    report = purge(store, clock=after)
    assert (report.odd, report.completed) == (1, True)
    assert late not in store.rows
    assert purge(store, clock=after).odd == 0


def test_a_lease_from_the_future(after: FakeClock) -> None:
    """A lease that a clock far ahead has given does not keep a shard from being swept."""
    store = _full(Shards())
    mark = {"reached": 0.0, "lease": NOW + 400 * DAY, "full_pass": 0.0, "canary": 0.0}
    store.notes["purge-2"] = Note(json.dumps(mark).encode(), 1)
    assert purge(store, clock=after).completed


def test_a_clock_that_jumps_back(after: FakeClock) -> None:
    """With a clock that has jumped back, nothing is deleted early and nothing is forgotten."""
    store = _full(Shards())
    purge(store, clock=after)
    after.now = NOW - 3 * DAY
    live = store.add(5, NOW - DAY)
    report = purge(store, clock=after)
    assert (report.deleted, store.sessions) == (0, [live])
    after.now = NOW + 3 * DAY
    assert purge(store, clock=after).completed
    assert store.sessions == []


def test_an_index_that_lies(after: FakeClock) -> None:
    """A session that an index calls expired, and that is alive, is spared and counted."""
    store = _full(Shards())
    live = store.add(77, NOW + 9 * DAY, indexed=NOW)
    report = purge(store, clock=after)
    assert (report.spared, store.sessions) == (1, [live])


def test_a_row_that_says_nothing(after: FakeClock) -> None:
    """A row without an expiry is left alone and counted."""
    store = _full(Shards())
    silent = store.add(77, None, indexed=NOW)
    report = purge(store, clock=after)
    assert (report.odd, report.deleted, store.sessions) == (1, 40, [silent])


def test_a_full_pass_by_key(after: FakeClock) -> None:
    """A full purge finds expired rows that the index does not know of."""
    store = Shards()
    hidden = store.add(3, NOW)
    del store.index[hidden]
    live = store.add(4, NOW + 9 * DAY)
    assert purge(store, clock=after).deleted == 0
    report = purge(store, clock=after, full=True)
    assert (report.deleted, store.sessions) == (1, [live])


def test_a_dry_run_of_a_full_pass(after: FakeClock) -> None:
    """A dry run of a full purge reads every row, and deletes none."""
    store = Shards()
    hidden = store.add(3, NOW)
    del store.index[hidden]
    live = store.add(4, NOW + 9 * DAY)
    report = purge(store, clock=after, full=True, dry_run=True)
    assert (report.deleted, report.spared, store.notes) == (1, 1, {})
    assert store.sessions == sorted([hidden, live])


def test_a_page_that_fails(after: FakeClock) -> None:
    """A page that fails is counted, the other shards are swept, and the next run makes it good."""
    store = _full(Shards())

    def fail(call: str, shard: str) -> None:
        if (call, shard) == ("sweep", "2"):
            raise StoreUnavailable("not now")

    store.plan = fail
    report = purge(store, clock=after)
    assert (report.failed, report.shards_done, report.deleted) == (1, 3, 30)
    assert report.error == "StoreUnavailable: not now"
    assert not report.completed
    store.plan = lambda call, shard: None
    assert purge(store, clock=after).completed
    assert store.sessions == []


def test_a_store_that_is_down(after: FakeClock) -> None:
    """A store that is down is not asked once a shard, and nothing is raised."""
    store = _full(Shards())
    calls: list[str] = []

    def down(call: str, shard: str) -> None:
        calls.append(call)
        raise StoreUnavailable("down")

    store.plan = down
    report = purge(store, clock=after)
    assert (report.failed, report.shards_done, report.oldest_expired_age) == (1, 0, None)
    assert calls == ["read_notes"]
    assert report.next == 0


def test_a_store_that_fails_now_and_then(after: FakeClock) -> None:
    """A store of whose calls every other one fails is swept all the same, as far as it goes."""
    store = Shards()
    store.shards = tuple("0123456789")
    calls: list[str] = []

    def fail(call: str, shard: str) -> None:
        if call == "sweep":
            calls.append(shard)
            if len(calls) % 2:
                raise StoreUnavailable("not now")

    store.plan = fail
    report = purge(store, clock=after)
    assert (report.failed, report.shards_done) == (5, 5)


def test_a_store_that_goes_down(after: FakeClock) -> None:
    """A store that goes down on the way is left alone after three calls that failed."""
    store = _full(Shards(rate=100.0))
    calls: list[str] = []

    def down(call: str, shard: str) -> None:
        calls.append(call)
        if call != "read_notes":
            raise StoreUnavailable("down")

    store.plan = down
    report = purge(store, clock=after)
    assert (report.failed, report.shards_done) == (3, 0)
    assert calls == ["read_notes"] + ["write_note"] * 3


def test_canaries(after: FakeClock) -> None:
    """Each shard has a row for the next run to delete, whose age shows if none comes."""
    store = Shards()
    purge(store, clock=after)
    assert len(store.rows) == 4
    after.advance(HOUR)
    assert oldest_expired_age(store, after()) == HOUR
    report = purge(store, clock=after)
    assert (report.deleted, report.stuck, len(store.rows)) == (4, 0, 4)
    assert oldest_expired_age(store, after()) == 0.0


def test_a_canary_that_survives(after: FakeClock) -> None:
    """A sweep that says it deletes and does not is told from one that does."""
    store = Shards()
    purge(store, clock=after)
    store.stale = True
    after.advance(HOUR)
    assert purge(store, clock=after).stuck == 4


def test_a_canary_is_not_yet_due(after: FakeClock) -> None:
    """Runs in quick succession leave the canary for a later one, and nobody is alarmed."""
    store = Shards()
    for _ in range(5):
        assert purge(store, clock=after).stuck == 0
        after.advance(60.0)
    assert len(store.rows) == 4


def test_a_canary_whose_note_is_lost(after: FakeClock) -> None:
    """A canary that nobody has noted down is no alarm, unless the next run finds it as well."""
    store = Shards()
    purge(store, clock=after)
    store.notes.clear()
    assert purge(store, clock=after).stuck == 0
    store.stale = True
    after.advance(HOUR)
    assert purge(store, clock=after).stuck == 4


def test_progress(after: FakeClock) -> None:
    """A caller is told after every page how far the run is."""
    store = _full(Shards())
    seen: list[tuple[int, int, int]] = []
    purge(store, clock=after, progress=lambda *now: seen.append(now))
    assert seen[-1] == (4, 4, 40)
    assert seen == sorted(seen)


def test_a_dry_run_writes_nothing_down(after: FakeClock) -> None:
    """A dry run takes no lease, plants no canary and moves no watermark."""
    store = _full(Shards(rate=1.0))
    report = purge(store, clock=after, dry_run=True, sleep=_no_sleep)
    assert (report.deleted, len(store.rows), store.notes) == (40, 40, {})


def _no_sleep(seconds: float) -> None:
    raise AssertionError("nobody has to wait")


# -- the pace -------------------------------------------------------------------------


def test_the_pace_grows_by_half_every_five_minutes() -> None:
    """Operations are held to the rate, which grows by half after five minutes at it."""
    timer = Timer()
    pace = Pace(500.0, 0.0, timer, timer.sleep)
    rates: list[float] = []
    done = 0
    while timer.now < 3 * EVERY:
        pace.wait()
        pace.spend(500)
        done += 500
        assert pace.rate is not None
        rates.append(pace.rate)
    assert max(rates) <= 500 * GROWTH**3
    expected = 500 * EVERY * (1 + GROWTH + GROWTH**2)
    assert expected * 0.98 < done < expected * 1.02


def test_a_slow_store_does_not_make_the_pace_grow() -> None:
    """A rate that nobody makes use of stays what it is."""
    timer = Timer()
    pace = Pace(500.0, 0.0, timer, timer.sleep)
    for _ in range(1000):
        pace.wait()
        timer.now += 10.0
        pace.spend(500)
    assert (pace.rate, timer.slept) == (500.0, 0.0)


def test_no_pace() -> None:
    """Without a rate nobody waits."""
    pace = Pace(None, 0.0, Timer(), _no_sleep)
    for _ in range(10):
        pace.wait()
        pace.spend(10**9)


def test_a_run_keeps_to_the_pace_of_the_store(after: FakeClock) -> None:
    """A store that asks for a rate is met with it, and the next run goes on where it was."""
    store, timer = _full(Shards(rate=100.0), 4000), Timer()
    first = purge(store, clock=after, timer=timer, sleep=timer.sleep)
    assert first.deleted == 4000
    assert 30.0 <= timer.slept <= 40.0
    kept = json.loads(store.notes["purge-pace"].data)
    assert kept["rate"] == 100.0
    assert 25.0 <= kept["held"] <= 40.0
    store.notes["purge-pace"] = Note(json.dumps({**kept, "rate": 1000.0}).encode(), 9)
    for number in range(4000):
        store.add(number, after() - GRACE + 30)
    after.advance(60.0)
    timer.slept = 0.0
    second = purge(store, clock=after, timer=timer, sleep=timer.sleep)
    assert second.deleted >= 4000
    assert 3.0 <= timer.slept < 5.0
    _full(store, 4000)
    after.advance(DAY)
    timer.slept = 0.0
    purge(store, clock=after, timer=timer, sleep=timer.sleep)
    assert timer.slept >= 30.0


def test_a_store_with_a_pace_and_without_notes(after: FakeClock) -> None:
    """A store that has a rate and keeps no notes is swept at that rate, anew each time."""
    full, timer = _full(Shards(rate=100.0), 4000), Timer()
    store = SimpleNamespace(
        shards=full.shards, sweep_rate=full.sweep_rate, sweep=full.sweep, oldest=full.oldest
    )
    report = purge(store, clock=after, timer=timer, sleep=timer.sleep)
    assert (report.completed, full.rows) == (True, {})
    assert 30.0 <= timer.slept <= 40.0


def test_without_a_ramp_nobody_waits(after: FakeClock) -> None:
    """A run that is told not to ramp up goes as fast as the store."""
    assert purge(_full(Shards(rate=0.001)), clock=after, ramp=False, sleep=_no_sleep).completed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"at": "x", "rate": 1, "held": 1}',
        b"[1]",
        b'{"at": 1800086400, "rate": 500, "held": 1e300}',
        b'{"at": 1800086400, "rate": 500, "held": Infinity}',
        b'{"at": 1800086400, "rate": 500, "held": -1}',
        b'{"at": 1800086400, "rate": 1e300, "held": 1}',
        b'{"at": 1800086400, "rate": NaN, "held": 1}',
        b'{"at": NaN, "rate": 500, "held": 1}',
        b'{"at": 1%s, "rate": 500, "held": 1}' % (b"0" * 400),
        b'{"at": %s}' % (b"[" * 100_000),
    ],
)
def test_a_wrong_note_of_the_pace(data: bytes, after: FakeClock) -> None:
    """A note of the pace that cannot be read is counted, and the run begins slowly."""
    store = _full(Shards(rate=1000.0))
    store.notes["purge-pace"] = Note(data, 3)
    timer = Timer()
    report = purge(store, clock=after, timer=timer, sleep=timer.sleep)
    assert (report.odd, report.deleted) == (1, 40)
