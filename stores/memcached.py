"""memcached as a cache: several servers, by meta commands where they have them.

Meta commands (release 1.6.10 and later) make an entry and tell its id in one call each;
other servers, and proxies that hide the release, are spoken to in text commands, with the
same outcome in a call more.
"""

from __future__ import annotations

import math
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

from tieredsession.contracts import Entry, Found, Handle
from tieredsession.errors import MissingDependencyError
from tieredsession.stores.memcached_server import BadReply, Client, EpochEnded, Refused, Server
from tieredsession.url import URL, parse_bool

try:
    from pymemcache.client.base import Client as PymemcacheClient
    from pymemcache.client.base import KeepaliveOpts
except ImportError:
    raise MissingDependencyError("pymemcache", "memcached") from None

_DEFAULT_PORT = 11211
_PROTOCOLS: dict[str, bool | None] = {"auto": None, "meta": True, "text": False}
_LONGEST_RELATIVE = 30 * 24 * 3600  # seconds; a larger number is a time of day (protocol.txt)
_LATEST = 2**31 - 1  # the server keeps times of day in 32 bits
_KEEPALIVE = (60, 10, 3)  # seconds idle, seconds between probes, probes
_GRAPHIC = bytes(range(0x21, 0x7F))  # ASCII that can be seen
_EPOCH_BITS = 32  # of a handle; the rest is the server's id of the entry


class MemcachedCache:
    """Values in the memory of one or several memcached servers.

    Each key belongs to one server for good (rendezvous hashing of the server's name and
    the key). The keys of a dead server move nowhere: what was put elsewhere meanwhile
    would be found again, and be old, at the next outage. So all processes must be given
    the same names.

    A handle is good until a connection to its server breaks: a restarted server counts
    the ids of its entries from 1 again, and an id from before could meet another entry.
    ``replace`` then answers ``False``.

    Args:
        servers: for each server's name, what makes an unconnected pymemcache ``Client``
            for it; the client needs a ``connect_timeout``.
        timeout: seconds that a server may take to answer.
        pool: connections to each server; they are opened as they are needed. A call that
            finds all of them busy waits for one, as long as for an answer.
        protocol: ``"auto"`` asks each server for its release, once; ``"meta"`` and
            ``"text"`` do not ask.
        clock: the time of day, which the server wants for a ttl of more than 30 days.

    Raises:
        CacheError: as the contract has it; the message names the server.
        ValueError: a key is not of the contract's form.
    """

    max_value = 1_000_000
    """Bytes. An item is 1 MiB at most (option ``-I``), with its key and header."""

    def __init__(
        self,
        servers: Mapping[str, Callable[[], Client]],
        *,
        timeout: float = 0.1,
        pool: int = 16,
        protocol: str = "auto",
        clock: Callable[[], float] = time.time,
    ) -> None:
        meta = _PROTOCOLS[protocol]
        self._servers = [Server(name, make, timeout, pool, meta) for name, make in servers.items()]
        self._only = self._servers[0] if len(self._servers) == 1 else None
        self._clock = clock

    @classmethod
    def from_url(cls, url: URL) -> MemcachedCache:
        """``memcached://host[:port],...`` or ``memcached+unix:///path/of/socket``.

        Options: ``timeout`` (0.1 seconds), ``connect_timeout`` (as ``timeout``), ``pool``
        (16), ``protocol`` (``auto``, ``meta`` or ``text``); over TCP also ``tls=1``, with
        ``ca``, a file of certificates to trust in place of the system's.
        """
        timeout = url.seconds("timeout", 0.1)
        connect_timeout = url.seconds("connect_timeout", timeout)
        pool = url.option("pool", 16, _parse_count)
        protocol = url.option("protocol", "auto", _parse_protocol)
        addresses: dict[str, tuple[str, int] | str] = {}
        tls = None
        if url.scheme == "memcached+unix":
            if url.hosts or len(url.path) < 2:
                raise url.error("is not of the form memcached+unix:///path/of/socket")
            addresses[url.path] = url.path
        else:
            plain = url.path in ("", "/") and not url.username and not url.password
            if url.scheme != "memcached" or not url.hosts or not plain:
                raise url.error("is not of the form memcached://host:port,host:port")
            tls = _tls(url)
            for host, port in url.hosts:
                name = f"{host}:{port or _DEFAULT_PORT}"
                if name in addresses:
                    raise url.error(f"names {name} twice")
                addresses[name] = (host, port or _DEFAULT_PORT)
        url.finish()
        makers = {
            name: partial(_make_client, address, connect_timeout, timeout, tls)
            for name, address in addresses.items()
        }
        return cls(makers, timeout=timeout, pool=pool, protocol=protocol)

    # -- Cache ------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        raw = _check(key)
        server = self._server(raw)
        command = b"mg %b k c v\r\n" if server.has_meta() else b"gets %b\r\n"
        found, epoch = server.call(command % raw, _read_value, raw, repeat=True)
        return None if found is None else Entry(found[0], _handle(found[1], epoch))

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        """As the contract has it: one call by meta commands, one or two by text.

        By meta commands the new entry is empty, and the handle says whose it is. By text,
        ``Found(None, False, None)`` says that somebody else came between the two calls.
        """
        raw = _check(key)
        server = self._server(raw)
        seconds = self._seconds(ttl)
        if server.has_meta():
            command = b"mg %b k c v N%d\r\n" % (raw, seconds)
            found, epoch = server.call(command, _read_value, raw)
            if found is None:
                raise server.failed("did not make an entry")
            data, cas, won = found
            return Found(None if won else data, won, _handle(cas, epoch))
        found, epoch = server.call(b"gets %b\r\n" % raw, _read_value, raw)
        if found is not None:
            return Found(found[0], False, _handle(found[1], epoch))
        added, _ = server.call(_store(b"add", raw, value, seconds), _read_word, _ADD)
        return Found(None, added, None)

    def set(self, key: str, value: bytes, ttl: float) -> Handle | None:
        """As the contract has it. A value that the server refuses takes the old one along."""
        raw = _check(key)
        server = self._server(raw)
        seconds = self._seconds(ttl)
        try:
            if server.has_meta():
                command = b"ms %b %d T%d c\r\n%b\r\n" % (raw, len(value), seconds, value)
                cas, epoch = server.call(command, _read_id, None, repeat=True)
                return _handle(cas, epoch)
            server.call(_store(b"set", raw, value, seconds), _read_word, _SET, repeat=True)
        except Refused:
            self.delete(key)  # the server has done so if it is a memcached; be sure
            raise
        return None

    def replace(self, key: str, handle: Handle, value: bytes, ttl: float) -> bool:
        raw = _check(key)
        server = self._server(raw)
        seconds = self._seconds(ttl)
        cas, epoch = divmod(int(handle), 1 << _EPOCH_BITS)
        if server.has_meta():
            command = b"ms %b %d T%d C%d\r\n%b\r\n" % (raw, len(value), seconds, cas, value)
        else:
            command = _store(b"cas", raw, value, seconds, b" %d" % cas)
        try:
            replaced, _ = server.call(command, _read_word, _CAS, epoch=epoch)
        except EpochEnded:
            return False
        return replaced

    def delete(self, key: str) -> None:
        raw = _check(key)
        self._server(raw).call(b"delete %b\r\n" % raw, _read_word, _DELETE, repeat=True)

    def server(self, key: str) -> str:
        return (self._only or self._server(key.encode())).name

    def close(self) -> None:
        """Close the idle connections; others are opened if the cache is used again."""
        for server in self._servers:
            server.close()

    # -- inside -----------------------------------------------------------------------

    def _server(self, raw: bytes) -> Server:
        return self._only or max(self._servers, key=lambda server: server.weight(raw))

    def _seconds(self, ttl: float) -> int:
        """*ttl* as the server takes it: whole seconds from now, or a time of day, or 0."""
        if ttl <= _LONGEST_RELATIVE:
            return max(1, math.ceil(ttl))
        at = self._clock() + ttl
        return math.ceil(at) if at < _LATEST else 0  # 0 is for ever


