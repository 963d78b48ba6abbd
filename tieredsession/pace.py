"""How fast to write: the 500/50/5 rule of Firestore and Datastore.

At most 500 operations a second on a part of the key space that was quiet, and half as many
again after every five minutes at that rate (Google's best practices for Datastore, "Ramping
up traffic"). Whoever deletes faster than that meets contention and delays, and so does the
application beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

GROWTH = 1.5
EVERY = 300.0
"""Seconds at a rate before it grows."""


class Pace:
    """Holds operations back to *rate* a second, which grows while it is made use of.

    Args:
        rate: operations a second, ``None`` for no limit.
        held: seconds that were already spent at this rate.
        timer: monotonic seconds.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        rate: float | None,
        held: float,
        timer: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.rate = rate
        self.held = held
        self._timer = timer
        self._sleep = sleep
        self._begun = self._free = timer()  # when the last operations began; when they are paid for
        self._cost = 0.0

    def wait(self, end: float = inf) -> bool:
        """Until the operations so far are within the rate. The next begin now.

        False, without any wait, if that is not before *end*.
        """
        delay = self._free - self._timer()
        if delay > 0:
            if self._free >= end:
                return False
            self._sleep(delay)
            self._grow(self._cost)  # the rate is what holds it back
        self._begun = self._timer()
        return True

    def spend(self, operations: int) -> None:
        """Take into account how many operations there were since :meth:`wait`."""
        if self.rate is not None:
            self._cost = operations / self.rate
            self._free = self._begun + self._cost

    def _grow(self, seconds: float) -> None:
        self.held += seconds
        while self.rate is not None and self.held >= EVERY:
            self.held -= EVERY
            self.rate *= GROWTH
