"""The servers behind ``--store gae``: memcached and Google's Datastore emulator, on loopback.

The benchmarks start theirs in the same way.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tieredsession.errors import ConfigurationError

PROJECT = "tieredsession-demo"

_READY_WITHIN = 60.0  # seconds; the emulator is a Java program that may be started cold
_JAR = "platform/cloud-datastore-emulator/CloudDatastore.jar"
_MAIN = "com.google.cloud.datastore.emulator.CloudDatastore"


class Tiers(NamedTuple):
    """Where the tiers are: two URLs, and what to call the cache on the page."""

    cache_url: str
    store_url: str
    cache: str


@contextmanager
def running() -> Iterator[Tiers]:
    """Start the servers, and stop them in the end.

    An emulator that ``DATASTORE_EMULATOR_HOST`` names is used instead of one of our own.
    Without memcached on this machine the cache is ``fakeredis://``, in this process.

    Raises:
        ConfigurationError: there is no emulator on this machine, or it does not start.
    """
    with ExitStack() as stack:
        # A process that is told to end takes the servers along, as one that is interrupted.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        if not os.environ.get("DATASTORE_EMULATOR_HOST"):
            os.environ["DATASTORE_EMULATOR_HOST"] = stack.enter_context(emulator())
            stack.callback(os.environ.pop, "DATASTORE_EMULATOR_HOST", None)
        memcached = shutil.which("memcached")
        if memcached is None:
            cache_url, cache = "fakeredis://", "fakeredis, for memcached is not installed"
        else:
            port = free_port()
            user = ["-u", "nobody"] if os.geteuid() == 0 else []
            # One thread serves every connection as fast as the others, which is fair to those
            # who are compared, and plenty for a demo.
            where = ["-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "1"]
            command = [memcached, *where, *user]
            stack.enter_context(process(command, port))
            cache_url, cache = f"memcached://127.0.0.1:{port}", f"memcached at 127.0.0.1:{port}"
        yield Tiers(cache_url, f"datastore://{PROJECT}?deadline=10", cache)


@contextmanager
def emulator() -> Iterator[str]:
    """Google's Datastore emulator, empty and in memory, on the ``host:port`` that this answers.

    Raises:
        ConfigurationError: it is not installed, or does not start.
    """
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise ConfigurationError(
            "--store gae needs Google's Datastore emulator: install the Google Cloud CLI and run  "
            "gcloud components install cloud-datastore-emulator beta"
        )
    port = free_port()
    info = [gcloud, "info", "--format=value(installation.sdk_root)"]
    root = subprocess.run(info, capture_output=True, text=True, check=False).stdout.strip()
    java, jar = shutil.which("java"), Path(root, _JAR)
    with tempfile.TemporaryDirectory() as folder:
        if java is not None and jar.exists():  # in a second instead of ten
            options = ["--host=127.0.0.1", f"--port={port}", "--store_on_disk=False", folder]
            # Its own collector would use every core for what is a queue of short-lived objects.
            command = [java, "-XX:+UseSerialGC", "-cp", str(jar), _MAIN, "start"]
            command += ["--consistency=1.0", *options]
        else:
            options = ["--no-store-on-disk", f"--project={PROJECT}", "--consistency=1.0"]
            where = f"--host-port=127.0.0.1:{port}"
            command = [gcloud, "beta", "emulators", "datastore", "start", where, *options]
        with process(command, port):
            yield f"127.0.0.1:{port}"


@contextmanager
def process(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on *port*; it and what it starts end with the block.

    Raises:
        ConfigurationError: it does not listen there.
    """
    running = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_ready(running, command[0], port)
        yield running
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def _wait_until_ready(running: subprocess.Popen[bytes], name: str, port: int) -> None:
    end = time.monotonic() + _READY_WITHIN
    while time.monotonic() < end and running.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ConfigurationError(f"{name} did not start on port {port}")


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
