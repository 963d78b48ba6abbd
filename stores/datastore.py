"""Google Datastore, or Firestore in Datastore mode, as a durable store.

One session is one entity, and every change of it is one commit outside a transaction,
conditional on the version that was read: at once the write, the lost-update check and the
check that a dead session stays dead, with no read before it. The entity::

    key name    the storage key: SHA-256 of the id, so that keys spread evenly
    data        the sealed record
    expires     a timestamp, for a TTL policy as a safety net behind the purge
    sweep       prefix and two hex digits of the key, then the hour of the expiry in ten digits
    write       8 random bytes that name the write, then the version that it replaced
    owner       a keyed hash of the principal, only with ``SESSION_PRINCIPALS``

Only ``sweep`` (and ``owner``) is indexed, by Datastore's built-in index: no ``index.yaml``, and
256 places in that index to write to instead of one. While the expiry stays within its hour, a
save touches no index. :class:`SessionEntity` is the same kind for ndb.

**Threads** share one store. **After a fork** each process makes its own client at its first
call, if the store was given a function that makes one; do not fork while another thread is
inside a call, which hangs in the child whatever this library does. **gevent** needs
``grpc.experimental.gevent.init_gevent()`` beside its own patching: without it a call stops
every greenlet of the process. A channel that lost its server waits before it connects again,
one second at first and up to two minutes after a long outage; until then calls fail at once.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tieredsession.contracts import LONGEST_SAVE, Observer, Owned, Record, Saved
from tieredsession.envelope import Envelope, Refused
from tieredsession.errors import (
    ConfigurationError,
    Conflict,
    Gone,
    MissingDependencyError,
    StoreError,
    StoreUnavailable,
)
from tieredsession.events import TokenRefused
from tieredsession.options import StoreOptions
from tieredsession.stores import datastore_rpc as rpc
from tieredsession.stores.datastore_sweep import DatastoreSweep, sweep_value
from tieredsession.tokens import Owners, SessionIds

try:
    import google.cloud.ndb as ndb
    from google.auth.exceptions import GoogleAuthError
except ImportError:
    raise MissingDependencyError("the Datastore client (google-cloud-ndb)", "datastore") from None

KIND = "SessionEntity"

MAX_SEALED = 1_048_572 - 2_048
"""Bytes of a sealed record: what Datastore takes as one entity, less our key and properties."""

_WRITE_ID = 8  # bytes


class SessionEntity(ndb.Model):  # type: ignore[misc]  # ndb has no types
    """The kind as ndb sees it, to query and to administer sessions with.

    ::

        with client.context():
            SessionEntity.query().count()

    For a store with another ``kind``, subclass it and name that in ``_get_kind``. ndb's own
    caches are off for it: they know nothing of what the store writes.
    """

    _use_cache = False
    _use_global_cache = False

    data = ndb.BlobProperty(indexed=False)
    expires = ndb.DateTimeProperty(indexed=False)
    sweep = ndb.StringProperty()
    write = ndb.BlobProperty(indexed=False)
    owner = ndb.StringProperty()


class DatastoreSessionStore:
    """Sessions in Google Datastore, safe under threads, processes and lost replies.

    A commit whose outcome is not known is not left at that: the entity carries the name of
    the write that made it, so a look-up tells whether it was this one.

    The condition of ``update`` and ``delete`` is the version alone, since a read of the stored
    expiry would be a call more. Expired sessions stay dead all the same: whoever passes a
    version has the record of that version, and its expiry, and looks at it first, as the
    session manager does.

    Args:
        client: a function that makes a ``google.cloud.ndb.Client``, called once in each
            process; ``ndb.Client`` itself will do. Or a client, for a process that does
            not fork after its first session.
        ids: mints and checks tokens.
        envelope: seals the records.
        observer: is told why a token was refused.
        deadline: seconds that one call of the store may take, retries and look-ups included;
            behind a cache, no more than ``LONGEST_SAVE``.
        kind: of the entities.
        owners: names principals in the index, or ``None`` to keep none.
        clock: seconds, monotonic; measures the deadline.
        sleep: waits between two tries.
        jitter: a random number from 0 to 1 that spreads these waits.

    Raises:
        StoreError: Datastore refused the call, or the session is too large for an entity.
            The message names project, database and cause, and never a key.
        StoreUnavailable: it did not answer within the deadline, or a quota is used up. A save
            may have been done or not.
    """

    revocable = True

    def __init__(
        self,
        client: rpc.Client | Callable[[], Any],  # ndb has no types
        ids: SessionIds,
        envelope: Envelope,
        observer: Observer | None = None,
        *,
        deadline: float = 2.0,
        kind: str = KIND,
        owners: Owners | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._connect = rpc.Connector(client)
        self._ids = ids
        self._envelope = envelope
        self._observer = observer
        new_deadline = partial(rpc.Deadline, clock=clock, sleep=sleep, jitter=jitter)
        self._deadline = partial(new_deadline, deadline)
        self._kind = kind
        self._owners = owners
        self.principals = owners is not None
        self._requests: _Requests | None = None
        self.sweepable = DatastoreSweep(self._connect, ids.prefix, kind, new_deadline)
        """Where its expired entities are swept, for :func:`tieredsession.purge.purge`."""

    @classmethod
    def from_options(cls, options: StoreOptions) -> DatastoreSessionStore:
        """Read ``SESSION_STORE_URL``: ``datastore://[project][/database][?option=value]``.

        What it does not name comes from the environment, as for any Google client:
        ``GOOGLE_CLOUD_PROJECT``, default credentials, ``DATASTORE_EMULATOR_HOST``. The options
        are ``namespace``, ``kind``, and ``deadline`` in seconds (2, and no more than 20).

        Raises:
            ConfigurationError: there is no such project or there are no credentials.
        """
        project = database = namespace = None
        deadline, kind = 2.0, KIND
        url = options.url
        if url is not None:
            host, port = url.hosts[0] if url.hosts else (None, None)
            database = None if url.path[1:] in ("", "(default)") else url.path[1:]
            if (
                url.scheme != "datastore"
                or len(url.hosts) > 1
                or port is not None
                or url.username is not None
                or "/" in (database or "")
            ):
                raise url.error("is not of the form datastore://project/database")
            project = host
            namespace = url.option("namespace", None, str)
            kind = url.option("kind", KIND, _parse_kind)
            deadline = url.seconds("deadline", deadline)
            url.finish()
            if deadline > LONGEST_SAVE:
                raise url.error(f"has a deadline of {deadline:g} s; {LONGEST_SAVE:g} is the most")

        store = cls(
            partial(ndb.Client, project=project, namespace=namespace, database=database),
            options.ids,
            options.record_envelope,
            options.observer,
            deadline=deadline,
            kind=kind,
            owners=options.owners,
        )
        try:
            store._connect()
        except (GoogleAuthError, OSError) as error:
            raise ConfigurationError(
                f"Datastore cannot be used: {error} (set GOOGLE_CLOUD_PROJECT or "
                "SESSION_STORE_URL, and default credentials or DATASTORE_EMULATOR_HOST)"
            ) from error
        return store

    # -- SessionStore -----------------------------------------------------------------

    def load(self, token: str, now: float) -> Record | None:
        key = self._ids.key(token)
        if key is None:
            record, reason = None, self._ids.refusal(token)
        else:
            record, reason = self._read(self._lookup(key, self._deadline()), key, now)
        if record is None and self._observer is not None:
            self._observer(TokenRefused(reason, session=self._ids.label(token)))
        return record

    def create(self, record: Record, now: float) -> Saved:
        token, key = self._ids.mint()
        deadline = self._deadline()
        write = os.urandom(_WRITE_ID)
        request = self._request().insert(
            key, self._seal(record, key), record.expires, write, self._owner(record)
        )
        version, _ = self._commit(request, key, write, deadline)
        if version is None:
            current = self._lookup(key, deadline)
            if current is None or not _is_by(current, write):
                raise StoreError("Datastore refused a new session, and holds none of that id")
            version = current.version
        return Saved(token, version)

    def update(self, token: str, record: Record, now: float) -> Saved:
        key = self._ids.key(token)
        if key is None:
            raise Gone("the token is not a session")
        deadline = self._deadline()
        write = os.urandom(_WRITE_ID)
        request = self._request().update(
            key, self._seal(record, key), record.expires, write, self._owner(record), record.version
        )
        version, repeated = self._commit(request, key, write, deadline)
        if version is not None:
            return Saved(self._ids.current(token), version)
        current = self._lookup(key, deadline)
        if current is not None and repeated:
            if _is_by(current, write):
                return Saved(self._ids.current(token), current.version)
            if _replaced(current) != record.version:
                # Others have saved since, perhaps on top of this very write: to merge the
                # change with theirs might make it twice.
                raise StoreUnavailable("a save was overtaken before its reply arrived")
        raise self._refusal(current, key, now)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        key = self._ids.key(token)
        if key is not None:
            self.end(key, now, version)
        elif version is not None:
            raise Gone("the token is not a session")

    def label(self, token: str) -> str | None:
        return self._ids.label(token)

    # -- ByPrincipal ------------------------------------------------------------------

    def sessions_of(self, principal: str, now: float) -> list[Owned]:
        names = [] if self._owners is None else self._owners.names(principal)
        owned = []
        for name in names:
            for found in self._query(self._request().owned_by(name), self._deadline()):
                key: str = found.entity.key.path[-1].name
                record, _ = self._read(found, key, now)
                # The index is not sealed, and the record is.
                if record is not None and record.principal == principal:
                    owned.append(Owned(key, record))
        return owned

    def end(self, key: str, now: float, version: int | None = None) -> None:
        deadline = self._deadline()
        done, repeated = self._commit(self._request().delete(key, version), key, None, deadline)
        if done is not None:
            return
        current = self._lookup(key, deadline)
        if current is not None or not repeated:
            raise self._refusal(current, key, now)

    # -- inside -----------------------------------------------------------------------

    def _request(self) -> _Requests:
        if self._requests is None:
            self._requests = _Requests(self._connect(), self._kind)
        return self._requests

    def _lookup(self, key: str, deadline: rpc.Deadline) -> rpc.Message | None:
        """What Datastore has under *key*: an entity and its version, or ``None``."""
        connection = self._connect()
        request = self._request().lookup(key)
        cause: object = "the time is up"
        for timeout in deadline.tries():
            try:
                response = connection.lookup(request, timeout)
            except rpc.Undecided as undecided:
                cause = undecided
                continue
            if response.found:
                return response.found[0]
            if response.missing:
                return None
            cause = "it put the look-up off"  # "deferred": unknown, which is not missing
        raise connection.unavailable(cause)

    def _query(self, request: rpc.Message, deadline: rpc.Deadline) -> list[rpc.Message]:
        """Every entity that *request* finds, and its version, page by page."""
        connection = self._connect()
        found: list[rpc.Message] = []
        while True:
            cause: object = "the time is up"
            for timeout in deadline.tries():
                try:
                    batch = connection.query(request, timeout).batch
                    break
                except rpc.Undecided as undecided:
                    cause = undecided
            else:
                raise connection.unavailable(cause)
            found += batch.entity_results
            # A page may be empty and not the last: only this tells.
            if batch.more_results != batch.NOT_FINISHED:
                return found
            request.query.start_cursor = batch.end_cursor

    def _owner(self, record: Record) -> str | None:
        return None if self._owners is None else self._owners.name(record.principal)

    def _commit(
        self, request: rpc.Message, key: str, write: bytes | None, deadline: rpc.Deadline
    ) -> tuple[int | None, bool]:
        """The version that the commit made, or ``None`` if its condition refused it.

        And whether an earlier try of it may have been done. *write* names what it writes;
        ``None`` is a deletion.
        """
        connection = self._connect()
        repeated = False
        cause: object = "the time is up"
        for timeout in deadline.tries():
            try:
                result = connection.commit(request, timeout).mutation_results[0]
            except rpc.Refused:
                return None, repeated
            except rpc.Undecided as undecided:
                cause, repeated = undecided, True
                current = self._lookup(key, deadline)
                if write is None and current is None:
                    return 0, True
                if write is not None and current is not None and _is_by(current, write):
                    return current.version, True
                continue  # a first try that arrives late meets the condition of this one
            return (None if result.conflict_detected else result.version), repeated
        raise connection.unavailable(cause)

    def _read(self, found: rpc.Message | None, key: str, now: float) -> tuple[Record | None, str]:
        """The live record in what was *found*, or why there is none."""
        if found is None:
            return None, "unknown"
        data = found.entity.properties["data"].blob_value
        try:
            record = self._envelope.open(data, key.encode(), found.version)
        except Refused as refused:
            return None, refused.reason
        return (record, "") if record.expires > now else (None, "expired")

    def _refusal(self, found: rpc.Message | None, key: str, now: float) -> Conflict | Gone:
        """Why a conditional commit was refused by what was *found*."""
        current, _ = self._read(found, key, now)
        return Gone("the session has ended") if current is None else Conflict(current)

    def _seal(self, record: Record, key: str) -> bytes:
        sealed = self._envelope.seal(record, key.encode())
        if len(sealed) > MAX_SEALED:
            raise StoreError(
                f"the session takes {len(sealed)} bytes and Datastore keeps {MAX_SEALED}: "
                "keep large values elsewhere and their names in the session"
            )
        return sealed


GAESessionStore = DatastoreSessionStore


class _Requests:
    """Makes requests by filling in copies of prepared messages, which are never changed."""

    def __init__(self, connection: rpc.Connection, kind: str) -> None:
        self._lookup = rpc.LookupRequest(
            project_id=connection.project, database_id=connection.database
        )
        key = self._lookup.keys.add()
        key.partition_id.project_id = connection.project
        key.partition_id.database_id = connection.database
        key.partition_id.namespace_id = connection.namespace
        key.path.add().kind = kind
        self._partition = key.partition_id
        self._kind = kind
        self._delete = rpc.CommitRequest(
            project_id=connection.project,
            database_id=connection.database,
            mode=rpc.CommitRequest.NON_TRANSACTIONAL,
        )
        self._insert = _copy(self._delete)
        self._update = _copy(self._delete)
        self._delete.mutations.add().delete.CopyFrom(key)
        entity = rpc.Entity(key=key)
        for name in ("data", "expires", "write"):
            entity.properties[name].exclude_from_indexes = True
        self._insert.mutations.add().insert.CopyFrom(entity)
        self._update.mutations.add().update.CopyFrom(entity)

    def lookup(self, key: str) -> rpc.Message:
        request = _copy(self._lookup)
        request.keys[0].path[0].name = key
        return request

    def owned_by(self, name: str) -> rpc.Message:
        request = rpc.QueryRequest(
            project_id=self._lookup.project_id,
            database_id=self._lookup.database_id,
            partition_id=self._partition,
        )
        request.query.kind.add().name = self._kind
        wanted = request.query.filter.property_filter
        wanted.property.name = "owner"
        wanted.op = wanted.EQUAL
        wanted.value.string_value = name
        return request

    def insert(
        self, key: str, sealed: bytes, expires: float, write: bytes, owner: str | None
    ) -> rpc.Message:
        request = _copy(self._insert)
        _fill(request.mutations[0].insert, key, sealed, int(expires), write, owner)
        return request

    def update(
        self,
        key: str,
        sealed: bytes,
        expires: float,
        write: bytes,
        owner: str | None,
        version: int,
    ) -> rpc.Message:
        request = _copy(self._update)
        mutation = request.mutations[0]
        mutation.base_version = version
        _fill(mutation.update, key, sealed, int(expires), write, owner, version)
        return request

    def delete(self, key: str, version: int | None) -> rpc.Message:
        request = _copy(self._delete)
        mutation = request.mutations[0]
        if version is not None:
            mutation.base_version = version
        mutation.delete.path[0].name = key
        return request


def _copy(prepared: rpc.Message) -> rpc.Message:
    request = type(prepared)()
    request.CopyFrom(prepared)
    return request


def _fill(
    entity: rpc.Message,
    key: str,
    sealed: bytes,
    expires: int,
    write: bytes,
    owner: str | None,
    replaced: int = 0,
) -> None:
    entity.key.path[0].name = key
    properties = entity.properties
    properties["data"].blob_value = sealed
    properties["expires"].timestamp_value.seconds = expires
    properties["sweep"].string_value = sweep_value(key, expires)
    properties["write"].blob_value = write + replaced.to_bytes(8, "big")
    if owner is not None:
        properties["owner"].string_value = owner


def _is_by(found: rpc.Message, write: bytes) -> bool:
    """Whether *write* made the entity what it is."""
    return _write_of(found)[:_WRITE_ID] == write


def _replaced(found: rpc.Message) -> int:
    """The version that the last write replaced."""
    return int.from_bytes(_write_of(found)[_WRITE_ID:], "big")


def _write_of(found: rpc.Message) -> bytes:
    name: bytes = found.entity.properties["write"].blob_value
    return name


def _parse_kind(text: str) -> str:
    if not text or (text.startswith("__") and text.endswith("__")):
        raise ValueError("the name of a kind: Datastore keeps __names__ for itself")
    return text
