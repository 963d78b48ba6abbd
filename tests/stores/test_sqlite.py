"""The SQLite store: what a file, threads and processes can do to it."""

from __future__ import annotations

import ctypes
import gc
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tieredsession.contracts import Record
from tieredsession.errors import ConfigurationError, Conflict, StoreError, StoreUnavailable
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.sqlite import SCHEMA_VERSION, SQLiteSessionStore
from tieredsession.url import URL

NOW = 1_800_000_000.0
RECORD = Record(b"payload", NOW + 3600, NOW, "ann@example.org")
SECRET = "only for tests, only for tests, 1"
OPTIONS = StoreOptions(Keyring(SECRET), "id")

Open = Callable[..., SQLiteSessionStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite3"


@pytest.fixture
def open_store(path: Path) -> Iterator[Open]:
    opened: list[SQLiteSessionStore] = []

    def open_one(timeout: float = 2.0, options: StoreOptions = OPTIONS) -> SQLiteSessionStore:
        store = SQLiteSessionStore(
            path, options.ids, options.record_envelope, timeout=timeout, synchronous="normal"
        )
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_sessions_survive_a_restart(open_store: Open) -> None:
    """A session saved before a restart is loaded after it."""
    store = open_store()
    token = store.create(RECORD, NOW).token
    store.close()
    assert open_store().load(token, NOW) == RECORD._replace(version=1)


def test_the_file_is_its_owners(open_store: Open, path: Path) -> None:
    """Nobody but its owner can read the file or what SQLite keeps beside it."""
    open_store().create(RECORD, NOW)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_dump_opens_no_session(open_store: Open, path: Path) -> None:
    """The file holds no token, and what it holds as a key is no token."""
    store = open_store()
    token = store.create(RECORD, NOW).token
    with closing(sqlite3.connect(path)) as connection:
        ((key, data),) = connection.execute("SELECT key, data FROM sessions")
    assert token not in key
    assert token.encode() not in data
    assert store.load(key, NOW) is None
    assert store.load(key[:32], NOW) is None


def test_encrypted_at_rest(open_store: Open, path: Path) -> None:
    """With encryption on, the file shows neither data nor principal."""
    store = open_store(options=StoreOptions(Keyring(SECRET), "id", encrypt=True))
    store.create(RECORD, NOW)
    store.close()
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"payload" not in content
    assert b"ann@example.org" not in content


def test_a_swapped_row_is_no_session(open_store: Open, path: Path) -> None:
    """The data of one session put under another's key opens nothing."""
    store = open_store()
    mine, other = store.create(RECORD, NOW).token, store.create(RECORD, NOW).token
    with closing(sqlite3.connect(path)) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM sessions")]
        statement = "UPDATE sessions SET data = (SELECT data FROM sessions WHERE key = ?)"
        connection.execute(f"{statement} WHERE key = ?", keys)
        connection.commit()
    assert [store.load(mine, NOW), store.load(other, NOW)].count(None) == 1


def test_two_applications_share_a_file(open_store: Open) -> None:
    """Applications with different prefixes do not read each other's sessions."""
    one = open_store(options=StoreOptions(Keyring(SECRET), "id", prefix="one:"))
    two = open_store(options=StoreOptions(Keyring(SECRET), "id", prefix="two:"))
    token = one.create(RECORD, NOW).token
    assert two.load(token, NOW) is None
    assert one.load(token, NOW) is not None


def test_a_locked_file_is_unavailable(open_store: Open, path: Path) -> None:
    """A file that another process keeps locked is an error that names it, not an empty session."""
    store = open_store(timeout=0.01)
    saved = store.create(RECORD, NOW)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match=r"sessions\.sqlite3.*locked"):
            store.update(saved.token, RECORD._replace(version=1), NOW)
        assert store.load(saved.token, NOW) is not None  # readers do not wait in WAL mode
        other.execute("ROLLBACK")
    assert store.update(saved.token, RECORD._replace(version=1), NOW).version == 2


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0garbage"])
def test_a_corrupt_file_stops_the_start(open_store: Open, path: Path, content: bytes) -> None:
    """A file that is no database is an error that names it."""
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"sessions\.sqlite3"):
        open_store()


def test_a_file_that_breaks_later(open_store: Open, path: Path) -> None:
    """A file that is damaged under a running server is an error, not an empty session."""
    store = open_store()
    saved = store.create(RECORD, NOW)
    store.close()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (size - 100))
    with pytest.raises(StoreError, match=r"sessions\.sqlite3"):
        store.load(saved.token, NOW)
    with pytest.raises(StoreError, match=r"sessions\.sqlite3"):
        store.create(RECORD, NOW)


