"""The servers of the tests in these folders, on loopback ports, each ended by its own pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tieredsession.contracts import Observer
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.datastore import DatastoreSessionStore
from tieredsession.url import URL

_READY_WITHIN = 20.0
_PATIENCE = "timeout=5"  # seconds; a busy machine is no failure
_USER = pwd.getpwuid(os.geteuid()).pw_name

Address = tuple[str, int] | str


class Server:
    """A program that serves on a loopback port, or on a unix socket.

    *arguments* is asked for the command line after the address has been chosen; the same
    address serves again after a restart.
    """

    def __init__(self, program: str, address: Address, arguments: Sequence[str]) -> None:
        path = shutil.which(program)
        if path is None:
            unavailable(f"{program} is not installed")
        self.address = address
        self.command = [path, *arguments]
        self.start()

    def start(self) -> None:
        """Start it; it is empty."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + _READY_WITHIN
        while time.monotonic() < end:
            with suppress(OSError), connect(self.address):
                return
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
                break
        self.stop()
        pytest.fail(f"it did not start: {' '.join(self.command)}")

    def stop(self) -> None:
        """End it at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Let it hang: it keeps its connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Let it crash and come back."""
        self.stop()
        self.start()

    def ask(self, *commands: bytes) -> bytes:
        """What it answers to *commands*."""
        with connect(self.address) as connection:
            connection.sendall(b"\r\n".join([*commands, b""]))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(1 << 16):
                answer += chunk
        return answer

    @property
    def authority(self) -> str:
        """Its address, as a URL has it."""
        return self.address if isinstance(self.address, str) else ":".join(map(str, self.address))


class Memcached(Server):
    """A memcached. *arguments* are more of its options."""

    def __init__(self, address: Address | None = None, *arguments: str) -> None:
        address = address or free_address()
        where = ["-s", address, "-a", "700"] if isinstance(address, str) else []
        if not isinstance(address, str):
            where = ["-l", address[0], "-p", str(address[1]), "-U", "0"]
        super().__init__("memcached", address, [*where, "-u", _USER, "-m", "64", *arguments])

    def url(self, options: str = _PATIENCE) -> str:
        """The URL of a cache on it."""
        plus = "+unix" if isinstance(self.address, str) else ""
        return f"memcached{plus}://{self.authority}?{options}"

    def flush(self) -> None:
        """Empty it."""
        self.ask(b"flush_all", b"quit")

    def counts(self) -> dict[str, int]:
        """Its counters, by name."""
        lines = self.ask(b"stats", b"quit").split(b"\r\n")
        pairs = [line.split() for line in lines if line.startswith(b"STAT ")]
        return {name.decode(): int(n) for _, name, n, *_ in pairs if n.isdigit()}


