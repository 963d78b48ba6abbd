"""One SQLite file as a store: the embedded default for a laptop, a demo or one machine.

Every call is one statement, so every call is atomic between threads and processes:
``UPDATE ... WHERE version = ?`` is at once the write, the lost-update check and the check
that a dead session stays dead. The file is in WAL mode (readers do not wait for a writer)
and synced at each commit, so an acknowledged logout survives a power cut;
``?synchronous=normal`` trades that for speed. A process may fork, but not while another
thread is inside a call.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

from tieredsession.contracts import Observer, Owned, Record, Saved, Swept
from tieredsession.envelope import Envelope, Refused
from tieredsession.errors import Conflict, Gone, StoreError, StoreUnavailable
from tieredsession.events import TokenRefused
from tieredsession.options import StoreOptions
from tieredsession.tokens import Owners, SessionIds
from tieredsession.url import URL

T = TypeVar("T")

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x74737373  # "tsss", so that no other database is taken for ours

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS sessions (
    key TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    owner TEXT,
    data BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires);
CREATE INDEX IF NOT EXISTS sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


class SQLiteSessionStore:
    """Sessions in one SQLite file, safe under several threads and processes.

    Args:
        path: the file; it is created, readable by its owner alone.
        ids: mints and checks tokens.
        envelope: seals the records.
        observer: is told why a token was refused.
        owners: names principals in the index, or ``None`` to keep none.
        timeout: seconds to wait for another process's lock.
        synchronous: ``"full"`` or ``"normal"``, as in SQLite's pragma.

    Raises:
        StoreError: the file is not a session database, is of a newer release, is full,
            read-only or corrupt. The message names the file and the cause.
        StoreUnavailable: it stayed locked for *timeout* seconds.
    """

    revocable = True
    shards = ("",)
    sweep_rate: float | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        ids: SessionIds,
        envelope: Envelope,
        observer: Observer | None = None,
        *,
        owners: Owners | None = None,
        timeout: float = 2.0,
        synchronous: str = "full",
    ) -> None:
        self._path = os.path.abspath(path)
        self._ids = ids
        self._envelope = envelope
        self._observer = observer
        self._owners = owners
        self.principals = owners is not None
        self._timeout = timeout
        self._synchronous = synchronous
        self._idle: deque[sqlite3.Connection] = deque()
        self._abandoned: list[deque[sqlite3.Connection]] = []
        self._pid = os.getpid()
        try:
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error
        _stores.add(self)

    @classmethod
    def from_options(cls, options: StoreOptions) -> SQLiteSessionStore:
        """Read ``SESSION_STORE_URL``: ``sqlite:///relative`` or ``sqlite:////absolute``."""
        url = options.url or URL("sqlite:///sessions.sqlite3", "SESSION_STORE_URL")
        if url.scheme != "sqlite" or url.hosts or len(url.path) < 2:
            raise url.error("is not of the form sqlite:///file")
        if url.path == "/:memory:":  # as others write it; here it would be a file of that name
            raise url.error("names no file: for a store in memory take MemorySessionStore")

        def parse_synchronous(text: str) -> str:
            if text not in ("full", "normal"):
                raise ValueError("full or normal")
            return text

        timeout = url.seconds("timeout", 2.0)
        synchronous = url.option("synchronous", "full", parse_synchronous)
        url.finish()
        return cls(
            url.path[1:],
            options.ids,
            options.record_envelope,
            options.observer,
            owners=options.owners,
            timeout=timeout,
            synchronous=synchronous,
        )

    # -- SessionStore -----------------------------------------------------------------

    def load(self, token: str, now: float) -> Record | None:
        key = self._ids.key(token)
        if key is None:
            record, reason = None, self._ids.refusal(token)
        else:
            record, reason = self._read(key, now)
        if record is None and self._observer is not None:
            self._observer(TokenRefused(reason, session=self._ids.label(token)))
        return record

    def create(self, record: Record, now: float) -> Saved:
        token, key = self._ids.mint()
        self._run(
            "INSERT INTO sessions (key, version, expires, owner, data) VALUES (?, 1, ?, ?, ?)",
            (key, *self._columns(key, record)),
        )
        return Saved(token, 1)

    def update(self, token: str, record: Record, now: float) -> Saved:
        key = self._ids.key(token)
        if key is None:
            raise Gone("the token is not a session")
        _, changed = self._run(
            "UPDATE sessions SET version = version + 1, expires = ?, owner = ?, data = ?"
            " WHERE key = ? AND version = ? AND expires > ?",
            (*self._columns(key, record), key, record.version, now),
        )
        if not changed:
            self._explain(key, now)
        return Saved(self._ids.current(token), record.version + 1)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        key = self._ids.key(token)
        if key is not None:
            self.end(key, now, version)
        elif version is not None:
            raise Gone("the token is not a session")

    def label(self, token: str) -> str | None:
        return self._ids.label(token)

    # -- Sweepable --------------------------------------------------------------------

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
        """One statement, which looks at the expiry itself: *since* and *after* save nothing."""
        if dry_run:
            (found,), _ = self._run("SELECT count(*) FROM sessions WHERE expires < ?", (until,))
            return Swept(found, found, 0, 0, since, None)
        _, deleted = self._run(
            "DELETE FROM sessions WHERE key IN"
            " (SELECT key FROM sessions WHERE expires < ? ORDER BY expires LIMIT ?)",
            (until, limit),
        )
        done = deleted < limit
        return Swept(deleted, deleted, 0, 0, until if done else since, None if done else "more")

    def oldest(self, shard: str) -> float | None:
        (first,), _ = self._run("SELECT min(expires) FROM sessions", ())
        return None if first is None else float(first)

    # -- ByPrincipal ------------------------------------------------------------------

    def sessions_of(self, principal: str, now: float) -> list[Owned]:
        names = [] if self._owners is None else self._owners.names(principal)
        owned = []
        for name in names:
            rows = self._run_all("SELECT key, version, data FROM sessions WHERE owner = ?", (name,))
            for key, version, data in rows:
                record, _ = self._open(key, version, data, now)
                # The index is not sealed, and the record is.
                if record is not None and record.principal == principal:
                    owned.append(Owned(key, record))
        return owned

    def end(self, key: str, now: float, version: int | None = None) -> None:
        if version is None:
            self._run("DELETE FROM sessions WHERE key = ?", (key,))
            return
        _, deleted = self._run(
            "DELETE FROM sessions WHERE key = ? AND version = ? AND expires > ?",
            (key, version, now),
        )
        if not deleted:
            self._explain(key, now)

    def close(self) -> None:
        """Close the idle connections; the store opens others if it is used again."""
        idle = self._connections()
        with suppress(IndexError):  # in the meantime a call may have taken the last
            while True:
                idle.pop().close()

    # -- inside -----------------------------------------------------------------------

    def _columns(self, key: str, record: Record) -> tuple[int, str | None, bytes]:
        owner = None if self._owners is None else self._owners.name(record.principal)
        return int(record.expires), owner, self._envelope.seal(record, key.encode())

    def _read(self, key: str, now: float) -> tuple[Record | None, str]:
        """The live record under *key*, or why there is none."""
        row, _ = self._run("SELECT version, data FROM sessions WHERE key = ?", (key,))
        if row is None:
            return None, "unknown"
        version, data = row
        return self._open(key, version, data, now)

    def _open(self, key: str, version: int, data: bytes, now: float) -> tuple[Record | None, str]:
        if (type(key), type(version), type(data)) != (str, int, bytes):
            return None, "malformed"  # the types of SQLite's columns bind nobody
        try:
            record = self._envelope.open(data, key.encode(), version)
        except Refused as refused:
            return None, refused.reason
        return (record, "") if record.expires > now else (None, "expired")

    def _explain(self, key: str, now: float) -> NoReturn:
        """Say why a conditional statement met no row."""
        current, _ = self._read(key, now)
        if current is None:
            raise Gone("the session has ended")
        raise Conflict(current)

    def _run(self, statement: str, parameters: tuple[Any, ...]) -> tuple[Any, int]:
        """The first row of one *statement*, and how many rows it changed."""

        def ask(connection: sqlite3.Connection) -> tuple[Any, int]:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchone(), cursor.rowcount

        return self._with_connection(ask)

    def _run_all(self, statement: str, parameters: tuple[Any, ...]) -> list[Any]:
        """All rows of one *statement*."""
        return self._with_connection(lambda c: c.execute(statement, parameters).fetchall())

    def _with_connection(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._take()
            try:
                answer = work(connection)
            except BaseException:
                # It may be in the middle of something: it is not used again.
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._idle.append(connection)
        return answer

    def _take(self) -> sqlite3.Connection:
        """A connection that nobody else uses."""
        try:
            return self._connections().pop()
        except IndexError:
            return self._connect()

    def _connections(self) -> deque[sqlite3.Connection]:
        """Those of this process that are idle."""
        if os.getpid() != self._pid:
            # SQLite forbids using a connection after a fork, and closing it there, too.
            self._abandoned.append(self._idle)
            self._idle = deque()
            self._pid = os.getpid()
        return self._idle

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        # Text of ours is ASCII; what is not even text, somebody else has written.
        connection.text_factory = lambda raw: raw.decode("ascii", "replace")
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        # Sessions are personal data: the file is its owner's alone. SQLite gives its
        # companions (-wal, -shm) the same mode. A file that is there is not even opened: to
        # close it would take away the locks of every connection that this process has to it.
        with suppress(FileExistsError):
            new = os.open(os.path.realpath(self._path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.close(new)
        if not os.access(self._path, os.W_OK):
            raise PermissionError("it cannot be written")
        with closing(self._connect()) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application != _APPLICATION_ID:
                raise StoreError(f"the SQLite file {self._path} is not a session database")
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"the SQLite file {self._path} has schema version {version} and this release "
                    f"knows {SCHEMA_VERSION}: install the release that wrote it"
                )
            if version < SCHEMA_VERSION:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)

    def _failed(self, error: Exception) -> StoreError:
        kind = StoreUnavailable if "locked" in str(error) else StoreError
        return kind(f"the SQLite file {self._path} cannot be used: {error}")


_stores: WeakSet[SQLiteSessionStore] = WeakSet()


def _before_fork() -> None:
    """Close what is idle: in the child, SQLite would believe to have the locks of its parent.

    It would take none of its own, and once the parent has ended, whoever else opens and closes
    the file would delete the log that the child still writes to.
    """
    for store in _stores:
        store.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
