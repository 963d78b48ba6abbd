"""How long sessions live, and when that is to be written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tieredsession.contracts import Record
from tieredsession.cookies import MAX_AGE
from tieredsession.session import MAX_LIFETIME
from tieredsession.state import LIFETIME, PERSISTENT, State


@dataclass(frozen=True)
class Lifetimes:
    """How long sessions live. Seconds.

    Args:
        idle: from the last use, give or take *refresh*.
        absolute: from the creation, whatever the use; ``None`` for no limit.
        refresh: the share of *idle* that has to pass before a use is written down: with
            0.25 an unused session ends between 75 % and 100 % of *idle*. Of an *idle* beyond
            what browsers keep, it is the share of that: whoever comes now and then stays.
        persistent: whether cookies outlive the browser.
    """

    idle: int = 14 * 24 * 3600
    absolute: int | None = None
    refresh: float = 0.25
    persistent: bool = False

    def idle_of(self, data: Mapping[str, Any]) -> int:
        """Seconds of idleness that the session with this *data* survives."""
        own = data.get(LIFETIME)
        return own if type(own) is int and 0 < own <= MAX_LIFETIME else self.idle

    def is_over(self, record: Record, now: float) -> bool:
        """Whether the absolute limit has ended a session, also one that began without it."""
        return self.absolute is not None and now >= record.created + self.absolute

    def expiry(self, state: State, created: float, now: float) -> float:
        """When a session that is used *now* ends, in whole seconds."""
        if state.until is not None:
            expires = state.until(now)
        else:
            idle = self.idle_of(state.data)
            expires = float(int(now) + idle)
            if state.late and not state.restarted and state.data.get(PERSISTENT, self.persistent):
                expires -= int(self._step(idle))  # so that the next page extends the cookie, too
        absolute = self.absolute
        return expires if absolute is None else min(expires, created + absolute)

    def is_due(self, state: State, record: Record, expires: float, now: float) -> bool:
        """Whether the expiry has fallen behind (or too far ahead) enough to be written."""
        if state.restarted:
            return True
        if expires == record.expires:
            return False
        if state.until is not None:
            return True
        idle = self.idle_of(state.data)
        step = self._step(idle)
        if expires > record.expires:
            return now >= record.expires - idle + step
        return record.expires - expires > step

    def _step(self, idle: int) -> float:
        """Seconds of use that need not be written down."""
        return min(idle, MAX_AGE) * self.refresh
