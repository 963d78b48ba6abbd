"""``request.session``: a dict that costs nothing until it is touched."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, MutableMapping
from copy import deepcopy
from datetime import date, datetime, timedelta
from typing import Any, NoReturn, Protocol

from tieredsession.contracts import Codec, Record
from tieredsession.errors import HeadersSentError
from tieredsession.state import CSRF, DEVICE, FLASH, LIFETIME, PERSISTENT, Imported, State
from tieredsession.tokens import encode_base64

MAX_LIFETIME = 10 * 366 * 24 * 3600
"""Seconds; ten years. Expiries have to fit into 32 bits, which end in 2106."""

MAX_FLASHES = 50
"""Messages of one queue; beyond it, the oldest are dropped."""

# Values of these types cannot change after they were handed out.
_FIXED = frozenset({str, int, float, bool, type(None), bytes, datetime, date})


class SessionIO(Protocol):
    """What a session asks of its manager."""

    codec: Codec

    def load(self, cookie_header: str | None) -> State: ...

    def save(self, state: State) -> None: ...

    def save_late(self, state: State) -> None: ...

    def is_modified(self, state: State) -> bool: ...

    def needs_cookie(self, state: State) -> bool: ...


class Session(MutableMapping[str, Any]):
    """The session of one visitor: a dict with string keys, kept between requests.

    Nothing is read before the first access and nothing is written that did not change.
    Changes inside nested values are found; no flag has to be set. A value that cannot be
    stored is refused when it is assigned.

    Raises:
        StoreError: on first access or save, if a tier could not answer. The session is
            then unknown, not empty, and nothing is written over it.
    """

    __slots__ = ("__weakref__", "_header", "_io", "_state", "_status")

    def __init__(self, io: SessionIO, cookie_header: str | None) -> None:
        self._io = io
        self._header = cookie_header
        # Front ends look at these two: an untouched session costs them not even a call.
        self._status: int | None = None  # of the response, once its headers have left
        self._state: State | None = None  # once it was touched

    # -- the dict ---------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        state = self._state or self._touch()
        value = state.data[key]
        if type(value) not in _FIXED:
            state.pristine = False
        return value

    def get(self, key: str, default: Any = None) -> Any:
        state = self._state or self._touch()
        value = state.data.get(key, default)
        if type(value) not in _FIXED:
            state.pristine = False
        return value

    def __contains__(self, key: object) -> bool:
        return key in (self._state or self._touch()).data

    def __iter__(self) -> Iterator[str]:
        return iter((self._state or self._touch()).data)

    def __len__(self) -> int:
        return len((self._state or self._touch()).data)

    def __setitem__(self, key: str, value: Any) -> None:
        if type(key) is not str:
            if not isinstance(key, str):
                raise TypeError(f"a session key is a str, and {key!r} is a {type(key).__name__}")
            key = str.__str__(key)
        self._io.codec.check(key, value)
        self._changeable().data[key] = value

    def __delitem__(self, key: str) -> None:
        del self._changeable().data[key]

    def clear(self) -> None:
        """Remove all data, and whose session it is. What stays empty is deleted at the end."""
        state = self._changeable()
        if PERSISTENT in state.data:
            state.restarted = True  # so that the cookie follows the site's own rule again
        state.data.clear()
        state.principal = None

    def copy(self) -> dict[str, Any]:
        """The data as a plain dict, which the session no longer follows, at any depth."""
        return deepcopy((self._state or self._touch()).data)

    # -- what is known about it -------------------------------------------------------

    @property
    def accessed(self) -> bool:
        """Whether anything was read or written yet; asking does not count."""
        return self._state is not None

    @property
    def headers_sent(self) -> bool:
        """Whether it is too late for a cookie."""
        return self._status is not None

    @property
    def new(self) -> bool:
        """Whether the store holds nothing for this visitor."""
        return (self._state or self._touch()).token is None

    @property
    def modified(self) -> bool:
        """Whether there is anything to save. Assign ``True`` to save in any case."""
        return self._state is not None and self._io.is_modified(self._state)

    @modified.setter
    def modified(self, value: bool) -> None:
        self._changeable().force = bool(value)

    @property
    def created(self) -> float | None:
        """When the session began, seconds UTC, or ``None`` before it was saved."""
        return (self._state or self._touch()).created

    @property
    def expires(self) -> float | None:
        """When the session ends if it is not used, seconds UTC; ``None`` before a save."""
        record = (self._state or self._touch()).record
        return None if record is None else record.expires

    @property
    def principal(self) -> str | None:
        """Whose session this is, as given to :meth:`bind`."""
        return (self._state or self._touch()).principal

    @property
    def lifetime(self) -> int | None:
        """Seconds of idleness that this session survives, or ``None`` for the site's own.

        Assigning a number of seconds or a timedelta counts from this request on.
        """
        value: int | None = self.get(LIFETIME)
        return value

    @lifetime.setter
    def lifetime(self, value: float | timedelta | None) -> None:
        state = self._changeable(needs_cookie=True)
        if value is None:
            state.data.pop(LIFETIME, None)
        else:
            seconds = value.total_seconds() if isinstance(value, timedelta) else value
            if not 1 <= seconds <= MAX_LIFETIME:
                raise ValueError(
                    f"a lifetime is from 1 to {MAX_LIFETIME} seconds; destroy() ends a session"
                )
            state.data[LIFETIME] = int(seconds)
        state.restarted = True

    @property
    def persistent(self) -> bool | None:
        """Whether the cookie outlives the browser; ``None`` for the site's own rule."""
        value: bool | None = self.get(PERSISTENT)
        return value

    @persistent.setter
    def persistent(self, value: bool | None) -> None:
        state = self._changeable(needs_cookie=True)
        if value is None:
            state.data.pop(PERSISTENT, None)
        else:
            state.data[PERSISTENT] = bool(value)
        state.restarted = True

    # -- its life ---------------------------------------------------------------------

    def renew(self, *, restart: bool = False) -> None:
        """Go on under a new id: do this whenever a visitor's rights change.

        The data, the creation time and the expiry stay; the CSRF token changes with the
        id. The old id is dead in every tier before the new one is saved.

        Args:
            restart: also let both lifetimes, idle and absolute, begin anew, as after the
                visitor has proved again who they are (NIST SP 800-63B-4, 5.2).
        """
        state = self._changeable(needs_cookie=True)
        state.renewed = True
        state.data.pop(CSRF, None)
        if restart:
            state.created = None
            state.restarted = True

    def destroy(self) -> None:
        """End the session: its id is dead in every tier before the response leaves.

        What is assigned afterwards begins another session, with another id. If another
        request has renewed this session in the meantime, its successor lives on: end all
        sessions of a user with ``SessionManager.end_all``.
        """
        state = self._changeable(needs_cookie=True)
        state.data.clear()
        state.principal = None
        state.created = None
        state.ended = True

    def bind(self, principal: str | None, *, device: str | None = None) -> None:
        """Say whose session this is, at login; ``None`` at a logout that keeps the data.

        A change of principal is a change of rights, so the id changes too, and both
        lifetimes begin anew. Data of another principal does not pass on: it is cleared.

        Args:
            principal: any stable name of the user, such as a primary key as text.
            device: what to call this session in a list of the user's sessions.
        """
        if principal is not None and (type(principal) is not str or not principal):
            raise TypeError("a principal is a non-empty str, or None")
        if principal is not None:
            self._io.codec.check("principal", principal)
        self._io.codec.check(DEVICE, device)
        state = self._state or self._touch()
        if state.principal == principal:
            return
        state = self._changeable(needs_cookie=True)
        if state.principal is not None and principal is not None:
            state.data.clear()
        state.principal = principal
        state.data.pop(DEVICE, None)
        if device is not None:
            state.data[DEVICE] = device
        self.renew(restart=True)

    def revert(self) -> None:
        """Forget every change of this request that was not saved."""
        state = self._state
        if state is None:
            return
        record = state.record
        origin: Record | Imported | None = record
        if origin is None and state.moving is not None:
            origin = state.moving.imported
        state.data = {} if origin is None else self._io.codec.decode(origin.payload)
        state.principal = None if record is None else record.principal
        state.created = None if record is None else record.created
        state.pristine = False
        state.settle()

    def save(self) -> None:
        """Save now instead of with the response, as before a redirect to another server.

        Raises:
            StoreError: the changes are not saved, and still here.
            HeadersSentError: saving them needs a cookie, and it is too late for one.
        """
        if self._state is None:
            return
        if self.headers_sent:
            self._io.save_late(self._state)
        else:
            self._io.save(self._state)

    # -- flash messages ---------------------------------------------------------------

    def flash(
        self,
        message: Any,
        category: str = "message",
        *,
        queue: str = "",
        duplicate: bool = True,
    ) -> None:
        """Keep *message* until :meth:`flashes` hands it out, usually on the next page.

        Args:
            message: text, or anything else that a session can hold.
            category: such as ``"error"``; handed out with the message.
            queue: messages of different queues do not see each other.
            duplicate: false to leave out what already waits in the queue.
        """
        queues = self.get(FLASH) or {}
        entry = [category, message]
        waiting = queues.get(queue, [])
        if duplicate or entry not in waiting:
            self[FLASH] = {**queues, queue: [*waiting, entry][-MAX_FLASHES:]}

    def flashes(self, queue: str = "", *, peek: bool = False) -> list[tuple[str, Any]]:
        """The waiting messages of *queue* as ``(category, message)``, oldest first.

        They are removed, unless *peek* is true. An empty queue changes nothing.
        """
        queues = self.get(FLASH) or {}
        waiting = queues.get(queue, [])
        if waiting and not peek:
            data = self._changeable().data
            rest = {name: entries for name, entries in queues.items() if name != queue}
            if rest:
                data[FLASH] = rest
            else:
                del data[FLASH]
        return [(category, message) for category, message in waiting]

    # -- cross-site request forgery ---------------------------------------------------

    def csrf_token(self) -> str:
        """The secret to put into forms; it is made when first asked for."""
        token = self.get(CSRF)
        if token is None:
            token = self._changeable().data[CSRF] = encode_base64(os.urandom(16))
        return str(token)

    def check_csrf_token(self, token: str | None) -> bool:
        """Whether *token* came from a form of this session; the time tells nothing.

        ``None``, what a form without the field gives, never did.
        """
        expected = self.get(CSRF)
        if expected is None or token is None:
            return False
        return hmac.compare_digest(str(expected).encode(), token.encode("utf-8", "replace"))

    # -- inside -----------------------------------------------------------------------

    def _token(self) -> str | None:
        return (self._state or self._touch()).token

    def _touch(self) -> State:
        return self._take(self._io.load(self._header))

    def _take(self, state: State) -> State:
        """Go by *state*, as it was loaded. All that happens to its data is seen from here on."""
        state.pristine = state.record is not None
        self._state = state
        return state

    def _changeable(self, *, needs_cookie: bool = False) -> State:
        state = self._state or self._touch()
        if self._status is not None and (needs_cookie or self._io.needs_cookie(state)):
            raise HeadersSentError(
                "the headers have left, and this change of the session needs a cookie: "
                "make it before the response starts"
            )
        state.pristine = False
        return state

    def __repr__(self) -> str:
        state = self._state
        if state is None:
            return "<Session, not read yet>"
        kind = "new" if state.token is None else "saved"
        return f"<Session, {kind}, {len(state.data)} keys>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session belongs to its request and is not pickled; use copy()")
