"""What the workers of a purge write down in the store, for the next run and for each other.

A note for each shard, its *mark*, has

- a *watermark*, so that no run reads again what an earlier one has deleted. Deleted rows stay
  in an index for a while, and stepping over them is what makes an "oldest first, again and again"
  sweep slower the longer it runs (Firestore's best practices);
- a *lease*, so that of several workers one at a time is at a shard. A worker that dies leaves a
  lease behind, which ends by itself;
- the time of the last *full pass* from the very beginning, once a day, for rows that came to lie
  below the watermark;
- the time of the *canary*: a row that the next sweep has to delete. Where it survives, the sweep
  does not do what it says. And because there is one in every shard, the age of the oldest expired
  row tells whether the purge runs at all, also on a site that nobody visits.

One more note has the pace. A note that cannot be true is as none: a shard without a mark costs
one more pass from the beginning, and a run without a pace begins slowly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import NamedTuple

from tieredsession.contracts import Note, ShardedSweep
from tieredsession.pace import EVERY

FULL_PASS_EVERY = 24 * 3600.0
LONGEST_LEASE = 3600.0
"""Seconds. Who is longer than that at a shard may meet another worker there: no harm is done."""

_LEASE_MARGIN = 120.0  # a page that was begun within the budget, a canary and a note
_AHEAD = 2 * 3600.0  # what is further in the future than this was never true
_PACE = "purge-pace"
_PACE_FORGOTTEN_AFTER = 2 * 3600.0
_FASTEST = 1e6  # operations a second: an hour and a half of growth


@dataclass
class Mark:
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
    def from_bytes(cls, data: bytes, now: float) -> Mark | None:
        """``None`` for bytes that are not a mark, or not one that was made before *now*."""
        try:
            mark = cls(**{name: float(value) for name, value in json.loads(data).items()})
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        past = (mark.reached, mark.full_pass, mark.canary)
        return mark if isfinite(mark.lease) and all(-1 < at < now + _AHEAD for at in past) else None


class Held(NamedTuple):
    """The mark of a shard whose lease is ours, and the version of its note."""

    mark: Mark
    version: int


class Marks:
    """The notes of a store, as they were when a run began.

    Args:
        store: whose they are.
        clock: seconds since the epoch, UTC.

    Attributes:
        odd: how many notes could not be true.

    Raises:
        StoreError: they could not be read.
    """

    def __init__(self, store: ShardedSweep, clock: Callable[[], float]) -> None:
        self.odd = 0
        self._store = store
        self._clock = clock
        self._notes = store.read_notes([_PACE, *map(_name, store.shards)])

    def take(self, shard: str, seconds: float) -> Held | None:
        """Take the lease of *shard* for some *seconds*; ``None`` if another worker has it."""
        now = self._clock()
        note = self._notes.get(_name(shard))  # if it has changed, the lease is refused
        mark = None if note is None else Mark.from_bytes(note.data, now)
        if note is not None and mark is None:
            self.odd += 1
        mark = mark or Mark()
        if now < mark.lease < now + _AHEAD:
            return None
        mark.lease = now + min(max(0.0, seconds) + _LEASE_MARGIN, LONGEST_LEASE)
        version = self._write(_name(shard), mark.to_bytes(), note)
        return None if version is None else Held(mark, version)

    def give_back(self, shard: str, held: Held) -> None:
        """Write down how far it is, and leave the shard to others."""
        held.mark.lease = 0.0
        self._store.write_note(_name(shard), held.mark.to_bytes(), held.version)

    def pace(self, rate: float) -> tuple[float, float]:
        """The rate of the last run and the seconds at it, unless that is long ago.

        It is *rate* at least, and 0 seconds.
        """
        note = self._notes.get(_PACE)
        if note is None:
            return rate, 0.0
        try:
            kept = json.loads(note.data)
            at, kept_rate, held = (float(kept[name]) for name in ("at", "rate", "held"))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            at = kept_rate = held = -1.0
        if not (isfinite(at) and 0 < kept_rate <= _FASTEST and 0 <= held < EVERY):
            self.odd += 1
            return rate, 0.0
        if abs(self._clock() - at) >= _PACE_FORGOTTEN_AFTER:
            return rate, 0.0
        return max(rate, kept_rate), held

    def keep_pace(self, rate: float, held: float) -> None:
        """Write down the pace. Of two workers that end together, one is remembered."""
        kept = {"rate": rate, "held": held, "at": self._clock()}
        self._write(_PACE, json.dumps(kept).encode(), self._notes.get(_PACE))

    def _write(self, name: str, data: bytes, note: Note | None) -> int | None:
        return self._store.write_note(name, data, None if note is None else note.version)


def _name(shard: str) -> str:
    return f"purge-{shard}"
