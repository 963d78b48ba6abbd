"""From URLs to redis-py clients that fail soon and never repeat a command by themselves.

redis-py's own retries are off: ten of them, with pauses, would let every request wait for
seconds when the server is dead, and what is repeated may have been executed before. What it
does without being asked, and is relied on here: a connection that the server has closed, or
where a reply was left over, is replaced before it is used again (since version 8 in
protocol 2 alone, hence that one), and a forked process gets connections of its own.
"""
# mypy: allow-untyped-calls
# redis-py says the types of its commands and not those of what makes a client.

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from tieredsession.errors import MissingDependencyError
from tieredsession.url import URL, parse_bool

try:
    from redis import BlockingConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode, RedisCluster
    from redis.connection import Connection
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import (
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisClusterException,
        RedisError,
    )
    from redis.exceptions import TimeoutError as RedisTimeoutError
    from redis.retry import Retry
    from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
except ImportError:
    raise MissingDependencyError("redis", "redis") from None

__all__ = [
    "CONNECTION_FAILURES",
    "FAILURES",
    "TIMEOUTS",
    "Client",
    "Connected",
    "NoScriptError",
    "OutOfMemoryError",
    "connect",
]

FAILURES = (RedisError, RedisClusterException, OSError, ValueError)
"""What a call may raise; the last when the parser meets what is no reply."""

CONNECTION_FAILURES = (RedisConnectionError, RedisTimeoutError, OSError)
"""Those of them whose text tells of the network and never of the command."""

TIMEOUTS = (RedisTimeoutError, TimeoutError)
"""Those of them that took their time."""

_PORT = 6379
_SENTINEL_PORT = 26379


class Client(Protocol):
    """What is used of a ``redis.Redis`` or ``redis.cluster.RedisCluster``."""

    def execute_command(self, *args: Any) -> Any: ...

    def close(self) -> None: ...


class Connected(NamedTuple):
    """A client, and what its server is called."""

    client: Client
    name: str


def connect(url: URL) -> Connected:
    """The client for *url*. Nothing is sent yet.

    Raises:
        ConfigurationError: it is not a URL of :meth:`RedisCache.from_url`.
    """
    make = _SCHEMES.get(url.scheme)
    if make is None:
        raise url.error(f"has the scheme {url.scheme!r}, which is none of " + ", ".join(_SCHEMES))
    connected = make(url)
    url.finish()
    return connected


# -- by scheme --------------------------------------------------------------------------


def _one(url: URL) -> Connected:
    if len(url.hosts) != 1:
        raise url.error(f"is not of the form {url.scheme}://host:port/database")
    ((host, port),) = url.hosts
    options = _options(url)
    tls = _tls(url, url.scheme in ("rediss", "valkeys"))
    pool = BlockingConnectionPool(
        connection_class=_TLS if tls is not None else _TCP,
        host=host,
        port=port or _PORT,
        db=_database(url, url.path.strip("/")),
        **_pool(url, options),
        **(tls or {}),
    )
    return Connected(Redis.from_pool(pool), f"{host}:{port or _PORT}")


def _unix(url: URL) -> Connected:
    if url.hosts or len(url.path) < 2:
        raise url.error(f"is not of the form {url.scheme}:///path/of/socket")
    options = _options(url)
    del options["socket_keepalive"]
    connection: Any = UnixDomainSocketConnection  # not a subclass of what is asked for
    pool = BlockingConnectionPool(
        connection_class=connection,
        path=url.path,
        db=_database(url),
        **_pool(url, options),
    )
    return Connected(Redis.from_pool(pool), url.path)


def _sentinel(url: URL) -> Connected:
    service = url.path.strip("/")
    if not url.hosts or not service or "/" in service:
        raise url.error(f"is not of the form {url.scheme}://host:port,host:port/service")
    options = _options(url)
    tls = _tls(url)
    # Sentinels seldom share the credentials of what they watch, and have no databases.
    own = {name: options[name] for name in options if name not in ("username", "password")}
    sentinel = Sentinel(
        [(host, port or _SENTINEL_PORT) for host, port in url.hosts],
        sentinel_kwargs={**own, **({"ssl": True, **tls} if tls is not None else {})},
    )
    pool = _pool_size(url)
    client = sentinel.master_for(
        service,
        connection_class=_SentinelTLS if tls is not None else _SentinelTCP,
        db=_database(url),
        max_connections=pool,
        **options,
        **(tls or {}),
    )
    waiting = _InTurn(client, pool, options["socket_timeout"])
    return Connected(waiting, f"{service} (by Sentinel)")