class RedisServer(Server):
    """A Redis on a port and on a socket at once, both without a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        address = free_address()
        self.path = str(folder / "redis.sock")
        where = ["--bind", address[0], "--port", str(address[1]), "--unixsocket", self.path]
        files = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        super().__init__("redis-server", address, [*where, *files, *arguments])

    def url(self, options: str = _PATIENCE) -> str:
        """The URL of a cache on its port."""
        return f"redis://{self.authority}?{options}"

    def unix_url(self, options: str = _PATIENCE) -> str:
        """The URL of a cache on its socket."""
        return f"redis+unix://{self.path}?{options}"

    def flush(self) -> None:
        """Empty it; scripts go as well."""
        self.ask(b"FLUSHALL", b"SCRIPT FLUSH", b"QUIT")

    def counts(self) -> dict[str, int]:
        """How often each command was called, since :meth:`reset_counts`."""
        lines = self.ask(b"INFO commandstats", b"QUIT").decode().split("\r\n")
        stats = [line.removeprefix("cmdstat_") for line in lines if line.startswith("cmdstat_")]
        calls = {line.partition(":")[0]: int(line.split("=")[1].split(",")[0]) for line in stats}
        return {name: number for name, number in calls.items() if name not in _ASIDE}

    def reset_counts(self) -> None:
        """Count from 0 again."""
        self.ask(b"CONFIG RESETSTAT", b"QUIT")


_ASIDE = ("config|resetstat", "info", "quit")


class Impostor:
    """Listens like a server, and does with each connection what *behave* does.

    Args:
        behave: is given a connection, in a thread of its own; the connection is closed when
            it returns.
    """

    def __init__(self, behave: Callable[[socket.socket], object]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.authority = f"{host}:{port}"
        self._accepted: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._accepted.append(connection)
                thread = threading.Thread(target=self._serve, args=[connection])
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._behave(connection)

    def wait(self) -> None:
        """Until *behave* has returned, for every connection so far."""
        for thread in self._threads[1:]:
            thread.join(10)

    def stop(self) -> None:
        """Close everything, and wait for the threads."""
        for connection in [self._listener, *self._accepted]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)


Tamper = Callable[[socket.socket, bytes], object]
"""Is given a client's connection and the server's reply, which it may or may not send."""


class Proxy:
    """Stands before a server and tampers with its replies.

    *plan* has what becomes of the next replies, one after another; then all are passed on.
    *always* goes before the plan, while it is there. *server* is the one of new connections.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.plan: list[Tamper] = []
        self.always: Tamper | None = None
        self.requests: list[bytes] = []
        self.impostor = Impostor(self._behave)
        self.authority = self.impostor.authority

    def _behave(self, client: socket.socket) -> None:
        with connect(self.server.address) as upstream:
            while request := client.recv(1 << 16):
                upstream.sendall(request)
                reply = upstream.recv(1 << 16)
                if request.startswith(_HANDSHAKE):
                    client.sendall(reply)
                    continue
                self.requests.append(request)
                tamper = self.always or (self.plan.pop(0) if self.plan else socket.socket.sendall)
                tamper(client, reply)

    def stop(self) -> None:
        """Refuse connections, and end those that there are."""
        self.impostor.stop()


_HANDSHAKE = (b"version", b"*4\r\n$6\r\nCLIENT")


def connect(address: Address) -> socket.socket:
    """A plain connection."""
    if not isinstance(address, str):
        return socket.create_connection(address, timeout=5)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    try:
        connection.connect(address)
    except BaseException:  # a test that is interrupted, too
        connection.close()
        raise
    return connection


def free_address() -> tuple[str, int]:
    """A loopback port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host, port = listener.getsockname()
        return host, port


def unavailable(reason: str) -> NoReturn:
    """A server that is missing ends a test: as skipped on a laptop, as failed in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Certificates(NamedTuple):
    """Paths of a certificate for 127.0.0.1, its key, and the authority that signed it."""

    chain: Path
    key: Path
    ca: Path


# -- fixtures ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_memcached() -> Iterator[list[Memcached]]:
    """Two memcached on ports, for all tests that leave them running."""
    servers = [Memcached(), Memcached()]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def memcached_pair(shared_memcached: list[Memcached]) -> list[Memcached]:
    """Two memcached, empty."""
    for server in shared_memcached:
        server.flush()
    return shared_memcached


@pytest.fixture
def memcached(memcached_pair: list[Memcached]) -> Memcached:
    """A memcached, empty. It is not to be stopped."""
    return memcached_pair[0]


@pytest.fixture(scope="session")
def shared_unix_memcached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memcached]:
    """One memcached on a unix socket."""
    server = Memcached(str(tmp_path_factory.mktemp("mc") / "sock"))
    yield server
    server.stop()


@pytest.fixture
def unix_memcached(shared_unix_memcached: Memcached) -> Memcached:
    """A memcached on a unix socket, empty."""
    shared_unix_memcached.flush()
    return shared_unix_memcached


