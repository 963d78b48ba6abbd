"""What is known of one session while its request goes on, and a copy of it for another thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

from tieredsession.contracts import Record
from tieredsession.merge import MISSING, Encode, MergeRule, merge

FLASH = "_flash"
CSRF = "_csrf"
LIFETIME = "_lifetime"
PERSISTENT = "_persistent"
DEVICE = "_device"
"""Keys of the session in which its own features keep their data. They are saved, merged
and shown like any other."""


class Imported(NamedTuple):
    """What a session of ours begins with that another framework's cookie held.

    *payload* is all of it but the keys *dropped*, encoded. *kind* is the framework's.
    """

    kind: str
    payload: bytes
    dropped: tuple[str, ...]


class MovingIn:
    """The other frameworks' cookies that came with a request. For the manager.

    *expire* are the lines that delete them. *imported* is what was read from one of them,
    until it is saved; ``None`` if a session of ours came, too.
    """

    __slots__ = ("expire", "imported", "is_over")

    def __init__(self, expire: tuple[str, ...], imported: Imported | None = None) -> None:
        self.expire = expire
        self.imported = imported
        self.is_over = False
        """The session has been saved or ended: the response has to delete those cookies."""


class State:
    """What is known of a session once it has been touched. For the manager.

    *token* and *record* are what the store holds for this visitor, ``None`` if nothing.
    """

    __slots__ = (
        "created",
        "data",
        "ended",
        "force",
        "keep_empty",
        "late",
        "moving",
        "principal",
        "pristine",
        "record",
        "renewed",
        "restarted",
        "set_cookie",
        "stale",
        "token",
        "until",
    )

    def __init__(
        self,
        data: dict[str, Any],
        token: str | None = None,
        record: Record | None = None,
        *,
        stale: bool = False,
    ) -> None:
        self.data = data
        self.token = token
        self.record = record
        self.principal = record.principal if record is not None else None
        self.created = record.created if record is not None else None
        self.stale = stale
        """The visitor sent a cookie that stands for nothing."""
        self.settle()
        self.keep_empty = False
        """A session without data is worth one, too."""
        self.until: Callable[[float], float] | None = None
        """A front end's own rule: when a session that is saved at that time ends, to the second."""
        self.pristine = False
        """``data`` is what the record holds: nobody could change it, so nobody has to look."""
        self.set_cookie: str | None = None
        """What the response has to set, of all that was saved so far."""
        self.late = False
        """The headers have left, and what would be in ``set_cookie`` reaches nobody."""
        self.moving: MovingIn | None = None

    def settle(self) -> None:
        """What the next save was asked to do is done, or void."""
        self.ended = False
        """The saved session is to die; what is in ``data`` now begins another one."""
        self.renewed = False
        """The saved session is to go on under a new id."""
        self.restarted = False
        """The lifetime counts from now."""
        self.force = False
        """Save even if the bytes are the same."""

    def forget(self) -> None:
        """The session is gone, and nothing of it goes on."""
        self.data.clear()
        self.token = self.record = self.principal = self.created = None
        self.settle()

    def absorb(
        self,
        base: Mapping[str, Any],
        theirs: Mapping[str, Any],
        rules: Mapping[str, MergeRule],
        encode: Encode,
    ) -> list[str]:
        """Take in what others made of *base*; the keys that both sides had changed.

        Nothing else of the data is touched, for another thread may be at work on it.
        """
        foreign = [
            key
            for key in {**base, **theirs}
            if base.get(key, MISSING) is not theirs.get(key, MISSING)
        ]
        old, mine, new = (
            {key: side[key] for key in foreign if key in side} for side in (base, self.data, theirs)
        )
        merged, contested = merge(old, mine, new, rules, encode)
        if self.renewed and CSRF not in self.data:
            merged.pop(CSRF, None)  # theirs is the old id's, and known to whoever has that
        for key in foreign:
            if key in merged:
                self.data[key] = merged[key]
            else:
                self.data.pop(key, None)
        return contested

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing worth a session: no data, and nobody's name."""
        return not self.data and self.principal is None and not self.keep_empty


class Fork:
    """A copy of a state, for another thread to save while the state may go on changing.

    Args:
        state: what the request goes on with.
        data: a deep copy of its data.
        rules: for what both sides change.
        encode: tells what changed.
    """

    def __init__(
        self,
        state: State,
        data: dict[str, Any],
        rules: Mapping[str, MergeRule],
        encode: Encode,
    ) -> None:
        self._state = state
        self._before = copy(state)
        self._before.data = data
        self._rules = rules
        self._encode = encode
        self.copy = copy(state)
        self.copy.data = dict(data)
        state.settle()  # what the copy sees to; whatever is asked from now on is asked anew

    def join(self) -> None:
        """Let the state know what became of the copy. What it changed meanwhile is unsaved."""
        state, before, after = self._state, self._before, self.copy
        renamed = before.principal is not None and state.principal != before.principal
        if not (state.ended or renamed):
            if after.is_empty and not before.is_empty:
                state.forget()  # it was ended by somebody else, before these changes
            else:
                state.absorb(before.data, after.data, self._rules, self._encode)
        # Else nothing of the session that was left comes into the one that follows it.
        for name in ("principal", "created"):
            if not state.ended and getattr(state, name) == getattr(before, name):
                setattr(state, name, getattr(after, name))
        for name in ("ended", "renewed", "restarted", "force"):
            setattr(state, name, getattr(state, name) or getattr(after, name))
        state.token, state.record = after.token, after.record
        state.set_cookie, state.stale = after.set_cookie, after.stale