def _cluster(url: URL) -> Connected:
    if not url.hosts or url.path not in ("", "/"):
        raise url.error(f"is not of the form {url.scheme}://host:port,host:port")
    options = _options(url)
    retry = options.pop("retry")
    tls = _tls(url)
    pool = _pool_size(url)
    if tls is not None:
        options.update(tls, ssl=True)

    def make() -> RedisCluster:
        nodes = [ClusterNode(host, port or _PORT) for host, port in url.hosts]
        return RedisCluster(startup_nodes=nodes, retry=retry, max_connections=pool, **options)

    client = _Cluster(make, options["socket_connect_timeout"])
    cluster = _InTurn(client, pool, options["socket_timeout"])
    host, port = url.hosts[0]
    return Connected(cluster, f"cluster of {host}:{port or _PORT}")


_fakes: dict[str, Any] = {}


def _fake(url: URL) -> Connected:
    if url.hosts:
        raise url.error("is not of the form fakeredis:///name")
    try:
        from fakeredis import FakeRedis, FakeServer
    except ImportError:
        raise MissingDependencyError("fakeredis", "fakeredis") from None
    if find_spec("lupa") is None:
        raise MissingDependencyError("fakeredis with Lua", "fakeredis")
    server = _fakes.setdefault(url.path, FakeServer())
    return Connected(FakeRedis(server=server), f"fakeredis{url.path}")


_SCHEMES: dict[str, Callable[[URL], Connected]] = {
    "redis": _one,
    "rediss": _one,
    "valkey": _one,
    "valkeys": _one,
    "redis+unix": _unix,
    "redis+sentinel": _sentinel,
    "redis+cluster": _cluster,
    "fakeredis": _fake,
}


class _TCP(Connection):
    """Closes itself when its server has become a replica: its name may be another's by now."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ReadOnlyError:
            self.disconnect()
            raise


class _TLS(_TCP, SSLConnection):
    pass


class _SentinelTCP(SentinelManagedConnection):
    """Closes itself when a reading is interrupted, which redis-py's leaves out."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        options["disconnect_on_error"] = True
        return super().read_response(*args, **options)


class _SentinelTLS(_SentinelTCP, SentinelManagedSSLConnection):
    pass


class _InTurn:
    """A client on which callers wait for a free connection, where redis-py's refuses them.

    A healthy server would be taken for a dead one whenever there are more threads than
    connections. Only redis-py's pool for a single server can wait.
    """

    def __init__(self, client: Client, pool: int, timeout: float) -> None:
        self._client = client
        self._pool = pool
        self._timeout = timeout
        self.start()
        _in_turn.add(self)

    def start(self) -> None:
        """Begin with every connection free, also in a child of a process where none was."""
        self._free = threading.Semaphore(self._pool)

    def execute_command(self, *args: Any) -> Any:
        if not self._free.acquire(timeout=self._timeout):
            raise TimeoutError(f"no free one of {self._pool} connections")
        try:
            return self._client.execute_command(*args)
        finally:
            self._free.release()

    def close(self) -> None:
        self._client.close()


_in_turn: WeakSet[_InTurn] = WeakSet()


def _after_fork() -> None:
    for client in _in_turn:
        client.start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Cluster:
    """A cluster's client, made when it is first used: redis-py's connects at once."""

    def __init__(self, make: Callable[[], RedisCluster], timeout: float) -> None:
        self._make = make
        self._timeout = timeout
        self._client: RedisCluster | None = None
        self._lock = threading.Lock()

    def execute_command(self, *args: Any) -> Any:
        client = self._client or self._connect()
        return client.execute_command(*args)

    def _connect(self) -> RedisCluster:
        # Threads that come together do not try a dead cluster one after the other.
        if not self._lock.acquire(timeout=self._timeout):
            raise TimeoutError("another thread is still connecting")
        try:
            self._client = self._client or self._make()
            return self._client
        finally:
            self._lock.release()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


# -- options ------------------------------------------------------------------------------


def _options(url: URL) -> dict[str, Any]:
    timeout = url.seconds("timeout", 0.1)
    return {
        "username": url.username,
        "password": url.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": url.seconds("connect_timeout", timeout),
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def _pool(url: URL, options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "max_connections": _pool_size(url), "timeout": options["socket_timeout"]}


def _pool_size(url: URL) -> int:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError("a whole number above 0")
        return int(text)

    return url.option("pool", 16, parse)


def _database(url: URL, path: str = "") -> int:
    def parse(text: str) -> int:
        if not text.isdecimal():
            raise ValueError("the number of a database")
        return int(text)

    if not path:
        return url.option("db", 0, parse)
    if not path.isdecimal():
        raise url.error(f"has the path {path!r}, which is not the number of a database")
    return int(path)


def _tls(url: URL, required: bool = False) -> dict[str, Any] | None:
    """redis-py's words for the options of TLS; ``None`` for a connection without."""
    if not required and not url.option("tls", False, parse_bool):
        return None
    verify = url.option("verify", True, parse_bool)
    return {
        "ssl_ca_certs": url.option("ca", None, str),
        "ssl_cert_reqs": "required" if verify else "none",
        "ssl_check_hostname": verify,
    }
