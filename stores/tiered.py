"""A cache tier written through into a durable store.

The durable store is the truth; the cache may forget, fail and be overtaken at any step. The
cache slot of a session holds one of

- ``V``: a version and the record of that version;
- ``L``: a LOCK, a random token: a writer is or was at work;
- ``E``: a lease, a random token (or nothing, where the server makes the entry): a reader is
  about to fill the slot.

Only a live ``V`` is an answer; for anything else the durable store is asked.

- *read*: get, or take a lease where there is nothing; look up; fill by replacing one's own
  lease and nothing else, so that what was written meanwhile stays.
- *write*: LOCK; commit on condition of the version; publish over one's own LOCK or an older
  ``V`` only. A LOCK that was not acknowledged is set again after the commit, and nothing is
  published. A conflict is the caller's to merge; the next try LOCKs again.
- *new*: commit, set: nobody else knows the id.
- *delete*: LOCK; delete; LOCK, which is left to expire.

Each step closes an interleaving that has been a bug somewhere: without the LOCK a crash
leaves the old value, without the lease a slow reader brings it back, without the condition
an update is lost, without the second LOCK of a delete a logged-out session returns.

What remains: a process that cannot reach the cache while others can leaves them the old
value, until it reaches the cache again or the value's time to live has passed. That time to
live is the bound on staleness; choose it as such. It does not rest on the cache alone: five
minutes later, a value that was kept or put back all the same is not believed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from random import uniform
from threading import get_ident
from typing import TypeVar, cast
from weakref import WeakSet

from tieredsession import events
from tieredsession.contracts import (
    CLOCK_SKEW,
    LONGEST_SAVE,
    ByPrincipal,
    Cache,
    Found,
    Handle,
    Observer,
    Owned,
    Record,
    Saved,
    SessionStore,
)
from tieredsession.envelope import Envelope, Refused
from tieredsession.errors import CacheError, Conflict, Gone, StoreUnavailable
from tieredsession.observers import tell_operator
from tieredsession.stores.breaker import Breaker
from tieredsession.tokens import SessionIds

T = TypeVar("T")

VALUE_TTL = 600.0
"""Seconds that a value stays in the cache: the bound on staleness if the cache misbehaves.

