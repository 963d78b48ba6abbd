"""What happened, as frozen dataclasses for an observer.

No event holds a token, a key or a value of a session.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """The base of every event."""


@dataclass(frozen=True, kw_only=True)
class SessionEvent(Event):
    """Something happened to one session.

    *session* is a label: the first twelve hex digits of the storage key, which is itself a
    hash of the id. It is enough to follow one session through a log and opens nothing. It
    is ``None`` where there is no id (the cookie store) or the id is not authentic.
    """

    session: str | None = None


@dataclass(frozen=True)
class TokenRefused(SessionEvent):
    """A cookie was not accepted, and the visitor has no session.

    *reason* is one of: ``malformed`` (not of our form), ``oversized``, ``forged`` (wrong
    key, changed, or made for another purpose), ``expired``, ``future`` (issued later than
    the clock allows), ``unknown`` (authentic, but ended, purged or never saved),
    ``undecodable`` (authentic, but not session data), ``ambiguous`` (several valid and
    different cookies of our name).
    """

    reason: str


class SessionCreated(SessionEvent):
    """A new session was saved."""


@dataclass(frozen=True)
class SessionImported(SessionEvent):
    """A session that another framework's cookie held was saved as one of ours.

    *kind* is the framework's. *dropped* are the top-level keys whose values no session of
    ours can hold, or which have a meaning of their own here.
    """

    kind: str
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class ImportRefused(Event):
    """Another framework's cookie was left where it is, and no session was taken over.

    *reason* is one of: ``malformed``, ``forged``, ``expired``, ``future``, ``ambiguous`` and
    ``undecodable`` as in ``TokenRefused``; ``pickled`` (authentic, but only pickle could read
    it); ``oversized`` (it is too large, or what it holds is); ``superseded`` (authentic, but
    a session of ours came with it: if that goes on, the browser was not made to delete it).
    """

    kind: str
    reason: str


class SessionSaved(SessionEvent):
    """Changes to an existing session were saved."""


class SessionRefreshed(SessionEvent):
    """Nothing changed but the expiry, which moved on."""


class SessionRenewed(SessionEvent):
    """The session has a new id; *session* is the label of the new one."""


class SessionEnded(SessionEvent):
    """The session was destroyed or emptied."""


class SessionGone(SessionEvent):
    """A save was dropped because the session had ended in the meantime."""


@dataclass(frozen=True)
class SessionMerged(SessionEvent):
    """Another request had saved first; both sets of changes were kept.

    *keys* are the top-level keys that both had changed, where a rule or the later save
    decided.
    """

    keys: tuple[str, ...]


@dataclass(frozen=True)
class CookieNearLimit(Event):
    """The ``Set-Cookie`` line has grown past three quarters of what browsers keep. Bytes."""

    size: int
    limit: int


@dataclass(frozen=True)
class StoreFailed(Event):
    """A tier could not answer. *error* is its class name and message, without data."""

    error: str


class CacheHit(SessionEvent):
    """A session was read from the cache."""


class CacheMiss(SessionEvent):
    """A session was read from the durable store, for the cache did not have it."""


class CacheFilled(SessionEvent):
    """What was read from the durable store is in the cache now."""


@dataclass(frozen=True)
class CacheRefused(SessionEvent):
    """A cached entry was not believed.

    *reason* is as in ``TokenRefused``, and ``expired`` where the cache should have let it go
    long ago; or ``distrusted``: published before the end of an outage in which this process
    missed more than it could remember.
    """

    reason: str


@dataclass(frozen=True)
class CacheFailed(Event):
    """A call to a cache failed; the durable store served instead. No data in *error*."""

    server: str
    error: str


@dataclass(frozen=True)
class BreakerOpened(Event):
    """A cache is left alone for *seconds* because it failed."""

    server: str
    seconds: float


@dataclass(frozen=True)
class BreakerClosed(Event):
    """A cache is in use again. *marked* entries that it could not be told of were removed."""

    server: str
    marked: int


@dataclass(frozen=True)
class Purged(Event):
    """A run of the purge, and how far it came. Also what :func:`tieredsession.purge.purge` answers.

    Attributes:
        scanned: rows that were looked at.
        deleted: rows that are gone; in a dry run, that would have been tried.
        spared: rows that an index called expired and that were alive.
        odd: rows that say too little to be judged, and are left alone, and notes of earlier
            runs that cannot be true.
        failed: calls that a tier did not answer. The rows are left for the next run.
        error: what the last of them said, or ``None``.
        stuck: shards in which the canary of an earlier run is still there, although the sweep
            says that it went past: the sweep does not do what it says.
        shards: into how many parts the store is divided.
        shards_done: how many of them have nothing left that this run should delete.
        shards_taken: how many were left to another worker that is at them.
        oldest_expired_age: for how many seconds the oldest row that this run should have deleted
            has been expired; ``None`` if there is none, or nobody could say.
        seconds: how long the run took.
        rate: rows deleted a second.
        completed: whether nothing is left to do.
        next: seconds until another run is of use.
        dry_run: whether anything was deleted at all.
    """

    scanned: int
    deleted: int
    spared: int
    odd: int
    failed: int
    error: str | None
    stuck: int
    shards: int
    shards_done: int
    shards_taken: int
    oldest_expired_age: float | None
    seconds: float
    rate: float
    completed: bool
    next: float
    dry_run: bool


@dataclass(frozen=True)
class PurgeRefused(Event):
    """Somebody asked for the purge who may not. *reason* is for the operator alone."""

    reason: str
