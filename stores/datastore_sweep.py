"""The sweep of a Datastore kind: what has expired, found by one built-in index.

Every entity has the property ``sweep``: the prefix and the first two hex digits of its key,
which are its *shard*, then the hour of its expiry. So each shard is a range of that index, in
the order of expiry, and 256 shards are 256 places to work at. A page of a sweep is three calls:
the keys of the range (a keys-only query), the expiry and version of what stands under them now
(a look-up), and one commit that deletes each entity on condition of that version. The look-up
is what makes an index harmless that is behind, and the condition what makes a session stay
that is extended in between. The three share one deadline.

Only whole hours are swept, so that no page is full of what is still alive. The time is the
earlier of the caller's and the server's: a machine whose clock is ahead deletes nothing early.

Notes are entities of a kind of their own, ``SessionEntitySweep``, one a shard.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from typing import TypeVar

from tieredsession.contracts import Note, Swept
from tieredsession.stores import datastore_rpc as rpc
from tieredsession.tokens import KEY_DIGITS

T = TypeVar("T")

NOTES = "Sweep"
"""Behind the name of the kind, the kind of the notes."""

_HOUR = 3600
_SHARD = 2  # hex digits
_RATE = 500.0  # deletes a second at first: the 500/50/5 rule
_DEADLINE = 20.0  # seconds for a page or a note, however many calls that is: purge() counts on it
_CANARY = "-canary".ljust(KEY_DIGITS - _SHARD, "-")  # no hash has such digits
_FEW = 20
_LOOKUP = 500  # keys; the service takes 1000


def sweep_value(key: str, expires: int) -> str:
    """The property ``sweep`` of the entity under *key*; *expires* is in seconds UTC."""
    return f"{key[: _SHARD - KEY_DIGITS]}{expires // _HOUR:010d}"


class DatastoreSweep:
    """A :class:`~tieredsession.contracts.ShardedSweep` of one kind and prefix.

    Args:
        connect: makes or finds the process's connection.
        prefix: of the storage keys. Entities under any other are not touched.
        kind: of the entities.
        deadline: makes a deadline of a number of seconds.

    Raises:
        StoreError: as the calls of ``DatastoreSessionStore``.
    """

    shards: Sequence[str] = tuple(f"{number:02x}" for number in range(1 << 4 * _SHARD))
    sweep_rate: float | None = _RATE

    def __init__(
        self,
        connect: rpc.Connector,
        prefix: str,
        kind: str,
        deadline: Callable[[float], rpc.Deadline],
    ) -> None:
        self._connect = connect
        self._prefix = prefix
        self._kind = kind
        self._deadline = deadline

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
        hours = range(max(0, int(since)) // _HOUR, max(0, int(until)) // _HOUR)
        if not hours:
            return Swept(0, 0, 0, 0, since, None)
        deadline = self._deadline(_DEADLINE)
        request = self._query("sweep", limit, after)
        start = self._prefix + shard
        _bound(request, "sweep", f"{start}{hours.start:010d}", f"{start}{hours.stop:010d}")
        keys, end = self._keys(request, shard, deadline)
        done = float(hours.stop * _HOUR)
        if dry_run:
            return Swept(len(keys), len(keys), 0, 0, since, end)
        page, last = self._delete_expired(keys, done, deadline)
        return page._replace(reached=done if end is None else max(since, last), after=end)

    def walk(
        self,
        shard: str,
        until: float,
        limit: int,
        after: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Swept:
        deadline = self._deadline(_DEADLINE)
        done = float(max(0, int(until)) // _HOUR * _HOUR)
        request = self._query("__key__", limit, after)
        start = self._prefix + shard
        _bound(request, "__key__", self._key(start), self._key(start + "g"))  # "g" is behind "f"
        keys, end = self._keys(request, shard, deadline)
        page, _ = self._delete_expired(keys, done, deadline, dry_run=dry_run)
        return page._replace(reached=done if end is None else 0.0, after=end)

    def oldest(self, shard: str) -> float | None:
        deadline = self._deadline(_DEADLINE)
        start = self._prefix + shard
        after: str | None = None
        while True:
            request = self._query("sweep", _FEW, after)
            _bound(request, "sweep", start, start + "g")
            keys, after = self._keys(request, shard, deadline)
            found, _ = self._look_up(keys, deadline)
            expiries = [expiry for expiry in map(_expiry, found) if expiry is not None]
            if expiries:
                # The index is in hours: the first of the first hour may stand further behind.
                return min(expiries)
            if after is None:
                return None

    # -- ShardedSweep -----------------------------------------------------------------

    def read_notes(self, names: Sequence[str]) -> dict[str, Note]:
        wanted = [self._key(self._prefix + name, NOTES) for name in names]
        deadline = self._deadline(_DEADLINE)
        found: dict[str, Note] = {}
        for start in range(0, len(wanted), _LOOKUP):
            request = self._lookup(wanted[start : start + _LOOKUP])
            for one in self._look_up_all(request, deadline)[0]:
                name = one.entity.key.path[-1].name[len(self._prefix) :]
                found[name] = Note(one.entity.properties["data"].blob_value, one.version)
        return found

    def write_note(self, name: str, data: bytes, version: int | None) -> int | None:
        request = self._commit()
        mutation = request.mutations.add()
        entity = mutation.insert if version is None else mutation.update
        if version is not None:
            mutation.base_version = version
        entity.key.CopyFrom(self._key(self._prefix + name, NOTES))
        entity.properties["data"].blob_value = data
        entity.properties["data"].exclude_from_indexes = True
        version, repeated = self._commit_once(request)
        if version is None and repeated:
            there = self.read_notes([name]).get(name)
            if there is not None and there.data == data:
                return there.version  # ours: a lease that nobody knows to be his lasts an hour
        return version

    def plant(self, shard: str, expires: float) -> bool:
        name = self._prefix + shard + _CANARY
        request = self._commit()
        entity = request.mutations.add().insert
        entity.key.CopyFrom(self._key(name))
        entity.properties["expires"].timestamp_value.seconds = int(expires)
        entity.properties["expires"].exclude_from_indexes = True
        entity.properties["sweep"].string_value = sweep_value(name, int(expires))
        version, repeated = self._commit_once(request)
        return version is not None or repeated

    # -- inside -----------------------------------------------------------------------

    @property
    def _at(self) -> rpc.Connection:
        return self._connect()

    def _delete_expired(
        self,
        keys: list[rpc.Message],
        until: float,
        deadline: rpc.Deadline,
        *,
        dry_run: bool = False,
    ) -> tuple[Swept, float]:
        """Delete what stands under *keys* and expired before *until*, and nothing else.

        And the beginning of the hour in which the last of them expired.
        """
        found, now = self._look_up(keys, deadline)
        dead: list[tuple[rpc.Message, int]] = []
        spared = odd = 0
        last = 0.0
        for one in found:
            expiry = _expiry(one)
            if expiry is None:
                odd += 1
            elif expiry < until and expiry < now:
                dead.append((one.entity.key, one.version))
                last = max(last, float(expiry // _HOUR * _HOUR))
            else:
                spared += 1
        conflicts = 0 if dry_run else self._delete(dead, deadline)
        deleted = len(dead) - conflicts
        return Swept(len(keys), deleted, spared + conflicts, odd, 0.0, None), last

    def _look_up(
        self, keys: list[rpc.Message], deadline: rpc.Deadline
    ) -> tuple[list[rpc.Message], float]:
        """The entities under *keys*, and the server's time."""
        if not keys:
            return [], 0.0
        request = self._lookup(keys)
        # The emulator answers with all properties all the same; the service saves the blobs.
        request.property_mask.paths.append("expires")
        return self._look_up_all(request, deadline)

    def _lookup(self, keys: Sequence[rpc.Message]) -> rpc.Message:
        request = rpc.LookupRequest(project_id=self._at.project, database_id=self._at.database)
        request.keys.extend(keys)
        return request

    def _look_up_all(
        self, request: rpc.Message, deadline: rpc.Deadline
    ) -> tuple[list[rpc.Message], float]:
        """What is found, and the time of the server at which it began to look."""
        found: list[rpc.Message] = []
        now = float("inf")
        while request.keys:
            response = self._call(lambda timeout: self._at.lookup(request, timeout), deadline)
            found.extend(response.found)
            now = min(now, float(response.read_time.seconds or "inf"))
            del request.keys[:]
            request.keys.extend(response.deferred)  # unknown, which is not missing
        return found, now

    def _delete(self, dead: list[tuple[rpc.Message, int]], deadline: rpc.Deadline) -> int:
        """Delete entities at their versions; how many were changed in the meantime."""
        if not dead:
            return 0
        request = self._commit()
        for key, version in dead:
            mutation = request.mutations.add()
            mutation.delete.CopyFrom(key)
            mutation.base_version = version
        done = self._call(lambda timeout: self._at.commit(request, timeout), deadline)
        # A conflict at version 0 met nothing: somebody else has deleted it, or a lost reply
        # of this very commit.
        return sum(1 for one in done.mutation_results if one.conflict_detected and one.version)

    def _commit_once(self, request: rpc.Message) -> tuple[int | None, bool]:
        """The version that a commit of one entity made, or ``None`` if its condition refused it.

        And whether what stands there may be of an earlier try, whose reply was lost.
        """
        tries = 0

        def commit(timeout: float) -> rpc.Message:
            nonlocal tries
            tries += 1
            return self._at.commit(request, timeout)

        try:
            (done,) = self._call(commit, self._deadline(_DEADLINE)).mutation_results
        except rpc.Refused:
            return None, tries > 1
        return None if done.conflict_detected else int(done.version), tries > 1

    def _query(self, order: str, limit: int, after: str | None) -> rpc.Message:
        request = rpc.QueryRequest(project_id=self._at.project, database_id=self._at.database)
        request.partition_id.CopyFrom(self._key("").partition_id)
        query = request.query
        query.kind.add().name = self._kind
        query.projection.add().property.name = "__key__"
        query.order.add().property.name = order
        query.limit.value = limit
        if after is not None:
            query.start_cursor = _cursor(after)
        return request

    def _keys(
        self, request: rpc.Message, shard: str, deadline: rpc.Deadline
    ) -> tuple[list[rpc.Message], str | None]:
        """The keys of *shard* on one page, and where the next begins, if there is one."""
        batch = self._call(lambda timeout: self._at.query(request, timeout), deadline).batch
        # Another prefix may lie inside a range of this one, as "a1" does in "".
        start, size = self._prefix + shard, len(self._prefix) + KEY_DIGITS
        keys = [result.entity.key for result in batch.entity_results]
        mine = [k for k in keys if (n := k.path[-1].name).startswith(start) and len(n) == size]
        # A page may be shorter than asked for, or empty, and not the last: only this tells.
        # "More after the limit" is said of a short page, too, and then means nothing.
        short = len(keys) < request.query.limit.value
        if batch.more_results != batch.NOT_FINISHED and short:
            return mine, None
        return mine, b64encode(batch.end_cursor).decode("ascii")

    def _commit(self) -> rpc.Message:
        return rpc.CommitRequest(
            project_id=self._at.project,
            database_id=self._at.database,
            mode=rpc.CommitRequest.NON_TRANSACTIONAL,
        )

    def _key(self, name: str, suffix: str = "") -> rpc.Message:
        key = rpc.Key()
        key.partition_id.project_id = self._at.project
        key.partition_id.database_id = self._at.database
        key.partition_id.namespace_id = self._at.namespace
        part = key.path.add()
        part.kind = self._kind + suffix
        part.name = name
        return key

    def _call(self, call: Callable[[float], T], deadline: rpc.Deadline) -> T:
        cause: object = "the time is up"
        for timeout in deadline.tries():
            try:
                return call(timeout)
            except rpc.Undecided as undecided:
                cause = undecided
        raise self._at.unavailable(cause)


def _bound(
    request: rpc.Message, name: str, first: str | rpc.Message, behind: str | rpc.Message
) -> None:
    """Let the query find *first* <= *name* < *behind*."""
    both = request.query.filter.composite_filter
    both.op = both.AND
    for operator, value in (("GREATER_THAN_OR_EQUAL", first), ("LESS_THAN", behind)):
        bound = both.filters.add().property_filter
        bound.property.name = name
        bound.op = getattr(bound, operator)
        if isinstance(value, str):
            bound.value.string_value = value
        else:
            bound.value.key_value.CopyFrom(value)


def _cursor(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise ValueError("not a place in a sweep") from None


def _expiry(found: rpc.Message) -> int | None:
    """When an entity expires, seconds UTC, or ``None`` if it does not say."""
    if "expires" not in found.entity.properties:
        return None
    value = found.entity.properties["expires"]
    if value.WhichOneof("value_type") != "timestamp_value":
        return None
    return int(value.timestamp_value.seconds)
