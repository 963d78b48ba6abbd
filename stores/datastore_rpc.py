"""Calls to Google Datastore over the channel of an ndb client, each within a deadline.

What ndb knows is taken from it: project, database, namespace, credentials, the emulator and
the channel. Its models and tasklets are left out: they cost four to five times the CPU, know
no deadline, and hide the entity versions that every conditional commit here stands on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import urlencode

from tieredsession.errors import MissingDependencyError, StoreError, StoreUnavailable

try:
    import grpc
    from google.cloud.datastore_v1.types import datastore as _calls
    from google.cloud.datastore_v1.types import entity as _entities
except ImportError:
    raise MissingDependencyError("the Datastore client (google-cloud-ndb)", "datastore") from None

# The generated classes inside the wrappers, which double the time of every field.
LookupRequest = _calls.LookupRequest.pb()
LookupResponse = _calls.LookupResponse.pb()
CommitRequest = _calls.CommitRequest.pb()
CommitResponse = _calls.CommitResponse.pb()
QueryRequest = _calls.RunQueryRequest.pb()
QueryResponse = _calls.RunQueryResponse.pb()
Entity = _entities.Entity.pb()
Key = _entities.Key.pb()

_TRIES = 3
_PAUSE = 0.05  # seconds at most before the second try, and twice that before the third
_SERVICE = "/google.datastore.v1.Datastore/"

_Code = grpc.StatusCode
# Of these one cannot tell whether the call had its effect, or it had none and may be repeated.
# ABORTED is contention; UNKNOWN and CANCELLED are what a broken stream turns into.
_UNDECIDED = frozenset(
    {
        _Code.ABORTED,
        _Code.CANCELLED,
        _Code.DEADLINE_EXCEEDED,
        _Code.INTERNAL,
        _Code.UNAVAILABLE,
        _Code.UNKNOWN,
    }
)
_REFUSED = frozenset({_Code.ALREADY_EXISTS, _Code.NOT_FOUND})
# The texts of these speak of the service. Those of others may name a key.
_QUOTED = frozenset(
    {
        _Code.DEADLINE_EXCEEDED,
        _Code.FAILED_PRECONDITION,
        _Code.NOT_FOUND,
        _Code.PERMISSION_DENIED,
        _Code.RESOURCE_EXHAUSTED,
        _Code.UNAUTHENTICATED,
        _Code.UNAVAILABLE,
    }
)

Message = Any
"""A generated protobuf message; the library has no types for them."""


class _Method(Protocol):
    def __call__(
        self, request: Message, /, *, timeout: float, metadata: tuple[tuple[str, str], ...]
    ) -> Message: ...


class _Channel(Protocol):
    def unary_unary(
        self,
        method: str,
        *,
        request_serializer: Callable[[Message], bytes],
        response_deserializer: Callable[[bytes], Message],
    ) -> _Method: ...


class _Stub(Protocol):
    @property
    def grpc_channel(self) -> _Channel: ...


class Client(Protocol):
    """What is used of a ``google.cloud.ndb.Client``."""

    @property
    def project(self) -> str: ...

    @property
    def database(self) -> str | None: ...

    @property
    def namespace(self) -> str | None: ...

    @property
    def stub(self) -> _Stub: ...


class Undecided(Exception):
    """A call failed in a way that may pass. Whether it had its effect is not known."""


class Refused(Exception):
    """A commit had no effect: what it inserts is there, or what it updates is not."""


class Deadline:
    """The time for one call of the store, however many calls to Datastore that takes.

    Args:
        seconds: from now.
        clock: seconds, monotonic.
        sleep: waits for a number of seconds.
        jitter: a number from 0 to 1 that spreads retries, so that clients which failed
            together do not come back together.
    """

    __slots__ = ("_clock", "_end", "_jitter", "_sleep")

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        jitter: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._end = clock() + seconds

    def tries(self) -> Iterator[float]:
        """The timeout of each try in seconds, with a pause before each but the first.

        A try may take half of what is left, so that one which hangs leaves time to find
        out what became of it; the last may take all.
        """
        for number in range(1, _TRIES + 1):
            if number > 1:
                pause = self._jitter() * _PAUSE * 2 ** (number - 2)
                self._sleep(min(pause, max(0.0, self._end - self._clock())))
            left = self._end - self._clock()
            if left <= 0:
                return
            yield left / 2 if number < _TRIES else left


class Connection:
    """The way of one process to Datastore."""

    def __init__(self, client: Client) -> None:
        self.project = client.project
        self.database = client.database or ""
        self.namespace = client.namespace or ""
        route = {"project_id": self.project}
        if self.database:
            route["database_id"] = self.database
        # By this header the service finds the database; ndb's own calls carry it, too.
        self._metadata = (("x-goog-request-params", urlencode(route)),)
        channel = client.stub.grpc_channel
        self._lookup = channel.unary_unary(
            _SERVICE + "Lookup",
            request_serializer=LookupRequest.SerializeToString,
            response_deserializer=LookupResponse.FromString,
        )
        self._query = channel.unary_unary(
            _SERVICE + "RunQuery",
            request_serializer=QueryRequest.SerializeToString,
            response_deserializer=QueryResponse.FromString,
        )
        self._commit = channel.unary_unary(
            _SERVICE + "Commit",
            request_serializer=CommitRequest.SerializeToString,
            response_deserializer=CommitResponse.FromString,
        )

    def lookup(self, request: Message, timeout: float) -> Message:
        """One try of a ``Lookup``.

        Raises:
            Undecided: it may be tried again.
            StoreError: trying again is of no use.
        """
        return self._read(self._lookup, request, timeout)

    def query(self, request: Message, timeout: float) -> Message:
        """One try of a ``RunQuery``; errors as for :meth:`lookup`."""
        return self._read(self._query, request, timeout)

    def commit(self, request: Message, timeout: float) -> Message:
        """One try of a ``Commit``; errors as for :meth:`lookup`, and ``Refused``."""
        try:
            return self._commit(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in _REFUSED:
                raise Refused from None
            raise self._translate(error) from None

    def unavailable(self, cause: object) -> StoreUnavailable:
        """The error of a call whose tries or time are used up."""
        return StoreUnavailable(f"{self} does not answer: {cause}")

    def __str__(self) -> str:
        database = self.database or "(default)"
        return f"Datastore (project {self.project}, database {database})"

    def _read(self, method: _Method, request: Message, timeout: float) -> Message:
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(error) from None

    def _translate(self, error: Any) -> Exception:
        code = error.code()
        cause = f"{code.name}: {error.details()}" if code in _QUOTED else code.name
        if code in _UNDECIDED:
            return Undecided(cause)
        if code is _Code.RESOURCE_EXHAUSTED:
            # A quota is used up or the service sheds load: to insist makes it worse.
            return self.unavailable(cause)
        return StoreError(f"{self} refused the call: {cause}")


class Connector:
    """Gives each process a connection of its own, made at its first call.

    A gRPC channel that was in use does not survive ``fork``: calls over it fail or hang in
    the child. So none is handed down; the parent's stays referenced in the child and is not
    closed there, since closing it would touch what the parent is using.
    """

    def __init__(self, client: Client | Callable[[], Any]) -> None:
        self._client = client
        self._connections: dict[int, Connection] = {}

    def __call__(self) -> Connection:
        try:
            return self._connections[os.getpid()]
        except KeyError:
            return self._connect()

    def _connect(self) -> Connection:
        pid = os.getpid()
        if callable(self._client):
            client = self._client()
        elif self._connections.keys() <= {pid}:
            client = self._client
        else:
            raise StoreError(
                "this process was forked from one that uses the same ndb client: give the store "
                "a function that makes a client, such as  lambda: ndb.Client()"
            )
        # Of two threads that come first, both make a connection and one is kept: a lock
        # here could be held by another thread at the moment of a fork.
        return self._connections.setdefault(pid, Connection(client))
