"""How many calls a request makes to each tier, counted at the servers.

memcached keeps its own statistics, Redis tells each command as it comes (``MONITOR``, without
those that a script makes inside of it), and Datastore is counted by a gRPC server that stands
before the emulator and hands every call on. Nothing is timed while this counts.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.servers import Servers, talk

CACHE, CALLS, READS, WRITES, DELETES = MEASURES = (
    "cache calls",
    "Datastore calls",
    "reads",
    "writes",
    "deletes",
)
"""Commands to a cache, calls to Datastore, and the entities that these read, write and delete."""

_SERVICE = "/google.datastore.v1.Datastore/"


class Meters:
    """Reads the counters of *servers*; ``servers["datastore"]`` is its own counting proxy."""

    def __init__(self, servers: Servers, datastore: Counter[str]) -> None:
        self.servers = servers
        self._datastore = datastore

    def count(self, work: Callable[[], object]) -> Counter[str]:
        """What *work* makes the servers do."""
        with ExitStack() as stack:
            before = self._datastore.copy()
            memcached = self._memcached()
            commands = stack.enter_context(_monitor(self.servers)) if self._has("redis") else []
            work()
            counts = self._datastore.copy()
            counts.subtract(before)
            counts[CACHE] += self._memcached() - memcached
        counts[CACHE] += len(commands)
        return counts

    def _has(self, name: str) -> bool:
        return name in self.servers

    def _memcached(self) -> int:
        if not self._has("memcached"):
            return 0
        lines = talk(self.servers["memcached"], b"stats", b"quit").split(b"\r\n")
        stats = {line.split()[1].decode(): line.split()[2] for line in lines if line[:4] == b"STAT"}
        return sum(int(stats[name]) for name in _MEMCACHED if name in stats)


# Each command raises one of these by one.
_MEMCACHED = (
    *("cmd_get", "cmd_set", "cmd_touch", "delete_hits", "delete_misses"),
    *("incr_hits", "incr_misses", "decr_hits", "decr_misses"),
)
_NO_WORK = (b'"INFO"', b'"CLIENT"', b'"HELLO"', b'"PING"', b'"SELECT"')


@contextmanager
def _monitor(servers: Servers) -> Iterator[list[bytes]]:
    """The commands that clients send to Redis in the block; complete when it has ended."""
    host, _, port = servers["redis"].rpartition(":")
    commands: list[bytes] = []
    with socket.create_connection((host, int(port)), timeout=10) as watch:
        watch.sendall(b"MONITOR\r\n")
        lines = watch.makefile("rb")
        lines.readline()
        yield commands
        talk(servers["redis"], b"ECHO the-end", b"QUIT")
        for line in lines:
            if b'"the-end"' in line:
                return
            _, _, command = line.partition(b"] ")
            # [0 lua] marks what a script does.
            by_script = b" lua]" in line.partition(b'"')[0]
            if not by_script and not command.upper().startswith(_NO_WORK):
                commands.append(command)


@contextmanager
def metered(servers: Servers) -> Iterator[Meters]:
    """The same servers, with a counting proxy before Datastore if there is one."""
    counted = Servers(servers)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        if "datastore" in servers:
            counted["datastore"] = stack.enter_context(_counting(servers["datastore"], counts))
        yield Meters(counted, counts)


@contextmanager
def _counting(upstream: str, counts: Counter[str]) -> Iterator[str]:
    import grpc
    from google.cloud.datastore_v1.types import datastore as types

    requests = {
        "Lookup": types.LookupRequest.pb(),
        "Commit": types.CommitRequest.pb(),
        "RunQuery": types.RunQueryRequest.pb(),
    }

    class Proxy(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
        def service(self, details: Any) -> Any:
            call = channel.unary_unary(details.method)
            name = details.method.removeprefix(_SERVICE)

            def handle(request: bytes, context: Any) -> bytes:
                counts[CALLS] += 1
                counts.update(_entities(requests, name, request))
                try:
                    answer: bytes = call(request)
                except grpc.RpcError as error:
                    context.abort(error.code(), error.details())
                return answer

            return grpc.unary_unary_rpc_method_handler(handle)

    with grpc.insecure_channel(upstream) as channel:
        server = grpc.server(ThreadPoolExecutor(8), handlers=[Proxy()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def _entities(requests: dict[str, Any], name: str, request: bytes) -> Counter[str]:
    """The entities that a call reads, writes and deletes, as they are billed."""
    if name not in requests:
        return Counter()  # a transaction that begins or is given up
    message = requests[name].FromString(request)
    if name == "Lookup":
        return Counter({READS: len(message.keys)})
    if name == "RunQuery":
        return Counter({READS: 1})
    kinds = [mutation.WhichOneof("operation") for mutation in message.mutations]
    deletes = kinds.count("delete")
    return Counter({DELETES: deletes, WRITES: len(kinds) - deletes})
