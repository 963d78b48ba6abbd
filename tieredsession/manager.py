"""One request, once: ``open`` before the view, ``close`` before the first byte leaves.

Every front end (WSGI here, a framework in an adapter) calls the same three methods; what
a session costs, when it is saved and which cookie goes out is decided in this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from random import uniform
from typing import TYPE_CHECKING, Protocol

from tieredsession import events
from tieredsession.contracts import CLOCK_SKEW, Codec, Observer, Record, Saved, SessionStore
from tieredsession.cookies import MAX_LINE, CookieWriter, Reply, find
from tieredsession.errors import (
    Conflict,
    DecodeError,
    Gone,
    HeadersSentError,
    SessionTooLarge,
    StoreError,
    StoreUnavailable,
)
from tieredsession.lifetimes import Lifetimes
from tieredsession.merge import MergeRule, queues
from tieredsession.moving import Mover, is_as_imported
from tieredsession.observers import fan_out, tell_operator
from tieredsession.principals import SessionInfo, end_where, sessions_of
from tieredsession.session import Session
from tieredsession.state import FLASH, PERSISTENT, Fork, Imported, MovingIn, State

if TYPE_CHECKING:
    from tieredsession.importing import Importer

_TRIES = 32  # so many requests can save one session at once: for each loss another succeeds
_AT_ONCE = 3  # tries before a random pause, up to ...
_PAUSE = 0.002  # ... so many seconds more each time
_WARN_FROM = MAX_LINE * 3 // 4


class Current(Protocol):
    """A session by which a manager knows the one of this request: ours, or Django's engine."""

    def _token(self) -> str | None: ...