def test_another_programs_database(open_store: Open, path: Path) -> None:
    """A database of another program is left alone."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (number)")
    with pytest.raises(StoreError, match="is not a session database"):
        open_store()


def test_a_newer_schema(open_store: Open, path: Path) -> None:
    """A file of a later release is left alone, and the error says what to install."""
    open_store().close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match="schema version 2 and this release knows 1"):
        open_store()


def test_a_missing_folder(tmp_path: Path) -> None:
    """A folder that does not exist is an error that names the file."""
    with pytest.raises(StoreError, match=r"nowhere.sessions\.sqlite3"):
        SQLiteSessionStore(
            tmp_path / "nowhere" / "sessions.sqlite3", OPTIONS.ids, OPTIONS.record_envelope
        )


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everything")
def test_a_file_of_somebody_else(open_store: Open, path: Path) -> None:
    """A file that this user may not write stops the start, not the first save."""
    open_store().close()
    path.chmod(0o400)
    with pytest.raises(StoreError, match=r"sessions\.sqlite3 cannot be used: it cannot be written"):
        open_store()


def test_a_read_only_file(open_store: Open, path: Path) -> None:
    """A file that cannot be written is read from, and a write is an error that names it."""
    store = open_store()
    token = store.create(RECORD, NOW).token
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    script = """
import os, sys
from tieredsession.errors import StoreError
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.sqlite import SQLiteSessionStore
path, token = sys.argv[1:]
options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
store = SQLiteSessionStore(path, options.ids, options.record_envelope)
record = store.load(token, 1_800_000_000.0)
store.close()
import sqlite3
sqlite3.connect = (lambda real: lambda p, **k: real(f"file:{p}?mode=ro", uri=True, **k))(
    sqlite3.connect)
try:
    store.update(token, record, 1_800_000_000.0)
except StoreError as error:
    print(error)
store.close()
"""
    done = run(script, str(path), token)
    assert "sessions.sqlite3" in done.stdout, done.stderr
    assert "readonly" in done.stdout


def test_a_full_disk(open_store: Open, path: Path) -> None:
    """When the file cannot grow, the save is an error that names it and the session stays."""
    store = open_store()
    saved = store.create(RECORD, NOW)
    store.close()
    script = """
