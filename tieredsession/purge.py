"""The purge: a sweep of what has expired, within a budget, which goes on where it stopped.

A store is swept shard by shard, in a random order, each from the watermark up to which it is
known to be clean. What a worker knows of a shard, it writes down in the store itself:

- a *watermark*, so that no run reads again what an earlier one has deleted. Deleted rows stay
  in an index for a while, and stepping over them is what makes an "oldest first, again and again"
  sweep slower the longer it runs (Firestore's best practices);
- a *lease*, so that of several workers one at a time is at a shard. A worker that dies leaves a
  lease behind, which ends by itself;
- the time of the last *full pass* from the very beginning, once a day, for rows that came to lie
  below the watermark;
- a *canary*: a row that the next sweep has to delete. Where it survives, the sweep does not do
  what it says. And because there is one in every shard, the age of the oldest expired row tells
  whether the purge runs at all, also on a site that nobody visits.

Expired is terminal, and a store deletes on condition of what it has just read: a session that
is renewed or extended while it is being swept stays. Everything that a run does can be done
twice, so it may be killed at any point.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from random import sample
from typing import Any, cast

from tieredsession.contracts import Note, Observer, ShardedSweep, Sweepable, Swept
from tieredsession.errors import ConfigurationError, StoreError
from tieredsession.events import Purged
from tieredsession.observers import fan_out
from tieredsession.pace import Pace

BUDGET = 480.0
"""Seconds: below the ten minutes that App Engine's cron waits for an answer."""

GRACE = 600.0
"""Seconds after its expiry for which a row is left alone. More than a transaction of Datastore
may last (270) and than two clocks of a site may differ by (300)."""

