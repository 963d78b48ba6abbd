"""What a store, a cache, a codec and an observer promise to the rest.

There is nothing to inherit from: whatever has these methods and passes the contract
suites of :mod:`tieredsession.testing` is a store or a cache. Time is always an argument,
in seconds since the epoch, UTC; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tieredsession.events import Event

CLOCK_SKEW = 300
"""Seconds by which the clocks of two servers of a site may differ."""

LONGEST_SAVE = 20.0
"""Seconds that one save of a durable store may take. The LOCK in a cache in front of it lasts
longer: a save that came after its LOCK could leave the old value to be read."""


class Record(NamedTuple):
    """One session as a store keeps it. The store does not look into the payload.

    *expires* and *created* are whole seconds UTC: the sealed form keeps no fraction.
    *version* is the store's own, read with the record and handed back to ``update``;
    a store that cannot tell versions apart leaves it 0.
    """

    payload: bytes
    expires: float
    created: float
    principal: str | None = None
    version: int = 0


class Saved(NamedTuple):
    """What a save answers: the token that now stands for the session, and its version."""

    token: str
    version: int


class SessionStore(Protocol):
    """Keeps bytes under a token until a time. It knows no session, cookie or framework.

    *revocable* says whether ``delete`` ends a session for whoever holds its token. It is
    false where the token is the data; there every save also makes a new token.

    A store none of whose calls can be kept waiting, by a disk or a network, may say so with
    ``blocking = False``: an event loop then calls it in place, and hands any other store's
    calls to a thread. A store in memory that others take the place of in production does
    better not to, so that an application meets the same rules with both.

    A store that has several places for a session may have a ``create_successor(token, record,
    now)``: as ``create``, for what goes on under a new id after *token* was deleted.

    Whatever a store cannot answer is a :class:`~tieredsession.errors.StoreError`.
    """

    revocable: bool

    def load(self, token: str, now: float) -> Record | None:
        """The live record, or ``None``: missing, expired, malformed and forged are one answer.

        A malformed or forged token costs no call to any tier.
        """
        ...

    def create(self, record: Record, now: float) -> Saved:
        """Keep *record* under a new token that nobody held before."""
        ...

    def update(self, token: str, record: Record, now: float) -> Saved:
        """Replace the live session whose version is still ``record.version``.

        The token that it answers is another one where the token is the data, and where the
        old one was made under a key that only opens by now.

        Raises:
            Conflict: it has another version by now; the error carries that record.
            Gone: there is no live session; nothing is ever created here.
        """
        ...

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        """End the session for good; one that is already gone is no error.

        With a *version* the deletion is conditional, like an update: of two requests
        that replace one session by its successor, one is told ``Gone`` or ``Conflict``.
        """
        ...

    def label(self, token: str) -> str | None:
        """What logs call the session; ``None`` where the token is the data."""
        ...


class Swept(NamedTuple):
    """What one page of a sweep came to.

    *scanned* rows were looked at. *deleted* of them are gone; *spared* were alive after all;
    *odd* say too little of themselves to be judged, and were left alone. What expired before
    *reached* is gone from the shard, as far as the sweep went through it. *after* is where to
    go on, ``None`` at the end of the shard.
    """

    scanned: int
    deleted: int
    spared: int
    odd: int
    reached: float
    after: str | None


class Sweepable(Protocol):
    """Rows that outlive their sessions until they are swept, in one or more *shards*.

    *sweep_rate* is how many deletions a second the store should meet at first, ``None`` for
    as many as it takes.
    """

    shards: Sequence[str]
    sweep_rate: float | None

    def sweep(
        self,
        shard: str,
        since: float,
        until: float,
        limit: int,
        after: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Swept:
        """Delete one page of a shard: at most *limit* rows that expired before *until*.

        Rows that expired before *since* may be left out: they are gone from an earlier
        sweep. A live session is never deleted, whatever an index says. A dry run deletes
        nothing, counts in *deleted* what it would have tried, and may count a whole shard.
        """
        ...

    def oldest(self, shard: str) -> float | None:
        """When the row of a shard that expires first does so; ``None`` if there is no row."""
        ...


class Note(NamedTuple):
    """A few bytes under a name, and the version that a change of them is conditional on."""

    data: bytes
    version: int


class ShardedSweep(Sweepable, Protocol):
    """A sweep of many shards, which several workers share and go on with from run to run."""

    def read_notes(self, names: Sequence[str]) -> dict[str, Note]:
        """Those of the notes *names* that there are."""
        ...

    def write_note(self, name: str, data: bytes, version: int | None) -> int | None:
        """Replace the note that stands at *version*; ``None`` is where there is none yet.

        The new version, or ``None`` if somebody else was faster.
        """
        ...

    def plant(self, shard: str, expires: float) -> bool:
        """Put a canary into the shard: a row that is no session, for the next sweep to take.

        False if the one before is still there.
        """
        ...

    def walk(
        self,
        shard: str,
        until: float,
        limit: int,
        after: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Swept:
        """As :meth:`sweep`, by reading every row of the shard, alive or not.

        So it finds what the index of the expiry does not know of.
        """
        ...


class Owned(NamedTuple):
    """A live session of a principal. *key* is its storage key, which opens nothing."""

    key: str
    record: Record


class ByPrincipal(Protocol):
    """A store that can find the sessions of one principal.

    *principals* says whether it was told to keep the index that this takes.
    """

    principals: bool

    def sessions_of(self, principal: str, now: float) -> list[Owned]:
        """The live sessions that were bound to *principal*, in no order."""
        ...

    def end(self, key: str, now: float, version: int | None = None) -> None:
        """As ``SessionStore.delete``, by storage key."""
        ...


Handle = int | bytes
"""What a cache gives out to name one state of one entry, for ``replace``. Opaque."""


class Found(NamedTuple):
    """What ``get_or_add`` met. *handle* names the entry's state where the cache can tell.

    *value* is the entry that was there; ``None`` if there was none. *won* says that the
    caller's own entry stands there now.
    """

    value: bytes | None
    won: bool
    handle: Handle | None


class Entry(NamedTuple):
    """A cached value, and the handle that names this state of its entry."""

    value: bytes
    handle: Handle


class Cache(Protocol):
    """Keeps bytes for a while, and may forget them at any time.

    A *ttl* is a number of seconds above 0, of any size. Keys are printable ASCII without
    spaces, at most 200 characters. *max_value* is the largest value in bytes that it takes.
    Every method is one call to the server, unless said otherwise, and is bounded in time.

    Raises:
        CacheError: the server refused, failed or did not answer in time; whether the call
            had an effect is not known.
    """

    max_value: int

    def get(self, key: str) -> Entry | None:
        """The entry, or ``None``."""
        ...

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        """The entry that is there, or *value* put where there was none, never over another.

        A cache that answers ``won`` without a handle took two calls, and ``get`` tells the
        handle. Where the server makes the entry by itself, it may hold other bytes than
        *value*; the handle then says whose it is.
        """
        ...

    def set(self, key: str, value: bytes, ttl: float) -> Handle | None:
        """Put *value* there, whatever was there; its handle where one call can tell it."""
        ...

    def replace(self, key: str, handle: Handle, value: bytes, ttl: float) -> bool:
        """Put *value* there if the entry is still in the state that *handle* names."""
        ...

    def delete(self, key: str) -> None:
        """Remove the entry, if there is one."""
        ...

    def server(self, key: str) -> str:
        """Which server keeps *key*: a name for a circuit breaker. No call is made.

        A key has the same name for good, also when another server takes over.
        """
        ...


class Codec(Protocol):
    """Session data to bytes and back, equal and of the same types."""

    def check(self, key: str, value: Any) -> None:
        """Raise ``UnstorableError``, naming *key* and the type, if *value* cannot be kept."""
        ...

    def encode(self, data: Mapping[str, Any]) -> bytes:
        """Raise ``UnstorableError`` for what cannot be kept."""
        ...

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Raise ``DecodeError`` for bytes that are not a session."""
        ...


class Observer(Protocol):
    """Is told what happened. It must be quick, and what it raises is logged, not passed on."""

    def __call__(self, event: Event, /) -> None: ...