A value says when it was put there. One that has outlived this, or that somebody has put back, is
refused after five minutes more, by which two clocks may differ.
"""

_LOCK_TTL = LONGEST_SAVE + 10.0
_LEASE_TTL = 10.0  # longer than any lookup may take
_VERSION = 8
_TIME = 4
_HEAD = 1 + _VERSION + _TIME
_PUBLISH_TRIES = 3
_DELETE_TRIES = 8


class TieredSessionStore:
    """A :class:`SessionStore` made of a cache and a durable store.

    Args:
        cache: where records are kept for a while.
        durable: where they live. It must be revocable, and tell versions apart.
        ids: the same that *durable* mints its tokens with.
        envelope: seals the cached records, so that a writer to the cache can neither forge
            a session nor put one in the place of another.
        observer: is told of hits, misses, fills, failures and breaker changes.
        value_ttl: seconds that a value stays in the cache.
        strict_delete: raise ``StoreUnavailable`` when a session was deleted but the cache
            could not be told, instead of relying on the bound above.
        clock: monotonic seconds, for the breakers.
        random: where tokens come from.
    """

    revocable = True

    def __init__(
        self,
        cache: Cache,
        durable: SessionStore,
        ids: SessionIds,
        envelope: Envelope,
        observer: Observer | None = None,
        *,
        value_ttl: float = VALUE_TTL,
        strict_delete: bool = False,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.cache = cache
        self.durable = durable
        self._ids = ids
        self._envelope = envelope
        self._observer = observer
        self._value_ttl = value_ttl
        self._strict_delete = strict_delete
        self._clock = clock
        self._random = random
        self._breakers: dict[str, Breaker] = {}
        self._doubted: dict[str, float] = {}  # server to the time before which values are old
        self._flights: dict[str, _Flight] = {}
        _stores.add(self)

    # -- SessionStore -----------------------------------------------------------------

    def load(self, token: str, now: float) -> Record | None:
        key = self._ids.key(token)
        if key is None:
            return self.durable.load(token, now)  # refuses it without a call, and says why
        lease = b"E" + self._random(8)
        found = self._call(key, now, self.cache.get_or_add, key, lease, _LEASE_TTL)
        if found is None:
            return self.durable.load(token, now)
        value = found.value
        if value is not None and value[:1] == b"V":
            record = self._read(key, value, now)
            if record is not None:
                if self._observer is not None:
                    self._emit(events.CacheHit, key)
                return record
        elif not found.won:
            flight = self._flights.get(key)
            if flight is not None and flight.is_for(found):
                return flight.answer.result()
            # A LOCK or the lease of another process: look up, and leave the slot alone.
            self._emit(events.CacheMiss, key)
            return self.durable.load(token, now)
        return self._look_up_and_fill(token, key, lease, found, now)

    def create(self, record: Record, now: float) -> Saved:
        saved = self.durable.create(record, now)
        key = self._ids.key(saved.token)
        if key is not None:
            value = self._value(key, record, saved.version, now)
            if value is not None:
                ttl = self._ttl(record, now)
                sent: list[str] = []
                if self._call(key, now, self._send, sent, key, value, ttl) is None and sent:
                    # It may still arrive, after a later one. What was not tried needs no mark.
                    self._breaker(key).missed(key)
        return saved

    def update(self, token: str, record: Record, now: float) -> Saved:
        key = self._ids.key(token)
        if key is None:
            raise Gone("the token is not a session")
        lock = self._new_lock()
        held, handle = self._set_lock(key, lock, now)
        saved = self.durable.update(token, record, now)
        if not held:
            self._set_lock(key, lock, now)
            return saved
        value = self._value(key, record, saved.version, now)
        if value is not None:
            ttl = self._ttl(record, now)
            self._call(key, now, self._publish, key, lock, handle, value, ttl)
        return saved

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        key = self._ids.key(token)
        if key is None:
            return self.durable.delete(token, now, version)
        if version is None:
            self._delete_any_version(token, key, now)
        else:
            self._set_lock(key, self._new_lock(), now)
            self.durable.delete(token, now, version)
        return self._bury(key, now)

    def label(self, token: str) -> str | None:
        return self._ids.label(token)

    def close(self) -> None:
        """Close what both tiers hold open; they open it again if they are used again."""
        for tier in (self.cache, self.durable):
            close = getattr(tier, "close", None)
            if close is not None:
                close()

    # -- ByPrincipal ------------------------------------------------------------------

    @property
    def principals(self) -> bool:
        return bool(getattr(self.durable, "principals", False))

    def sessions_of(self, principal: str, now: float) -> list[Owned]:
        return self._by_principal.sessions_of(principal, now)

    def end(self, key: str, now: float, version: int | None = None) -> None:
        self._set_lock(key, self._new_lock(), now)
        self._by_principal.end(key, now, version)
        self._bury(key, now)

    @property
    def _by_principal(self) -> ByPrincipal:
        return cast("ByPrincipal", self.durable)

    # -- sweeping ---------------------------------------------------------------------

    @property
    def sweepable(self) -> object:
        """Where rows are to be swept. The cache forgets by itself."""
        return self.durable

    # -- deleting ---------------------------------------------------------------------

    def _bury(self, key: str, now: float) -> None:
        """The second LOCK of a deletion, left to expire."""
        told, _ = self._set_lock(key, self._new_lock(), now)
        if self._strict_delete and not told:
            raise StoreUnavailable(
                "the session was deleted, but the cache could not be told and may show it to "
                f"other processes for {self._value_ttl:.0f} seconds"
            )

    def _delete_any_version(self, token: str, key: str, now: float) -> None:
        """On condition all the same: a writer in between must meet a newer LOCK than his own.

        Otherwise he could publish after the deletion, and a crash here would leave that.
        """
        for _ in range(_DELETE_TRIES):
            self._set_lock(key, self._new_lock(), now)
            record = self.durable.load(token, now)
            if record is None:
                return self.durable.delete(token, now)
            try:
                return self.durable.delete(token, now, record.version)
            except (Conflict, Gone):
                continue
        return self.durable.delete(token, now)

    # -- reading ----------------------------------------------------------------------

    def _read(self, key: str, value: bytes, now: float) -> Record | None:
        """The live record in a ``V``, if it can be believed."""
        head = value[1:_HEAD]
        published = int.from_bytes(head[_VERSION:], "big")
        try:
            if published < now - self._value_ttl - CLOCK_SKEW:
                raise Refused("expired")  # the cache kept it for too long, or it was put back
            if self._doubted and published <= self._doubted.get(self.cache.server(key), 0):
                raise Refused("distrusted")
            version = int.from_bytes(head[:_VERSION], "big")
            record = self._envelope.open(value[_HEAD:], _context(key, head), version)
        except Refused as refused:
            tell_operator(self._observer, events.CacheRefused(refused.reason))
            return None
        return record if record.expires > now else None

    def _look_up_and_fill(
        self, token: str, key: str, lease: bytes, found: Found, now: float
    ) -> Record | None:
        flight = self._flights[key] = _Flight(lease, found.handle)
        try:
            record = self.durable.load(token, now)
        except Exception as error:
            flight.answer.set_exception(error)
            raise
        except BaseException:
            # What ends this thread is not for those who wait for it.
            flight.answer.set_exception(StoreUnavailable("a shared lookup was interrupted"))
            raise
        else:
            flight.answer.set_result(record)
        finally:
            if self._flights.get(key) is flight:
                self._flights.pop(key, None)
        self._emit(events.CacheMiss, key)
        if record is not None:
            value = self._value(key, record, record.version, now)
            if value is not None:
                ttl = self._ttl(record, now)
                if self._call(key, now, self._fill, key, lease, found.handle, value, ttl):
                    self._emit(events.CacheFilled, key)
        return record

    def _fill(
        self, key: str, lease: bytes, handle: Handle | None, value: bytes, ttl: float
    ) -> bool:
        """Put *value* where nothing has happened since before the lookup."""
        if handle is None:
            entry = self.cache.get(key)
            if entry is None or entry.value != lease:
                return False
            handle = entry.handle
        return self.cache.replace(key, handle, value, ttl)

    # -- writing ----------------------------------------------------------------------

    def _new_lock(self) -> bytes:
        return b"L" + self._random(16)

    def _set_lock(self, key: str, lock: bytes, now: float) -> tuple[bool, Handle | None]:
        """Whether the LOCK was acknowledged, and its handle if the cache tells it.

        What could not be marked is remembered, and made good when the cache is back.
        """
        answer = self._call(key, now, self._set, key, lock, _LOCK_TTL)
        if answer is None:
            self._breaker(key).missed(key)
            return False, None
        return True, answer[0]

    def _set(self, key: str, value: bytes, ttl: float) -> tuple[Handle | None]:
        """As the cache has it, in a tuple: to :meth:`_call`, no handle is not a failure."""
        return (self.cache.set(key, value, ttl),)

    def _send(self, sent: list[str], key: str, value: bytes, ttl: float) -> tuple[Handle | None]:
        """As :meth:`_set`, and note down that it was tried."""
        sent.append(key)
        return self._set(key, value, ttl)

    def _publish(
        self, key: str, lock: bytes, handle: Handle | None, value: bytes, ttl: float
    ) -> None:
        """Show *value* in the slot, unless somebody else's turn has come since the LOCK."""
        if handle is not None and self.cache.replace(key, handle, value, ttl):
            return
        for _ in range(_PUBLISH_TRIES):
            entry = self.cache.get(key)
            if entry is None:
                return  # forgotten: adding now could overtake a later delete
            kind = entry.value[:1]
            older = kind == b"V" and entry.value[1 : 1 + _VERSION] < value[1 : 1 + _VERSION]
            if entry.value == lock or older:
                if self.cache.replace(key, entry.handle, value, ttl):
                    return
            elif kind in (b"", b"E"):
                # A reader is filling, and what it has read may be older than this write.
                if self.cache.replace(key, entry.handle, lock, _LOCK_TTL):
                    return
            else:
                return  # another writer's LOCK, or something newer

    def _value(self, key: str, record: Record, version: int, now: float) -> bytes | None:
        """The ``V`` of *record*, or ``None`` if it is too large for the cache."""
        head = version.to_bytes(_VERSION, "big") + int(now).to_bytes(_TIME, "big")
        value = b"V" + head + self._envelope.seal(record, _context(key, head))
        return value if len(value) <= self.cache.max_value else None

    def _ttl(self, record: Record, now: float) -> float:
        """Never past the expiry; jittered, so that what was filled together expires apart."""
        longest = min(self._value_ttl, record.expires - now)
        return max(1.0, longest * uniform(0.9, 1.0))  # noqa: S311 - spreads, guards nothing

    # -- calling the cache ------------------------------------------------------------

    def _call(self, key: str, now: float, call: Callable[..., T], *arguments: object) -> T | None:
        """Make a cache call, or ``None`` if the cache failed or is left alone for now."""
        breaker = self._breaker(key)
        try:
            if not breaker.is_calm and not self._is_ready(key, breaker, now):
                return None
            answer = call(*arguments)
        except CacheError as error:
            self._failed(key, breaker, error)
            return None
        except BaseException:
            breaker.interrupted()
            raise
        if not breaker.is_calm:
            breaker.succeeded()
        return answer

    def _breaker(self, key: str) -> Breaker:
        server = self.cache.server(key)
        try:
            return self._breakers[server]
        except KeyError:
            # Of two threads that come first, both make one and one is kept.
            return self._breakers.setdefault(server, Breaker(self._clock))

    def _is_ready(self, key: str, breaker: Breaker, now: float) -> bool:
        """Whether to call a server with a past; what it missed is made good before that."""
        if breaker.is_closed:
            self._make_good(breaker)
        elif breaker.may_probe():
            self._recover(key, breaker, now)
        else:
            return False
        return True

    def _recover(self, key: str, breaker: Breaker, now: float) -> None:
        """Probe, and mark what the server missed, before anybody trusts it again."""
        server = self.cache.server(key)
        self.cache.get(key)
        marked = self._make_good(breaker)
        if breaker.take_overflow():
            self._doubted[server] = now + CLOCK_SKEW
        breaker.close()
        tell_operator(self._observer, events.BreakerClosed(server, marked))

    def _make_good(self, breaker: Breaker) -> int:
        """LOCK what could not be marked; never delete it, that could free another's LOCK."""
        missed = breaker.to_make_good()
        for key, serial in missed:
            self.cache.set(key, self._new_lock(), _LOCK_TTL)
            breaker.made_good(key, serial)
        return len(missed)

    def _failed(self, key: str, breaker: Breaker, error: CacheError) -> None:
        seconds = breaker.failed(error)
        server = self.cache.server(key)
        failed = events.CacheFailed(server, f"{type(error).__name__}: {error}")
        tell_operator(self._observer, failed)
        if seconds is not None:
            tell_operator(self._observer, events.BreakerOpened(server, seconds))

    def _emit(self, event: type[events.SessionEvent], key: str) -> None:
        if self._observer is not None:
            self._observer(event(session=self._ids.label_of(key)))