import resource, sys
from tieredsession.contracts import Record
from tieredsession.errors import StoreError
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.sqlite import SQLiteSessionStore
path, token = sys.argv[1:]
options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
store = SQLiteSessionStore(path, options.ids, options.record_envelope)
record = store.load(token, 1_800_000_000.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    store.update(token, record._replace(payload=b"x" * 100_000), 1_800_000_000.0)
except StoreError as error:
    print(error)
store.close()
"""
    done = run(script, str(path), saved.token)
    assert "sessions.sqlite3" in done.stdout, done.stderr
    assert store.load(saved.token, NOW) == RECORD._replace(version=1)


def test_many_processes_count_to_the_last(open_store: Open, path: Path) -> None:
    """Processes that change one session at once lose no change."""
    store = open_store()
    saved = store.create(RECORD._replace(payload=b"0"), NOW)
    script = """
import sys
from tieredsession.errors import Conflict
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.sqlite import SQLiteSessionStore
path, token = sys.argv[1:]
options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
store = SQLiteSessionStore(path, options.ids, options.record_envelope, timeout=30)
now = 1_800_000_000.0
for _ in range(25):
    record = store.load(token, now)
    while True:
        try:
            store.update(token, record._replace(payload=b"%d" % (int(record.payload) + 1)), now)
            break
        except Conflict as conflict:
            record = conflict.current
store.close()
"""
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: run(script, str(path), saved.token), range(4)))
    assert [one.stderr for one in done] == [""] * 4
    loaded = store.load(saved.token, NOW)
    assert loaded is not None
    assert loaded.payload == b"100"


def test_many_processes_start_at_once(path: Path) -> None:
    """Processes that create the file at the same moment all find it usable."""
    script = """
import sys
from tieredsession.contracts import Record
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.sqlite import SQLiteSessionStore
options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
store = SQLiteSessionStore(sys.argv[1], options.ids, options.record_envelope, timeout=30)
store.create(Record(b"", 1_800_003_600.0, 1_800_000_000.0), 1_800_000_000.0)
store.close()
"""
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: run(script, str(path)), range(6)))
    assert [one.stderr for one in done] == [""] * 6
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (6,)


def test_threads_share_a_store(open_store: Open) -> None:
    """Threads that change one session through one store lose no change."""
    store = open_store(timeout=30)
    token = store.create(RECORD._replace(payload=b"0"), NOW).token

    def count(_: int) -> None:
        for _ in range(20):
            record = store.load(token, NOW)
            while record is not None:
                new = record._replace(payload=b"%d" % (int(record.payload) + 1))
                try:
                    store.update(token, new, NOW)
                    break
                except Conflict as conflict:
                    record = conflict.current

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    loaded = store.load(token, NOW)
    assert loaded is not None
    assert loaded.payload == b"160"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_opens_its_own_connection(open_store: Open) -> None:
    """After a fork both processes read and write, each over its own connection."""
    store = open_store()
    saved = store.create(RECORD, NOW)
    child = os.fork()
    if child == 0:
        try:
            store.update(saved.token, RECORD._replace(payload=b"child", version=1), NOW)
            os._exit(0)
        except BaseException:  # nothing of pytest may run in the child
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    loaded = store.load(saved.token, NOW)
    assert loaded is not None
    assert loaded.payload == b"child"


COUNT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM sessions").fetchone())
connection.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_outlives_its_parent(open_store: Open, path: Path) -> None:
    """A forked process has locks of its own: when its parent is done, others leave it its log."""
    store = open_store()
    store.create(RECORD, NOW)
    closed, close = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(closed, 1)
            store.create(RECORD, NOW)
            run(COUNT, str(path))
            store.create(RECORD, NOW)
            os._exit(0)
        except BaseException:
            os._exit(1)
    store.close()
    os.write(close, b".")
    assert os.waitpid(child, 0)[1] == 0
    os.close(closed)
    os.close(close)
    assert run(COUNT, str(path)).stdout == "(3,)\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_by_a_server_of_c(open_store: Open) -> None:
    """A child that Python did not fork neither uses what its parents have open, nor closes it."""
    store = open_store()
    token = store.create(RECORD, NOW).token
    python = ctypes.PyDLL(None)  # as uWSGI does it: no hook is called

    def connections() -> int:
        gc.collect()  # which is when one that nobody holds is closed
        return sum(type(thing) is sqlite3.Connection for thing in gc.get_objects())

    def look() -> bool:
        inherited = connections()
        store.close()
        kept = connections() == inherited
        return kept and store.load(token, NOW) is not None and connections() == inherited + 1

    def in_a_child(work: Callable[[], bool]) -> bool:
        child = python.fork()
        if child == 0:
            os._exit(0 if work() else 1)
        return bool(os.waitpid(child, 0)[1] == 0)

    assert in_a_child(lambda: look() and in_a_child(look))


def test_a_second_store_costs_the_first_no_lock(open_store: Open, path: Path) -> None:
    """With two stores of one file in a process, what others do leaves it and its log alone."""
    first, second = open_store(), open_store()
    first.create(RECORD, NOW)
    assert run(COUNT, str(path)).stdout == "(1,)\n"
    first.create(RECORD, NOW)
    second.create(RECORD, NOW)
    assert run(COUNT, str(path)).stdout == "(3,)\n"


def test_a_sweep_reads_the_index(open_store: Open, path: Path) -> None:
    """A sweep finds expired sessions by the index, not by reading every row."""
    open_store()
    with closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT key FROM sessions WHERE expires <= 1 ORDER BY expires"
        ).fetchall()
    assert "sessions_by_expiry" in str(plan)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sqlite://", "is not of the form"),
        ("sqlite:///", "is not of the form"),
        ("sqlite://host/file", "is not of the form"),
        ("redis:///file", "is not of the form"),
        ("sqlite:///:memory:", "names no file: .* MemorySessionStore"),
        ("sqlite:///file?timeout=soon", "a positive number of seconds"),
        ("sqlite:///file?synchronous=off", "full or normal"),
        ("sqlite:///file?tiemout=1", "unknown option: tiemout"),
    ],
)
def test_a_wrong_url_stops_the_start(text: str, problem: str) -> None:
    """A wrong URL is one sentence that names the setting."""
    options = StoreOptions(Keyring(SECRET), "id", url=URL(text, "SESSION_STORE_URL"))
    with pytest.raises(ConfigurationError, match=f"^SESSION_STORE_URL .*{problem}"):
        SQLiteSessionStore.from_options(options)


def test_a_url_names_the_file(tmp_path: Path) -> None:
    """Three slashes and an absolute path, with options, open that file."""
    url = URL(f"sqlite:///{tmp_path}/a%20b.sqlite3?timeout=1&synchronous=normal", "S")
    store = SQLiteSessionStore.from_options(StoreOptions(Keyring(SECRET), "id", url=url))
    store.create(RECORD, NOW)
    store.close()
    assert (tmp_path / "a b.sqlite3").exists()


@pytest.mark.parametrize(
    ("option", "level"), [("", 2), ("?synchronous=full", 2), ("?synchronous=normal", 1)]
)
def test_a_commit_is_synced(tmp_path: Path, option: str, level: int) -> None:
    """Every commit is synced to the disk, unless the URL trades that for speed."""
    url = URL(f"sqlite:///{tmp_path}/s.sqlite3{option}", "S")
    store = SQLiteSessionStore.from_options(StoreOptions(Keyring(SECRET), "id", url=url))
    store.create(RECORD, NOW)
    (connection,) = store._idle
    assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
    store.close()


def test_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL the file is sessions.sqlite3 in the current folder."""
    monkeypatch.chdir(tmp_path)
    SQLiteSessionStore.from_options(OPTIONS).close()
    assert (tmp_path / "sessions.sqlite3").exists()