@pytest.fixture
def own_memcached() -> Iterator[Callable[..., Memcached]]:
    """Starts memcached of the test's own, with more options; they may be stopped."""
    servers: list[Memcached] = []

    def start(*arguments: str, address: Address | None = None) -> Memcached:
        servers.append(Memcached(address, *arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that leave it running."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """A Redis, empty. It is not to be stopped."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers of the test's own, with more options; they may be stopped."""
    servers: list[RedisServer] = []

    def start(*arguments: str) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, *arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Finds loopback ports that nobody listens on."""
    return lambda: free_address()[1]


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts any other :class:`Server`."""
    servers: list[Server] = []

    def start(program: str, address: Address, *arguments: str) -> Server:
        servers.append(Server(program, address, arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def impostor() -> Iterator[Callable[..., Impostor]]:
    """Starts servers that misbehave, as :class:`Impostor` has it."""
    running: list[Impostor] = []

    def start(behave: Callable[[socket.socket], object]) -> Impostor:
        running.append(Impostor(behave))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def proxy() -> Iterator[Callable[[Server], Proxy]]:
    """Puts a :class:`Proxy` before a server."""
    running: list[Proxy] = []

    def start(server: Server) -> Proxy:
        running.append(Proxy(server))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made for this run."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "chain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return Certificates(folder / "chain.pem", folder / "key.pem", folder / "chain.pem")


# -- Google's Datastore emulator ---------------------------------------------------------

_JAR = "platform/cloud-datastore-emulator/CloudDatastore.jar"
_MAIN = "com.google.cloud.datastore.emulator.CloudDatastore"
_EMULATOR_READY_WITHIN = 60.0
_projects = count()


class Emulator(NamedTuple):
    """A running emulator; *process* is ``None`` for one that somebody else has started."""

    host: str
    process: subprocess.Popen[bytes] | None = None

    def reset(self) -> None:
        """Empty it, if it is ours."""
        if self.process is not None:
            _emulator_get(self.host, "/reset", post=True)

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
            return stack.enter_context(_emulator_running(folder))

        yield start


class DurableEmulator:
    """An emulator that keeps its data on disk, and so can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.host = f"127.0.0.1:{_emulator_free_port()}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        command = [
            argument.replace("on_disk=False", "on_disk=True").replace("--no-store", "--store")
            for argument in _emulator_command(self.host, self._folder)
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _emulator_wait_until_ready(self.host, self._process, self._folder / "log")

    def stop(self) -> None:
        """End it as one would on purpose: only then does it write down what it holds."""
        with suppress(OSError):
            _emulator_get(self.host, "/shutdown", post=True)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def durable_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DurableEmulator]:
    """An emulator of the test's own, which outlives its process."""
    emulator = DurableEmulator(tmp_path)
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", emulator.host)
    yield emulator
    emulator.stop()


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
        deadline: float = 20.0,  # for a machine that is busy
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
def _emulator_running(folder: Path) -> Iterator[Emulator]:
    host = f"127.0.0.1:{_emulator_free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            _emulator_command(host, folder), stdout=log, stderr=log, start_new_session=True
        )
    emulator = Emulator(host, process)
    try:
        _emulator_wait_until_ready(host, process, folder / "log")
        yield emulator
    finally:
        if process.poll() is None:
            emulator.send(signal.SIGKILL)
        process.wait()


def _emulator_command(host: str, folder: Path) -> list[str]:
    """How to start the emulator: its jar with java (1 s), or by gcloud (3 s)."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        unavailable("gcloud, which brings the Datastore emulator, is not installed")
    if shutil.which("java") is None:
        unavailable("java, which runs the Datastore emulator, is not installed")
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


def _emulator_wait_until_ready(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _EMULATOR_READY_WITHIN
    while time.monotonic() < end:
        try:
            _emulator_get(host, "/")
            return
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                break
    unavailable(f"the Datastore emulator did not start: {log.read_text()[-2000:]}")


def _emulator_get(host: str, path: str, post: bool = False) -> None:
    data = b"" if post else None
    with urllib.request.urlopen(f"http://{host}{path}", data, timeout=5) as response:
        response.read()


def _emulator_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
