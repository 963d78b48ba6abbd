"""Google's Datastore emulator for the tests of this folder, and stores on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import urlencode

import pytest

from tieredsession.contracts import Observer
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.datastore import DatastoreSessionStore
from tieredsession.url import URL

_JAR = "platform/cloud-datastore-emulator/CloudDatastore.jar"
_MAIN = "com.google.cloud.datastore.emulator.CloudDatastore"
_READY_WITHIN = 60.0
_projects = count()


class Emulator(NamedTuple):
    """A running emulator; *process* is ``None`` for one that somebody else has started."""

    host: str
    process: subprocess.Popen[bytes] | None = None

    def reset(self) -> None:
        """Empty it, if it is ours."""
        if self.process is not None:
            _get(self.host, "/reset", post=True)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to what it has started."""
        assert self.process is not None
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="session")
def start_emulator(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Emulator]]:
    """Starts emulators that end with the test run."""
    with ExitStack() as stack:

        def start() -> Emulator:
            folder = tmp_path_factory.mktemp("emulator")
            return stack.enter_context(_running(folder))

        yield start


@pytest.fixture(scope="session")
def shared_emulator(start_emulator: Callable[[], Emulator]) -> Iterator[Emulator]:
    """One emulator for all tests, which google's clients find."""
    host = os.environ.get("DATASTORE_EMULATOR_HOST")
    emulator = Emulator(host) if host else start_emulator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASTORE_EMULATOR_HOST", emulator.host)
        yield emulator


@pytest.fixture
def emulator(shared_emulator: Emulator) -> Emulator:
    """The emulator, empty."""
    shared_emulator.reset()
    return shared_emulator


@pytest.fixture
def project() -> str:
    """A project that no other test uses."""
    return f"project-{os.getpid()}-{next(_projects)}"


@pytest.fixture
def open_store(emulator: Emulator, project: str) -> Callable[..., DatastoreSessionStore]:
    """Opens stores in the project: the path and the options of their URL."""

    def open_store(
        path: str = "",
        *,
        encrypt: bool = False,
        principals: bool = False,
        observer: Observer | None = None,
        deadline: float = 30.0,  # for a machine that is busy
        **options: str,
    ) -> DatastoreSessionStore:
        keyring = Keyring("only for tests, only for tests, 1")
        query = urlencode({"deadline": deadline, **options})
        url = URL(f"datastore://{project}{path}?{query}", "SESSION_STORE_URL")
        return DatastoreSessionStore.from_options(
            StoreOptions(
                keyring,
                "id",
                "app:",
                url,
                encrypt=encrypt,
                principals=principals,
                observer=observer,
            )
        )

    return open_store


@contextmanager
def _running(folder: Path) -> Iterator[Emulator]:
    host = f"127.0.0.1:{_free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            _command(host, folder), stdout=log, stderr=log, start_new_session=True
        )
    emulator = Emulator(host, process)
    try:
        _wait_until_ready(host, process, folder / "log")
        yield emulator
    finally:
        if process.poll() is None:
            emulator.send(signal.SIGKILL)
        process.wait()


def _command(host: str, folder: Path) -> list[str]:
    """How to start the emulator: its jar with java (1 s), or by gcloud (3 s)."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        _unavailable("gcloud, which brings the Datastore emulator, is not installed")
    if shutil.which("java") is None:
        _unavailable("java, which runs the Datastore emulator, is not installed")
    info = [gcloud, "info", "--format=value(installation.sdk_root)"]
    root = subprocess.run(info, capture_output=True, text=True, check=True).stdout.strip()
    jar = Path(root, _JAR)
    options = ["start", f"--host={host.split(':')[0]}", f"--port={host.split(':')[1]}"]
    if jar.exists():
        options += ["--store_on_disk=False", "--consistency=1.0", str(folder)]
        return ["java", "-cp", str(jar), _MAIN, *options]
    gcloud_options = [f"--host-port={host}", "--no-store-on-disk", "--consistency=1.0"]
    gcloud_options += [f"--data-dir={folder}", "--project=tests", "--quiet"]
    return [gcloud, "beta", "emulators", "datastore", "start", *gcloud_options]


def _wait_until_ready(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _READY_WITHIN
    while time.monotonic() < end:
        try:
            _get(host, "/")
            return
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                break
    _unavailable(f"the Datastore emulator did not start: {log.read_text()[-2000:]}")


def _get(host: str, path: str, post: bool = False) -> None:
    data = b"" if post else None
    with urllib.request.urlopen(f"http://{host}{path}", data, timeout=5) as response:
        response.read()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