class SessionManager:
    """Opens and closes the sessions of one site.

    It is safe to share between threads; a :class:`Session` belongs to one request.

    Args:
        store: where sessions live.
        codec: session data to bytes.
        cookie: writes the cookie's line.
        lifetimes: how long sessions live.
        cache_control: ``"private"`` or ``"no-store"``, beside every ``Set-Cookie``.
        merge_rules: top-level key to what decides when two requests changed it.
        importer: finds the sessions of other frameworks, to be taken over.
        observers: are told what happened.
        clock: seconds since the epoch, UTC. Nothing else here knows the time.
        sleep: waits for a number of seconds, between tries against many other writers.
    """

    def __init__(
        self,
        store: SessionStore,
        codec: Codec,
        cookie: CookieWriter,
        lifetimes: Lifetimes | None = None,
        *,
        cache_control: str = "private",
        merge_rules: Mapping[str, MergeRule] | None = None,
        importer: Importer | None = None,
        observers: Iterable[Observer] = (),
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self.blocking = getattr(store, "blocking", True)
        self.codec = codec
        self.cookie = cookie
        self.lifetimes = lifetimes or Lifetimes()
        self.clock = clock
        self._sleep = sleep
        self._cache_control = cache_control
        self._varies = Reply(None, cache_control)
        self._rules = {FLASH: queues, **(merge_rules or {})}
        self.observers = tuple(observers)
        self._observe = fan_out(self.observers)
        self._mover = None if importer is None else Mover(importer, codec, self._observe)

    # -- the request ------------------------------------------------------------------

    def open(self, cookie_header: str | None) -> Session:
        """The session of a request, unread. *cookie_header* is the raw ``Cookie`` header."""
        return Session(self, cookie_header)

    def close(self, session: Session, status: int = 200, *, saved: bool = False) -> Reply | None:
        """Save what changed and answer what the response owes; ``None`` if untouched.

        Call it before the headers leave. A response of 5xx saves nothing. What was *saved*
        already, because here is not the place to wait for a store, is not looked at again.

        Raises:
            StoreError: it could not be saved; the response must not claim that it was.
            SessionTooLarge: the cookie would not fit; the old one stays valid.
        """
        state = session._state
        if state is None:
            session._status = status
            return None
        if status < 500:
            if not saved:
                self.save(state)
            if state.set_cookie is None and state.stale:
                state.set_cookie = self.cookie.expire()
        session._status = status
        moving = state.moving
        if moving is None or not moving.is_over or not moving.expire:
            line = state.set_cookie
            return self._varies if line is None else Reply(line, self._cache_control)
        first, *others = moving.expire
        return Reply(state.set_cookie, self._cache_control, first, tuple(others))

    def finish(self, session: Session) -> None:
        """After the body: save what changed since the headers left, unless they were 5xx.

        Raises:
            HeadersSentError: that change needs a cookie, and it is too late for one.
        """
        state, status = session._state, session._status
        if state is not None and not state.pristine and status is not None and status < 500:
            self.save_late(state)

    # -- the request on an event loop, which nothing may keep waiting ---------------------

    def load_blocks(self, cookie_header: str | None) -> bool:
        """Whether :meth:`load` would ask a store that can keep it waiting. No call is made."""
        return self.blocking and any(
            self.store.label(token) is not None for token in find(cookie_header, self.cookie.name)
        )

    def save_blocks(self, state: State) -> bool:
        """Whether :meth:`save` has anything for a store that can keep it waiting."""
        if not self.blocking or self.is_modified(state):
            return self.blocking
        record, now = state.record, self.clock()
        return record is not None and self.lifetimes.is_due(
            state, record, self.lifetimes.expiry(state, record.created, now), now
        )

    def fork(self, state: State) -> Fork:
        """A copy of *state* to save in another thread.

        Raises:
            UnstorableError: there is a value that cannot be kept.
        """
        codec = self.codec
        return Fork(state, codec.decode(codec.encode(state.data)), self._rules, codec.encode)

    # -- the sessions of a principal --------------------------------------------------

    def sessions_of(self, principal: str, current: Current | None = None) -> list[SessionInfo]:
        """The live sessions that were bound to *principal*, the latest used first.

        Args:
            principal: as given to ``Session.bind``.
            current: the session of this request, to know it among them.

        Raises:
            ConfigurationError: the store keeps no index; ``SESSION_PRINCIPALS`` turns it on.
        """
        mine = None if current is None else self._label(current._token())
        return sessions_of(self.store, self.codec, self.lifetimes, principal, mine, self.clock())

    def end_session(self, principal: str, handle: str) -> bool:
        """End the session of *principal* that a ``SessionInfo`` named; whether it was there."""
        return end_where(self.store, principal, lambda key: key == handle, self.clock()) > 0

    def end_all(self, principal: str, keep: Current | None = None) -> int:
        """End all sessions of *principal*, except *keep*; how many that were.

        With *keep* the one of this request, this is "log out everywhere else".
        """
        mine = None if keep is None else self._label(keep._token())
        return end_where(
            self.store, principal, lambda key: mine is None or mine not in key, self.clock()
        )

    # -- what a session asks for ------------------------------------------------------

    def load(self, cookie_header: str | None) -> State:
        """Find and read the session that the cookies stand for."""
        tokens = find(cookie_header, self.cookie.name)
        if not tokens:
            mover = self._mover
            return State({}) if mover is None else mover.begin(cookie_header, self.clock())
        now = self.clock()
        found = []
        try:
            for token in tokens:
                record = self._accept(token, now)
                if record is not None:
                    found.append((token, record))
        except StoreError as error:
            self._failed(error)
            raise
        if len(found) == 1:
            token, record = found[0]
            try:
                state = State(self.codec.decode(record.payload), token, record)
            except DecodeError:
                self._refused("undecodable", token)
            else:
                if self._mover is not None:
                    self._mover.pass_over(state, cookie_header, now)
                return state
        elif found:
            self._refused("ambiguous", found[0][0])
        elif self._mover is not None:
            return self._mover.begin(cookie_header, now, stale=True)
        return State({}, stale=True)

    def save(self, state: State) -> None:
        """Bring the store to what *state* holds; concurrent changes are merged."""
        now = self.clock()
        try:
            for attempt in range(_TRIES):
                if attempt >= _AT_ONCE:
                    self._sleep(uniform(0, _PAUSE * attempt))  # noqa: S311 - spreads, guards nothing
                try:
                    return self._save(state, now)
                except Conflict as conflict:
                    if self._absorb(state, conflict.current):
                        continue
                except Gone:
                    pass
                # Ended by somebody else: nothing brings it back. Its cookie is left alone,
                # for it may be the successor's by now; a dead one goes with the next request.
                self._emit(events.SessionGone, state.token)
                state.forget()
                return None
            raise StoreUnavailable(f"the session was saved by others {_TRIES} times in a row")
        except StoreError as error:
            self._failed(error)
            raise

    def save_late(self, state: State) -> None:
        """As :meth:`save`, after the headers have left."""
        state.late = True
        if self.is_modified(state) and not is_as_imported(state, self.codec):
            begins_another = state.ended and not state.is_empty
            if begins_another:  # which cannot be; the one that was ended dies all the same
                state.data.clear()
                state.principal = None
                self.save(state)
            if begins_another or self.needs_cookie(state):
                raise HeadersSentError(
                    "the session changed after the headers had left, and saving it needs a "
                    "cookie: make the change before the response starts"
                )
            self.save(state)

    def is_modified(self, state: State) -> bool:
        """Whether :meth:`save` would do more than to refresh the expiry."""
        if state.record is None:
            return not state.is_empty
        if state.ended or state.renewed or state.restarted or state.force or state.is_empty:
            return True
        if state.principal != state.record.principal:
            return True
        return not state.pristine and self._differs(
            state, state.record, self.codec.encode(state.data)
        )

    def needs_cookie(self, state: State) -> bool:
        """Whether a change of *state* cannot be saved without a ``Set-Cookie``."""
        return state.token is None or state.renewed or not self.store.revocable

    # -- loading ----------------------------------------------------------------------

    def _accept(self, token: str, now: float) -> Record | None:
        if not token.isascii() or len(token) > MAX_LINE:
            self._refused("malformed" if len(token) <= MAX_LINE else "oversized")
            return None
        record = self.store.load(token, now)
        if record is None:
            return None
        if self.lifetimes.is_over(record, now):
            self._refused("expired", token)
            return None
        if record.created > now + CLOCK_SKEW:
            self._refused("future", token)
            return None
        return record

    # -- saving -----------------------------------------------------------------------

    def _save(self, state: State, now: float) -> None:
        if state.token is None or state.record is None:
            moving = state.moving
            if moving is not None and moving.imported is not None:
                self._take_over(state, moving, moving.imported, now)
            elif not state.is_empty:
                self._create(state, now)
        elif state.ended:
            self._end(state, state.token, state.record, now)
            if not state.is_empty:
                self._create(state, now)
        elif state.record.expires <= now:
            # It ran out during this request, unless another request has extended it.
            current = self.store.load(state.token, now)
            raise Gone("the session has expired") if current is None else Conflict(current)
        elif state.is_empty:
            self._end(state, state.token, state.record, now)
        elif state.renewed:
            self._renew(state, state.token, state.record, now)
        else:
            self._update(state, state.token, state.record, now)

    def _take_over(self, state: State, moving: MovingIn, imported: Imported, now: float) -> None:
        """Save a session that another framework's cookie held; then that cookie goes."""
        ended = state.ended
        if not state.is_empty:
            try:
                self._create(state, now)
            except SessionTooLarge:
                if not is_as_imported(state, self.codec):
                    raise
                # A page that only reads must not fail: the next one imports it again, from
                # a cookie that may have our name and is not to be deleted as a dead one.
                if self._observe is not None:
                    self._observe(events.ImportRefused(imported.kind, "oversized"))
                state.stale = False
                return
        moving.imported = None
        moving.is_over = True
        if state.token is not None and not ended and self._observe is not None:
            label = self._label(state.token)
            self._observe(events.SessionImported(imported.kind, imported.dropped, session=label))

    def _create(
        self,
        state: State,
        now: float,
        event: type[events.SessionEvent] = events.SessionCreated,
        expires: float | None = None,
        create: Callable[[Record, float], Saved] | None = None,
    ) -> None:
        created = float(int(now)) if state.created is None else state.created
        if expires is None:
            expires = self.lifetimes.expiry(state, created, now)
        record = Record(self.codec.encode(state.data), expires, created, state.principal)
        saved = (create or self.store.create)(record, now)
        self._keep(state, record, saved, now)
        self._emit(event, saved.token)

    def _renew(self, state: State, token: str, record: Record, now: float) -> None:
        # Encoded before the old id dies: what cannot be stored must not cost the session.
        self.codec.encode(state.data)
        self.store.delete(token, now, record.version)
        state.token = state.record = None
        expires = None if state.restarted or state.until is not None else record.expires
        succeed = getattr(self.store, "create_successor", None)
        create = None if succeed is None else partial(succeed, token)
        try:
            self._create(state, now, events.SessionRenewed, expires, create)
        except (SessionTooLarge, StoreError):
            if self.store.label(token) is None:  # the token is the data, and as good as before
                state.token, state.record = token, record
            raise

    def _update(self, state: State, token: str, record: Record, now: float) -> None:
        payload = record.payload if state.pristine else self.codec.encode(state.data)
        changed = (
            state.force
            or state.principal != record.principal
            or (payload != record.payload and self._differs(state, record, payload))
        )
        expires = self.lifetimes.expiry(state, record.created, now)
        if not self.lifetimes.is_due(state, record, expires, now):
            if not changed:
                return
            expires = record.expires
        new = Record(payload, expires, record.created, state.principal, record.version)
        saved = self.store.update(token, new, now)
        self._keep(state, new, saved, now)
        self._emit(events.SessionSaved if changed else events.SessionRefreshed, saved.token)

    def _end(self, state: State, token: str, record: Record, now: float) -> None:
        try:
            self.store.delete(token, now, record.version)
        except Gone:
            if not state.ended:
                raise
        self._emit(events.SessionEnded, token)
        state.token = state.record = state.created = None
        state.settle()
        state.set_cookie = self.cookie.expire()
        if state.moving is not None:
            state.moving.is_over = True

    def _keep(self, state: State, record: Record, saved: Saved, now: float) -> None:
        """Remember what the store now holds, and the cookie if the visitor needs one."""
        previous = state.record
        persistent = state.data.get(PERSISTENT, self.lifetimes.persistent)
        moved = previous is None or previous.expires != record.expires
        if saved.token != state.token or (moved and persistent) or state.restarted:
            age = int(record.expires - now) if persistent else None
            line = self.cookie.write(saved.token, age)
            if len(line) > MAX_LINE:
                raise SessionTooLarge(len(line), MAX_LINE)
            if len(line) > _WARN_FROM and self._observe is not None:
                self._observe(events.CookieNearLimit(len(line), MAX_LINE))
            state.set_cookie = line
        state.token = saved.token
        if saved.version != record.version:
            record = record._replace(version=saved.version)
        state.record = record
        state.created = record.created
        state.settle()

    def _absorb(self, state: State, current: Record) -> bool:
        """Merge what another request saved into *state*, which then stands on it.

        False if that request made it somebody else's: nothing of a session that was left
        comes into the one that follows it.
        """
        before = None if state.record is None else state.record.principal
        if state.ended or (before is not None and state.principal != before):
            state.record = current  # this request left it
            return True
        if before is not None and current.principal != before:
            return False
        try:
            theirs = self.codec.decode(current.payload)
        except DecodeError as error:
            raise StoreError(f"the session cannot be merged: {error}") from None
        base = {} if state.record is None else self.codec.decode(state.record.payload)
        contested = state.absorb(base, theirs, self._rules, self.codec.encode)
        state.pristine = False
        if state.principal == before:
            state.principal = current.principal
        state.record = current
        if self._observe is not None:
            label = self._label(state.token)
            self._observe(events.SessionMerged(tuple(contested), session=label))
        return True

    # -- rules ------------------------------------------------------------------------

    def _differs(self, state: State, record: Record, payload: bytes) -> bool:
        before = record.payload
        if payload == before:
            return False
        if len(payload) != len(before):
            return True
        # A key taken out and put back stands in another place, which is no change.
        old = self.codec.decode(before)
        if list(old) == list(state.data) or old.keys() != state.data.keys():
            return True
        return self.codec.encode({key: state.data[key] for key in old}) != before

    # -- telling ----------------------------------------------------------------------

    def _emit(self, event: type[events.SessionEvent], token: str | None) -> None:
        if self._observe is not None:
            self._observe(event(session=self._label(token)))

    def _refused(self, reason: str, token: str | None = None) -> None:
        if self._observe is not None:
            self._observe(events.TokenRefused(reason, session=self._label(token)))

    def _label(self, token: str | None) -> str | None:
        return None if token is None else self.store.label(token)

    def _failed(self, error: StoreError) -> None:
        tell_operator(self._observe, events.StoreFailed(f"{type(error).__name__}: {error}"))