PAGE = 500  # rows; what one commit of Datastore takes
_FULL_PASS_EVERY = 24 * 3600.0
_LEASE_MARGIN = 120.0  # longer than any call may take that was begun within the budget
_GIVE_UP_AFTER = 3  # failed calls in a row
_LONGEST_LEASE = 24 * 3600.0  # one that ends later is of a clock that was turned back
_PACE_FORGOTTEN_AFTER = 2 * 3600.0
_AHEAD = 2 * 3600.0  # a watermark further in the future than this was never one
_PACE = "purge-pace"
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

    Args:
        store: a session store, or what it is made of.
        budget: seconds after which no further page is begun.
        grace: seconds after its expiry for which a row is left alone.
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
    """
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
        if hasattr(self.store, "read_notes") and not self.dry_run:
            self._sharded = cast("ShardedSweep", self.store)
        self._begin = self._end = self.timer()
        self._until = 0.0
        self._pace = Pace(None, 0.0, self.timer, self.sleep)
        self._pages = Swept(0, 0, 0, 0, 0.0, None)
        self._done = self._taken = self._stuck = self._odd = 0
        self._failed = self._in_a_row = 0
        self._error: str | None = None
        self._left: list[str] = []  # shards in which something is left
        self._notes: dict[str, Note] = {}

    def sweep(self, budget: float, grace: float, ramp: bool) -> None:
        """Visit every shard that the budget allows."""
        self._end = self._begin + budget
        self._until = self.clock() - grace
        shards = list(self.store.shards)
        if self._sharded is not None:
            try:
                self._notes = self._sharded.read_notes([_PACE, *map(_note, shards)])
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
        seconds = self.timer() - self._begin
        total = len(self.store.shards)
        completed = self._done == total
        return Purged(
            scanned=self._pages.scanned,
            deleted=self._pages.deleted,
            spared=self._pages.spared,
            odd=self._pages.odd + self._odd,
            failed=self._failed,
            error=self._error,
            stuck=self._stuck,
            shards=total,
            shards_done=self._done,
            shards_taken=self._taken,
            oldest_expired_age=None if completed else self._oldest_left(),
            seconds=seconds,
            rate=self._pages.deleted / seconds if seconds > 0 else 0.0,
            completed=completed,
            next=_NEXT if completed else 0.0,
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
            if self._sharded is None:
                done = self._go_through(shard, _Mark(), 0.0)
            else:
                held = self._take(self._sharded, shard)
                if held is None:
                    self._taken += 1
                    return
                done = self._go_through_mine(self._sharded, shard, *held)
        except StoreError as error:
            self._fail(error)
            done = False
        if done:
            self._done += 1
            self.progress(self._done, len(self.store.shards), self._pages.deleted)
        else:
            self._left.append(shard)

    def _go_through_mine(self, store: ShardedSweep, shard: str, mark: _Mark, version: int) -> bool:
        now = self.clock()
        from_the_start = self.full or now - mark.full_pass >= _FULL_PASS_EVERY
        mark.lease = 0.0
        try:
            done = self._go_through(shard, mark, 0.0 if from_the_start else mark.reached)
            if done:
                if from_the_start:
                    mark.full_pass = now
                self._look_after_canary(store, shard, mark, now)
        except BaseException:
            with suppress(StoreError):
                store.write_note(_note(shard), mark.to_bytes(), version)
            raise
        store.write_note(_note(shard), mark.to_bytes(), version)
        return done

    def _go_through(self, shard: str, mark: _Mark, since: float) -> bool:
        """Sweep page by page, and move the mark along; whether the shard is done."""
        after = None
        while self._may_go_on():
            self._pace.wait()
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
            return self._sharded.walk(shard, self._until, size, after)
        return self.store.sweep(shard, since, self._until, size, after, dry_run=self.dry_run)

    def _oldest_left(self) -> float | None:
        """How long the oldest row has been expired that this run should have deleted."""
        oldest = None
        try:
            for shard in self._left:
                found = self.store.oldest(shard)
                if found is not None and found < self._until and found < (oldest or self._until):
                    oldest = found
        except StoreError:
            return None
        return None if oldest is None else self.clock() - oldest

    # -- what is written down ---------------------------------------------------------

    def _take(self, store: ShardedSweep, shard: str) -> tuple[_Mark, int] | None:
        """The mark of a shard and the version of its note, with the lease ours."""
        now = self.clock()
        note = self._notes.get(_note(shard))  # if it has changed, the lease is refused
        mark = None if note is None else _Mark.from_bytes(note.data)
        if note is not None and (mark is None or mark.reached > self._until + _AHEAD):
            # It cannot be true: as if there were none, which costs a full pass.
            self._odd += 1
            mark = None
        mark = mark or _Mark()
        if now < mark.lease < now + _LONGEST_LEASE:
            return None
        mark.lease = now + max(0.0, self._end - self.timer()) + _LEASE_MARGIN
        version = store.write_note(
            _note(shard), mark.to_bytes(), None if note is None else note.version
        )
        return None if version is None else (mark, version)

    def _look_after_canary(self, store: ShardedSweep, shard: str, mark: _Mark, now: float) -> None:
        """Put out the next one once the sweep has gone past the one before."""
        if mark.canary >= mark.reached:
            return
        if store.plant(shard, now):
            mark.canary = now
        elif mark.canary:
            self._stuck += 1
        else:
            mark.canary = now  # its note was lost; the next run will tell

    def _take_up_pace(self, rate: float) -> None:
        """Go on at the pace of the last run, unless that is long ago."""
        held = 0.0
        note = self._notes.get(_PACE)
        if note is not None:
            try:
                kept = json.loads(note.data)
                if 0 <= self.clock() - kept["at"] < _PACE_FORGOTTEN_AFTER:
                    rate, held = max(rate, float(kept["rate"])), max(0.0, float(kept["held"]))
            except (ValueError, KeyError, TypeError):
                self._odd += 1
        self._pace = Pace(rate, held, self.timer, self.sleep)

    def _put_down_pace(self) -> None:
        if self._sharded is None or self._pace.rate is None:
            return
        kept = {"rate": self._pace.rate, "held": self._pace.held, "at": self.clock()}
        note = self._notes.get(_PACE)
        version = None if note is None else note.version
        try:
            # Of two workers that end together, one is remembered; either will do.
            self._sharded.write_note(_PACE, json.dumps(kept).encode(), version)
        except StoreError as error:
            self._fail(error)


@dataclass
class _Mark:
    """What is known of a shard. Times are seconds UTC, 0 for never.

    *reached*: what expired before is gone. *lease*: until when somebody is at it. *full_pass*:
    when a sweep from the beginning was last done. *canary*: when the one that is there expired.
    """

    reached: float = 0.0
    lease: float = 0.0
    full_pass: float = 0.0
    canary: float = 0.0

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> _Mark | None:
        """``None`` for bytes that are not a mark."""
        try:
            mark = cls(**{name: float(value) for name, value in json.loads(data).items()})
        except (ValueError, TypeError, AttributeError):
            return None
        return mark if all(map(isfinite, asdict(mark).values())) else None


def _sum(one: Swept, other: Swept) -> Swept:
    return Swept(
        one.scanned + other.scanned,
        one.deleted + other.deleted,
        one.spared + other.spared,
        one.odd + other.odd,
        0.0,
        None,
    )


def _note(shard: str) -> str:
    return f"purge-{shard}"
