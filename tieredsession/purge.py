"""The purge: a sweep of what has expired, within a budget, which goes on where it stopped.

A store is swept shard by shard, in a random order, each from the watermark up to which it is
known to be clean (:mod:`tieredsession.marks`), at a pace that the store can stand
(:mod:`tieredsession.pace`).

Expired is terminal, and a store deletes on condition of what it has just read: a session that
is renewed or extended while it is being swept stays. Everything that a run does can be done
twice, so it may be killed at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from random import sample
from typing import Any, cast

from tieredsession.contracts import Observer, ShardedSweep, Sweepable, Swept
from tieredsession.errors import ConfigurationError, StoreError
from tieredsession.events import Purged
from tieredsession.marks import FULL_PASS_EVERY, Mark, Marks
from tieredsession.observers import fan_out
from tieredsession.pace import Pace

BUDGET = 480.0
"""Seconds: two minutes below the ten that App Engine's cron waits for an answer."""

GRACE = 600.0
"""Seconds after its expiry for which a row is left alone. More than a transaction of Datastore
may last (270) and than two clocks of a site may differ by (300)."""

PAGE = 500  # rows; what one commit of Datastore takes
_GIVE_UP_AFTER = 3  # failed calls in a row
_ASK_FOR = 10.0  # seconds after which no further shard is asked for its oldest row
_NEXT = 3600.0  # what examples/ asks of cron


class NothingToSweep(ConfigurationError):
    """The store keeps no rows: its sessions end by themselves."""


