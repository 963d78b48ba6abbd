"""The servers that programs ask for: on loopback, empty, each ended by its own pid.

Whoever runs several programs or processes starts them once, and hands their addresses down
in the environment; a worker finds them there.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from tieredsession.demo.servers import emulator, free_port, process
from tieredsession.errors import ConfigurationError

PROJECT = "tieredsession-benchmarks"
EMULATOR = "DATASTORE_EMULATOR_HOST"
"""Where Google's clients look for an emulator."""

_HANDED_DOWN = "TIEREDSESSION_BENCHMARK_SERVERS"


class Unavailable(ConfigurationError):
    """A server or a peer is not on this machine; the message is the reason."""


class Servers(dict[str, str]):
    """``host:port`` by the name of a server; asking for a missing one is ``Unavailable``."""

    def __missing__(self, name: str) -> str:
        raise Unavailable(f"{name} is not installed")


NAMES = ("memcached", "redis", "datastore")


@contextmanager
def running(*names: str) -> Iterator[Servers]:
    """Those of *names* that there are, started unless somebody above has started them."""
    found = Servers(json.loads(os.environ.get(_HANDED_DOWN, "{}")))
    with ExitStack() as stack:
        for name in names:
            if name not in found:
                try:
                    found[name] = stack.enter_context(_START[name]())
                except ConfigurationError:  # it is not there, or does not start
                    continue
        yield found


@contextmanager
def handed_down(servers: Servers) -> Iterator[None]:
    """Let the processes that are started in the block use *servers*."""
    before = {name: os.environ.get(name) for name in (_HANDED_DOWN, EMULATOR)}
    os.environ[_HANDED_DOWN] = json.dumps(servers)
    if "datastore" in servers:
        os.environ[EMULATOR] = servers["datastore"]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def delayed(address: str, seconds: float) -> Iterator[str]:
    """The address of a proxy before *address* that makes a round trip so much longer."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.proxy", str(port), address, str(seconds)]
    with process(command, port):
        yield f"127.0.0.1:{port}"


@contextmanager
def memcached() -> Iterator[str]:
    """A memcached of its own, with a gigabyte."""
    with owned_memcached() as (address, _):
        yield address


@contextmanager
def owned_memcached() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same with its process, to be stopped and continued."""
    port = free_port()
    user = pwd.getpwuid(os.geteuid()).pw_name
    where = ["-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", user]
    with process([_path("memcached"), *where, "-m", "1024", "-I", "2m"], port) as running:
        try:
            yield f"127.0.0.1:{port}", running
        finally:
            running.send_signal(signal.SIGCONT)  # what is stopped does not end


@contextmanager
def _redis() -> Iterator[str]:
    port = free_port()
    with TemporaryDirectory() as folder:
        where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", folder]
        with process([_path("redis-server"), *where, "--save", "", "--appendonly", "no"], port):
            yield f"127.0.0.1:{port}"


@contextmanager
def _datastore() -> Iterator[str]:
    """Google's emulator: one that ``DATASTORE_EMULATOR_HOST`` names, or one of our own."""
    if os.environ.get(EMULATOR):
        yield os.environ[EMULATOR]
        return
    with emulator() as address:
        yield address


_START: dict[str, Any] = {"memcached": memcached, "redis": _redis, "datastore": _datastore}


def talk(address: str, *commands: bytes) -> bytes:
    """What a server of a text protocol answers to *commands*, the last of which ends it."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"".join(command + b"\r\n" for command in commands))
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    return answer


def _path(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed")
    return path
