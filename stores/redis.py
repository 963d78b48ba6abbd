"""Redis and Valkey as a cache: the value is its own handle, and what is atomic is a script.

A script is sent as its hash, and once in full to a server that does not know it yet. The
clients are redis-py's; :mod:`tieredsession.stores.redis_clients` makes them from URLs.
"""

from __future__ import annotations

import math
from hashlib import sha1
from typing import Any, NamedTuple, NoReturn

from tieredsession.contracts import Entry, Found, Handle
from tieredsession.errors import CacheError, CacheTimeout
from tieredsession.stores.redis_clients import (
    CONNECTION_FAILURES,
    FAILURES,
    TIMEOUTS,
    Client,
    NoScriptError,
    OutOfMemoryError,
    connect,
)
from tieredsession.url import URL

_LONGEST_TTL = 10**15  # milliseconds; the server adds them to the time of day in 63 bits


class _Script(NamedTuple):
    text: str
    sha: str


def _script(text: str) -> _Script:
    return _Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_GET_OR_ADD = _script("""\
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
""")

_REPLACE = _script("""\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")


class RedisCache:
    """Values in a Redis (6 or later) or a Valkey.

    It should keep nothing on disk: one that restarts from its file, or a replica that takes over
    without the last writes, brings old values back for what is left of their ttl.

    Args:
        client: with short time-outs and without retries, ``Retry(NoBackoff(), 0)``, for a
            repeated ``replace`` would tell a lie; it answers in bytes, as is the default.
        name: what errors and a circuit breaker call the server; of several servers, all of
            them together. A node that takes over from another answers with what that one
            held, so what was missed there has to be made good before it is asked.

    Raises:
        CacheError: as the contract has it; the message names the server.
    """

    max_value = 1 << 22
    """Bytes. Redis takes 512 MiB, and everybody else waits while it does."""

    def __init__(self, client: Client, name: str = "redis") -> None:
        self._client = client
        self._execute = client.execute_command
        self._name = name

    @classmethod
    def from_url(cls, url: URL) -> RedisCache:
        """One server, or several, as the scheme says.

        ``redis://[user:password@]host[:port][/database]`` and ``valkey://``; over TLS
        ``rediss://`` and ``valkeys://``; a socket, ``redis+unix:///path?db=0``; a service
        known to Sentinels, ``redis+sentinel://host[:port],.../service?db=0``; some nodes of a
        cluster, ``redis+cluster://host[:port],...``; and without any server, for one process,
        ``fakeredis://[/name]``: caches of one name are one.

        Options: ``timeout`` (0.1 seconds without an answer), ``connect_timeout`` (as
        ``timeout``), ``pool`` (16 connections, and calls, at once), ``db``; ``tls=1`` for
        Sentinel and cluster; over TLS ``ca``, a file of certificates to trust in place of the
        system's, and ``verify=0`` to trust any.

        When no node of a cluster answers, the calls that are under way wait one after the
        other for its map, which redis-py asks each node for: *timeout* times nodes times calls.
        """
        return cls(*connect(url))

    # -- Cache ------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        try:
            value = self._execute("GET", key)
        except FAILURES as error:
            self._fail(error)
        if value is None:
            return None
        return Entry(value, value) if type(value) is bytes else self._fail()

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        found = self._run(_GET_OR_ADD, key, value, _milliseconds(ttl))
        if found is None:
            return Found(None, True, value)
        return Found(found, False, found) if type(found) is bytes else self._fail()

    def set(self, key: str, value: bytes, ttl: float) -> Handle | None:
        """As the contract has it. A server that is full keeps neither this nor the old one."""
        try:
            done = self._execute("SET", key, value, "PX", _milliseconds(ttl))
        except OutOfMemoryError as error:
            self.delete(key)
            self._fail(error)
        except FAILURES as error:
            self._fail(error)
        return value if done is True else self._fail()

    def replace(self, key: str, handle: Handle, value: bytes, ttl: float) -> bool:
        answer = self._run(_REPLACE, key, handle, value, _milliseconds(ttl))
        return bool(answer) if type(answer) is int else self._fail()

    def delete(self, key: str) -> None:
        try:
            done = self._execute("DEL", key)
        except FAILURES as error:
            self._fail(error)
        if type(done) is not int:
            self._fail()

    def server(self, key: str) -> str:
        return self._name

    def close(self) -> None:
        """Close the connections; others are opened if the cache is used again."""
        self._client.close()

    # -- inside -----------------------------------------------------------------------

    def _run(self, script: _Script, key: str, *arguments: object) -> Any:
        try:
            try:
                return self._execute("EVALSHA", script.sha, 1, key, *arguments)
            except NoScriptError:
                return self._execute("EVAL", script.text, 1, key, *arguments)
        except FAILURES as error:
            self._fail(error)

    def _fail(self, error: Exception | None = None) -> NoReturn:
        """Raise a ``CacheError``, without what a server says of a command: it may quote it."""
        problem = "an answer of the wrong type" if error is None else type(error).__name__
        if isinstance(error, CONNECTION_FAILURES):
            problem += f": {error}"
        kind = CacheTimeout if isinstance(error, TIMEOUTS) else CacheError
        raise kind(f"redis at {self._name} failed: {problem}") from None


def _milliseconds(ttl: float) -> int:
    return math.ceil(min(max(ttl * 1000, 1), _LONGEST_TTL))