def _check(key: str) -> bytes:
    """The bytes of *key*. One with a line break in it would be another command."""
    raw = key.encode()
    if not 0 < len(raw) <= 200 or raw.translate(None, _GRAPHIC):
        raise ValueError("a cache key is 1 to 200 printable ASCII characters without spaces")
    return raw


def _handle(cas: int, epoch: int) -> int:
    return cas << _EPOCH_BITS | epoch


def _store(verb: bytes, raw: bytes, value: bytes, seconds: int, cas: bytes = b"") -> bytes:
    return b"%b %b 0 %d %d%b\r\n%b\r\n" % (verb, raw, seconds, len(value), cas, value)


# -- what may come back; anything else is a BadReply ------------------------------------

_ADD = {b"STORED": True, b"NOT_STORED": False}
_SET = {b"STORED": True}
_CAS = {
    b"STORED": True,
    b"EXISTS": False,
    b"NOT_FOUND": False,
    b"HD": True,
    b"EX": False,
    b"NF": False,
}
_DELETE = {b"DELETED": True, b"NOT_FOUND": False}


def _read_word(words: list[bytes], data: bytes, meanings: dict[bytes, bool]) -> bool:
    try:
        return meanings[words[0]]
    except KeyError:
        raise BadReply from None


def _read_value(words: list[bytes], data: bytes, raw: bytes) -> tuple[bytes, int, bool] | None:
    """Value, id and whether this call has just made the entry; ``None`` for a miss."""
    kind = words[0]
    if kind == b"VA" and words[2] == b"k" + raw:
        return data, _id(words[3][1:]), b"W" in words
    if kind == b"VALUE" and words[1] == raw:
        return data, _id(words[4]), False
    if kind == b"EN" or kind == b"END":
        return None
    raise BadReply


def _read_id(words: list[bytes], data: bytes, argument: None) -> int:
    if words[0] != b"HD":
        raise BadReply
    return _id(words[1][1:])


def _id(digits: bytes) -> int:
    number = int(digits)
    if not number:
        raise BadReply  # it runs without ids (option -C), and every handle would fit
    return number


# -- URL options ------------------------------------------------------------------------


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number above 0")
    return int(text)


def _parse_protocol(text: str) -> str:
    if text not in _PROTOCOLS:
        raise ValueError(" or ".join(_PROTOCOLS))
    return text


def _tls(url: URL) -> ssl.SSLContext | None:
    ca = url.option("ca", None, str)
    if not url.option("tls", False, parse_bool):
        if ca is not None:
            raise url.error("has ca=, which needs tls=1")
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise url.error(f"has ca={ca!r}, which cannot be used: {error}") from None


def _make_client(
    address: tuple[str, int] | str,
    connect_timeout: float,
    timeout: float,
    tls: ssl.SSLContext | None,
) -> Client:
    keepalive = None
    if not isinstance(address, str) and sys.platform == "linux":
        keepalive = KeepaliveOpts(*_KEEPALIVE)  # networks forget idle connections silently
    client: Client = PymemcacheClient(
        address,
        connect_timeout=connect_timeout,
        timeout=timeout,
        no_delay=True,
        socket_keepalive=keepalive,
        tls_context=tls,
    )
    return client
