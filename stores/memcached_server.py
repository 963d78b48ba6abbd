"""One memcached server: its connections, and one command and one reply on each at a time.

pymemcache opens the connections. The bytes are written and read here, because it knows no
meta commands, which save a call wherever the state of an entry matters, and because its
time-outs bound a single read and not the call. A connection is checked before it is used
again: what a restarted server closed, or where a reply was left over, is replaced and costs
no failed call. Whatever goes wrong in a call, even a ``KeyboardInterrupt``, ends its
connection, so that no reply is ever taken for the answer to another command.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Protocol, TypeVar
from weakref import WeakSet

from tieredsession.errors import CacheError, CacheTimeout

A = TypeVar("A")
T = TypeVar("T")

_META_SINCE = (1, 6, 10)  # the release that settled the syntax of meta commands
_NO_LINGERING = struct.pack("ii", 1, 0)  # on, for 0 seconds
_CHUNK = 4096
_LONGEST_LINE = 1024  # bytes; a key has 250 at most, and the rest is short
_LARGEST_VALUE = 1 << 24  # bytes; more than is ever put there


class Client(Protocol):
    """What is used of a ``pymemcache.client.base.Client``: it opens one connection."""

    sock: socket.socket | None

    def _connect(self) -> None: ...

    def close(self) -> None: ...


class BadReply(Exception):
    """No memcached answers this to the command that was sent."""


class Refused(CacheError):
    """The server answered with an error line. A value to be overwritten may be gone."""


class EpochEnded(Exception):
    """A connection broke since that epoch, so the command was not sent."""


class _ErrorLine(Exception):
    pass


class Connection:
    """One connection, for one command at a time."""

    __slots__ = ("_client", "_sock", "_timeout", "has_input")

    def __init__(self, client: Client, timeout: float) -> None:
        client._connect()
        if client.sock is None:
            raise ConnectionError("it has no connection")
        self._client = client
        self._sock = client.sock
        self._sock.settimeout(timeout)
        self._timeout = timeout
        self.has_input = _watch(self._sock)
        """True if something has arrived: the end, or a reply that nobody waits for."""

    def ask(self, command: bytes, deadline: float) -> tuple[list[bytes], bytes]:
        """Send *command* and read one reply: the words of its line, and its data."""
        self._sock.sendall(command)
        received = self._sock.recv(_CHUNK)
        if not received:
            raise ConnectionResetError("it closed the connection")
        while (end := received.find(b"\r\n")) < 0:
            if len(received) > _LONGEST_LINE:
                raise BadReply
            received = self._read_to(len(received) + 1, received, deadline)
        words = received[:end].split(b" ")
        kind = words[0]
        start = end + 2
        if kind == b"VA":
            stop, tail = start + _size(words, 1), b"\r\n"
        elif kind == b"VALUE":
            stop, tail = start + _size(words, 3), b"\r\nEND\r\n"
        elif kind in (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"):
            large = b"too large" in received
            raise _ErrorLine("the value is too large (option -I)" if large else kind.decode())
        else:
            stop, tail = start, b""
        total = stop + len(tail)
        if len(received) < total:
            received = self._read_to(total, received, deadline)
        if received[stop:] != tail:
            raise BadReply
        return words, received[start:stop]

    def _read_to(self, total: int, received: bytes, deadline: float) -> bytes:
        """*total* bytes, of which *received* are here already, before the *deadline*."""
        buffer = bytearray(received)
        while len(buffer) < total:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            chunk = self._sock.recv(total - len(buffer))
            if not chunk:
                raise ConnectionResetError("it closed the connection")
            buffer += chunk
        self._sock.settimeout(self._timeout)
        return bytes(buffer)

    def close(self) -> None:
        self._client.close()

    def abort(self) -> None:
        """Close it, and take back what was sent and has not arrived yet.

        The system would go on sending it, for minutes, and a command that everybody has
        given up could be executed after those that came later.
        """
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
        self._client.close()


class Server:
    """One server: a bounded number of connections to it, and what it is known to speak.

    Args:
        name: what errors and a circuit breaker call it.
        make: makes an unconnected client for it.
        timeout: seconds for one answer; also for a wait when all connections are busy.
        pool: how many connections there are at most.
        meta: whether it has meta commands; ``None`` to ask it.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Client],
        timeout: float,
        pool: int,
        meta: bool | None,
    ) -> None:
        self.name = name
        self._seed = blake2b(name.encode()).digest()
        self._make = make
        self._timeout = timeout
        self._pool = pool
        self._meta = self._given_meta = meta
        self._epoch = 0
        self._start()
        _servers.add(self)

    def weight(self, key: bytes) -> bytes:
        """Of several servers, the one of highest weight keeps *key*."""
        return blake2b(key, key=self._seed, digest_size=8).digest()

    def has_meta(self) -> bool:
        """Whether it has meta commands. Asks the server, if that is not known."""
        meta = self._meta
        if meta is None:
            try:
                meta, _ = self.call(b"version\r\n", _read_version, None, repeat=True)
            except Refused:
                meta = False
            self._meta = meta
        return bool(meta)

    def call(
        self,
        command: bytes,
        read: Callable[[list[bytes], bytes, A], T],
        argument: A,
        *,
        repeat: bool = False,
        epoch: int | None = None,
    ) -> tuple[T, int]:
        """Send one command; what was read from its reply, and the epoch.

        An epoch ends when a connection breaks, for then the server may have restarted.

        Args:
            command: with its line end, and its data if it has any.
            read: is given the words of the reply, its data and *argument*, and raises
                ``BadReply`` for what this command is not answered with.
            argument: what *read* needs to know.
            repeat: whether the command may be sent again, although the server may have
                executed it, when a connection that was idle turns out to be dead.
            epoch: send the command in this epoch only.

        Raises:
            CacheTimeout: there was no answer in time, or no free connection.
            CacheError: the server or the network failed otherwise.
            EpochEnded: nothing was sent.
        """
        deadline = time.monotonic() + self._timeout
        try:
            connection = self._places.pop()
        except IndexError:
            connection = self._wait(deadline)
        try:
            if connection is not None and connection.has_input():
                self._lose(connection)
                connection = None
            fresh = connection is None
            while True:
                connection = connection or Connection(self._make(), self._timeout)
                current = self._epoch
                if epoch is not None and epoch != current:
                    raise EpochEnded
                try:
                    words, data = connection.ask(command, deadline)
                    return read(words, data, argument), current
                except BaseException as error:
                    self._lose(connection)
                    connection = None
                    if fresh or not repeat or not isinstance(error, ConnectionError):
                        raise
                    fresh = True
        except _ErrorLine as error:
            self._meta = self._given_meta  # it may be another release by now
            raise Refused(f"memcached at {self.name} refused: {error}") from None
        except TimeoutError as error:
            raise self._late("no answer") from error
        except (OSError, UnicodeError) as error:
            raise self.failed(getattr(error, "strerror", None) or str(error)) from error
        except (BadReply, ValueError, IndexError) as error:
            raise self.failed("an answer that no memcached gives") from error
        finally:
            self._give(connection)

    def failed(self, reason: str) -> CacheError:
        return CacheError(f"memcached at {self.name} failed: {reason}")

    def _late(self, what: str) -> CacheTimeout:
        return CacheTimeout(f"memcached at {self.name} failed: {what} within {self._timeout:g} s")

    def close(self) -> None:
        """Close the idle connections. Others are opened when they are needed."""
        for _ in range(self._pool):
            try:
                connection = self._places.pop()
            except IndexError:
                break
            self._give(None)
            if connection is not None:
                connection.close()

    # -- places -----------------------------------------------------------------------

    def _start(self) -> None:
        """One place for each connection, ``None`` while there is none.

        The place given back last is taken first, so that no more connections are opened
        than calls are made at once. The ends of a deque need no lock.
        """
        self._places: deque[Connection | None] = deque([None] * self._pool)
        self._freed = threading.Condition()
        self._waiting = 0

    def forked(self) -> None:
        """Leave the parent process its connections: two readers would mix up replies."""
        places = self._places
        self._start()
        while places:
            connection = places.pop()
            if connection is not None:
                connection.close()

    def _wait(self, deadline: float) -> Connection | None:
        with self._freed:
            self._waiting += 1
            try:
                while True:
                    try:
                        return self._places.pop()
                    except IndexError:
                        left = deadline - time.monotonic()
                        if left <= 0 or not self._freed.wait(left):
                            raise self._late(f"no free one of {self._pool} connections") from None
            finally:
                self._waiting -= 1

    def _give(self, connection: Connection | None) -> None:
        if connection is None:
            self._places.appendleft(None)
        else:
            self._places.append(connection)
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def _lose(self, connection: Connection) -> None:
        connection.abort()
        self._epoch += 1


def _read_version(words: list[bytes], data: bytes, argument: None) -> bool:
    if words[0] != b"VERSION":
        raise BadReply
    release = re.match(rb"(\d+)\.(\d+)\.(\d+)", words[1])
    return release is not None and tuple(map(int, release.groups())) >= _META_SINCE


def _size(words: list[bytes], index: int) -> int:
    size = int(words[index])
    if not 0 <= size <= _LARGEST_VALUE:
        raise BadReply
    return size


def _watch(sock: socket.socket) -> Callable[[], object]:
    """What tells whether *sock* has input, without a wait."""
    if sys.platform == "win32":
        return lambda: select.select([sock], [], [], 0)[0]
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return partial(poll.poll, 0)


_servers: WeakSet[Server] = WeakSet()


def _after_fork() -> None:
    for server in _servers:
        server.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
