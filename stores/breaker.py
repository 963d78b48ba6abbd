"""One dead cache is found out once, not once a request; what it missed is made good first.

A circuit breaker for one server. While it is open nobody calls the server; then one caller
probes. A process that wrote sessions in the meantime could not mark their cached copies, so
it remembers their keys, and marks them before anybody trusts that server again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import uniform

from tieredsession.errors import CacheError, CacheTimeout

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
MAX_REMEMBERED = 1000


class Breaker:
    """The state of one cache server, as this process sees it. Thread-safe.

    Args:
        clock: monotonic seconds.

    A time-out opens it at once: finding out again would cost the same time again. Any other
    failure (refused, reset, garbage) is quick, so one more call may try before it opens.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._probing = False
        self._closed = True
        self._opens_at = 0.0
        self._pause = _FIRST_PAUSE
        self._missed: dict[str, int] = {}
        self._serial = 0
        self._overflowed = False
        self.is_calm = True
        """Closed, with no failure since the last answer and nothing to make good: just call."""

    @property
    def is_closed(self) -> bool:
        """Whether the server is in use."""
        return self._closed

    def may_probe(self) -> bool:
        """Whether this caller is the one to find out if the server is back."""
        with self._lock:
            if self._probing or self._clock() < self._opens_at:
                return False
            self._probing = True
            return True

    def succeeded(self) -> None:
        """A call was answered."""
        with self._lock:
            self._failures = 0
            # A late answer to a call from before it opened says nothing of the server.
            self.is_calm = self._closed and not self._missed

    def failed(self, error: CacheError) -> float | None:
        """A call failed; the seconds for which the breaker opens now, if it does."""
        with self._lock:
            self._failures += 1
            self.is_calm = False
            was_probe, self._probing = self._probing, False
            if self._closed:
                if self._failures < 2 and not isinstance(error, CacheTimeout):
                    return None
                self._pause = _FIRST_PAUSE
            elif was_probe:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            else:
                return None  # one of several calls that were under way when it opened
            self._closed = False
            # Jittered, so that the processes of a site do not probe in step.
            seconds = self._pause * uniform(0.8, 1.2)  # noqa: S311 - spreads, guards nothing
            self._opens_at = self._clock() + seconds
            return seconds

    def interrupted(self) -> None:
        """A call came to no end. If it was the probe, another caller may probe."""
        with self._lock:
            self._probing = False

    def forked(self) -> None:
        """Go on in a child, where nobody is left to end a probe or to release the lock."""
        self._lock = threading.Lock()
        self._probing = False

    def missed(self, key: str) -> None:
        """The cached copy of *key* is out of date and could not be marked."""
        with self._lock:
            self.is_calm = False
            if key in self._missed or len(self._missed) < MAX_REMEMBERED:
                self._serial += 1
                self._missed[key] = self._serial
            else:
                self._overflowed = True

    def to_make_good(self) -> list[tuple[str, int]]:
        """The keys to mark, each with a serial number for :meth:`made_good`."""
        with self._lock:  # other threads make some of them good meanwhile
            return list(self._missed.items())

    def made_good(self, key: str, serial: int) -> None:
        """*key* was marked; unless it was missed once more, that is done."""
        with self._lock:
            if self._missed.get(key) == serial:
                del self._missed[key]

    def take_overflow(self) -> bool:
        """Whether more was missed than could be remembered; asked once."""
        with self._lock:
            overflowed, self._overflowed = self._overflowed, False
            return overflowed

    def close(self) -> None:
        """The server is back, and everything it missed has been made good."""
        with self._lock:
            self._failures = 0
            self._probing = False
            self._closed = True