def purge(
    store: object,
    *,
    budget: float = BUDGET,
    grace: float = GRACE,
    limit: int | None = None,
    dry_run: bool = False,
    full: bool = False,
    ramp: bool = True,
    observers: Iterable[Observer] = (),
    progress: Callable[[int, int, int], object] | None = None,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Purged:
    """Delete the expired sessions of *store*, as many as the budget allows.

    Several may run at once, and each may be killed at any point.

    After the budget there are at most five calls of the store and, if those are quick, ten
    seconds of asking how much is left: on Datastore two minutes, should each call hang.

    Args:
        store: a session store, or what it is made of.
        budget: seconds after which no further page is begun.
        grace: seconds after its expiry for which a row is left alone, 0 or more.
        limit: rows to delete at most.
        dry_run: delete nothing, write nothing down, and count.
        full: read every row, also those that the index does not know of. It costs a read for
            each session there is, and starts from the beginning each time.
        ramp: keep to 500/50/5 where the store asks for it (:mod:`tieredsession.pace`).
        observers: are told of the result.
        progress: is told shards done, shards in all and rows deleted, after every page.
        clock: seconds since the epoch, UTC.
        timer: monotonic seconds, for the budget.
        sleep: waits for a number of seconds.

    Returns:
        How far it came. A tier that failed is counted there and not raised: the rows are
        still there for the next run.

    Raises:
        NothingToSweep: the store keeps no rows.
        ValueError: *grace* is below 0, where sessions are alive.
    """
    if not grace >= 0:
        raise ValueError(f"a grace of {grace} s")
    run = _Run(
        find_sweepable(store),
        limit=limit,
        dry_run=dry_run,
        full=full,
        progress=progress or (lambda *_: None),
        clock=clock,
        timer=timer,
        sleep=sleep,
    )
    run.sweep(budget, grace, ramp)
    report = run.report()
    observe = fan_out(observers)
    if observe is not None:
        observe(report)
    return report


def oldest_expired_age(store: object, now: float) -> float | None:
    """For how many seconds the oldest expired row of *store* has been expired.

    ``None`` if there is no expired row. A store whose purge runs has a canary in every shard, so
    that this stays near the time between two runs; where it grows, the purge does not run.

    Raises:
        NothingToSweep: the store keeps no rows.
        StoreError: it cannot tell.
    """
    part = find_sweepable(store)
    found = [oldest for shard in part.shards if (oldest := part.oldest(shard)) is not None]
    return now - min(found) if found and min(found) <= now else None


def find_sweepable(store: object) -> Sweepable:
    """What of *store* has rows to sweep: itself, or the part that it calls ``sweepable``."""
    part: object = store
    while part is not None and not hasattr(part, "sweep"):
        part = getattr(part, "sweepable", None)
    if part is None:
        raise NothingToSweep(
            f"{type(store).__name__} keeps no rows: its sessions end by themselves, and there is "
            "nothing to purge"
        )
    return cast("Sweepable", part)


def as_dict(report: Purged) -> dict[str, Any]:
    """*report* for JSON, with figures that a person can read."""
    return {
        name: round(value, 3) if type(value) is float else value
        for name, value in asdict(report).items()
    }


@dataclass
class _Run:
    """One run over the shards of a store."""

    store: Sweepable
    limit: int | None
    dry_run: bool
    full: bool
    progress: Callable[[int, int, int], object]
    clock: Callable[[], float]
    timer: Callable[[], float]
    sleep: Callable[[float], None]

    def __post_init__(self) -> None:
        self._sharded: ShardedSweep | None = None
        if hasattr(self.store, "read_notes"):
            self._sharded = cast("ShardedSweep", self.store)
        self._marks: Marks | None = None
        self._begin = self._end = self.timer()
        self._until = 0.0
        self._pace = Pace(None, 0.0, self.timer, self.sleep)
        self._pages = Swept(0, 0, 0, 0, 0.0, None)
        self._done = self._taken = self._stuck = 0
        self._failed = self._in_a_row = 0
        self._error: str | None = None
        self._left: list[str] = []  # shards in which something is left

    def sweep(self, budget: float, grace: float, ramp: bool) -> None:
        """Visit every shard that the budget allows."""
        self._end = self._begin + budget
        self._until = self.clock() - grace
        shards = list(self.store.shards)
        if self._sharded is not None and not self.dry_run:
            try:
                self._marks = Marks(self._sharded, self.clock)
            except StoreError as error:
                self._fail(error)
                self._left = shards
                return
        if ramp and not self.dry_run and self.store.sweep_rate is not None:
            self._take_up_pace(self.store.sweep_rate)
        for shard in sample(shards, len(shards)):
            if self._may_go_on():
                self._visit(shard)
            else:
                self._left.append(shard)
        self._put_down_pace()

    def report(self) -> Purged:
        total = len(self.store.shards)
        completed = self._done == total
        deleted = self._pages.deleted
        if self.dry_run and self.limit is not None and deleted > self.limit:
            deleted, completed = self.limit, False  # a store may count a whole shard at once
        oldest = None if completed else self._oldest_left()
        seconds = self.timer() - self._begin
        return Purged(
            scanned=self._pages.scanned,
            deleted=deleted,
            spared=self._pages.spared,
            odd=self._pages.odd + (0 if self._marks is None else self._marks.odd),
            failed=self._failed,
            error=self._error,
            stuck=self._stuck,
            shards=total,
            shards_done=self._done,
            shards_taken=self._taken,
            oldest_expired_age=oldest,
            seconds=seconds,
            rate=deleted / seconds if seconds > 0 else 0.0,
            completed=completed,
            next=0.0 if self._left or (self.dry_run and not completed) else _NEXT,
            dry_run=self.dry_run,
        )

    def _may_go_on(self) -> bool:
        if self._in_a_row >= _GIVE_UP_AFTER:
            return False
        if self.limit is not None and self._pages.deleted >= self.limit:
            return False
        return self.timer() < self._end

    def _fail(self, error: StoreError) -> None:
        self._failed += 1
        self._in_a_row += 1
        self._error = f"{type(error).__name__}: {error}"

    # -- one shard --------------------------------------------------------------------

    def _visit(self, shard: str) -> None:
        try:
            if self._sharded is None or self._marks is None:
                done = self._go_through(shard, Mark(), 0.0)
            else:
                found = self._go_through_mine(self._sharded, self._marks, shard)
                if found is None:
                    self._taken += 1
                    return
                done = found
        except StoreError as error:
            self._fail(error)
            done = False
        if done:
            self._done += 1
            self.progress(self._done, len(self.store.shards), self._pages.deleted)
        else:
            self._left.append(shard)

    def _go_through_mine(self, store: ShardedSweep, marks: Marks, shard: str) -> bool | None:
        """Sweep a shard under its lease; whether it is done, ``None`` if another has it."""
        held = marks.take(shard, self._end - self.timer())
        if held is None:
            return None
        mark, now = held.mark, self.clock()
        from_the_start = self.full or now - mark.full_pass >= FULL_PASS_EVERY
        try:
            done = self._go_through(shard, mark, 0.0 if from_the_start else mark.reached)
            if done:
                if from_the_start:
                    mark.full_pass = now
                self._look_after_canary(store, shard, mark, now)
        except BaseException:
            with suppress(StoreError):
                marks.give_back(shard, held)
            raise
        marks.give_back(shard, held)
        return done

    def _go_through(self, shard: str, mark: Mark, since: float) -> bool:
        """Sweep page by page, and move the mark along; whether the shard is done."""
        after = None
        while self._may_go_on() and self._pace.wait(self._end):
            page = self._page(shard, since, after)
            self._in_a_row = 0
            self._pages = _sum(self._pages, page)
            self._pace.spend(page.deleted)
            mark.reached = max(mark.reached, page.reached)
            self.progress(self._done, len(self.store.shards), self._pages.deleted)
            after = page.after
            if after is None:
                return True
        return False

    def _page(self, shard: str, since: float, after: str | None) -> Swept:
        size = PAGE if self.limit is None else min(PAGE, self.limit - self._pages.deleted)
        if self.full and self._sharded is not None:
            return self._sharded.walk(shard, self._until, size, after, dry_run=self.dry_run)
        return self.store.sweep(shard, since, self._until, size, after, dry_run=self.dry_run)

    def _look_after_canary(self, store: ShardedSweep, shard: str, mark: Mark, now: float) -> None:
        """Put out the next one once the sweep has gone past the one before."""
        if mark.canary >= mark.reached:
            return
        if store.plant(shard, now):
            mark.canary = now
        elif mark.canary:
            self._stuck += 1
        else:
            mark.canary = now  # its note was lost; the next run will tell

    # -- beside the shards ------------------------------------------------------------

    def _oldest_left(self) -> float | None:
        """How long the oldest row has been expired that this run should have deleted.

        ``None`` as well if not every shard could be asked: of some, it would not be the oldest.
        """
        oldest = self._until
        begin = self.timer()
        if self._in_a_row:
            return None  # the tier does not answer
        try:
            for shard in self._left:
                if self.timer() - begin >= _ASK_FOR:
                    return None
                found = self.store.oldest(shard)
                oldest = oldest if found is None else min(oldest, found)
        except StoreError:
            return None
        return self.clock() - oldest if oldest < self._until else None

    def _take_up_pace(self, rate: float) -> None:
        held = 0.0
        if self._marks is not None:
            rate, held = self._marks.pace(rate)
        self._pace = Pace(rate, held, self.timer, self.sleep)

    def _put_down_pace(self) -> None:
        if self._marks is None or self._pace.rate is None or self._in_a_row:
            return
        try:
            self._marks.keep_pace(self._pace.rate, self._pace.held)
        except StoreError as error:
            self._fail(error)


def _sum(one: Swept, other: Swept) -> Swept:
    return Swept(
        one.scanned + other.scanned,
        one.deleted + other.deleted,
        one.spared + other.spared,
        one.odd + other.odd,
        0.0,
        None,
    )