def _context(key: str, head: bytes) -> bytes:
    """What no durable store seals under: its contexts are keys, and no key begins with a zero.

    Otherwise the first bytes of a stored record could pass for a head, and what a visitor has
    written into the session for the record behind it.
    """
    return b"\0" + key.encode() + head


class _Flight:
    """A lookup under way, for others that met its lease.

    Sharing its answer is safe for them alone: whoever still saw that lease in the slot came
    before any later LOCK, and so before any write that the lookup could have missed. It is not
    for an observer that reads a session while it is told of the lookup: it would wait for itself.
    """

    __slots__ = ("_handle", "_lease", "_thread", "answer")

    def __init__(self, lease: bytes, handle: Handle | None) -> None:
        self._lease = lease
        self._handle = handle
        self._thread = get_ident()
        self.answer: Future[Record | None] = Future()

    def is_for(self, found: Found) -> bool:
        """Whether a caller in this thread, who has *found* that, may wait for the answer."""
        if self._thread == get_ident():
            return False
        if found.value == self._lease:
            return True
        return self._handle is not None and found.handle == self._handle


_stores: WeakSet[TieredSessionStore] = WeakSet()


def _after_fork() -> None:
    """In a child nobody comes back from what other threads of its parent were about."""
    for store in _stores:
        store._flights.clear()
        for breaker in store._breakers.values():
            breaker.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
