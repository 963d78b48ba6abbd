"""The Datastore store under threads and forks, and while its server is stopped or dead."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Protocol

import pytest

from tieredsession.contracts import Record
from tieredsession.errors import Conflict, StoreUnavailable
from tieredsession.stores.datastore import DatastoreSessionStore

NOW = 1_800_000_000.0
RECORD = Record(b"payload", NOW + 3600, NOW)
SLACK = 1.0  # seconds for a machine that is busy

OpenStore = Callable[..., DatastoreSessionStore]


class Emulator(Protocol):
    """What the fixtures give."""

    host: str

    def send(self, number: signal.Signals) -> None: ...


# -- threads --------------------------------------------------------------------------


def test_sixteen_threads(open_store: OpenStore) -> None:
    """Threads share a store from its first call on and never meet each other's sessions."""
    store = open_store()
    together = Barrier(16)

    def live(number: int) -> None:
        together.wait()
        saved = store.create(RECORD._replace(payload=b"%d" % number), NOW)
        for turn in range(10):
            record = store.load(saved.token, NOW)
            assert record is not None
            assert record.payload == b"%d" % (number + 1000 * turn)
            payload = b"%d" % (number + 1000 * (turn + 1))
            saved = store.update(saved.token, record._replace(payload=payload), NOW)
        store.delete(saved.token, NOW)
        assert store.load(saved.token, NOW) is None

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(live, range(16)))


def test_writers_of_one_session_lose_nothing(open_store: OpenStore) -> None:
    """Threads that save one session in turn, each on the version before, keep every change."""
    store = open_store()
    token = store.create(RECORD._replace(payload=b""), NOW).token

    def add(number: int) -> None:
        record = store.load(token, NOW)
        while True:
            assert record is not None
            try:
                mine = record._replace(payload=record.payload + bytes((number,)))
                store.update(token, mine, NOW)
                return
            except Conflict as conflict:
                record = conflict.current

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    final = store.load(token, NOW)
    assert final is not None
    assert sorted(final.payload) == list(range(32))


# -- processes ------------------------------------------------------------------------

_FORKING = """
import os, sys
from google.cloud import ndb
from tieredsession.contracts import Record
from tieredsession.errors import StoreError
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.datastore import DatastoreSessionStore

options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
made = []

def make():
    made.append(os.getpid())
    return ndb.Client(project=sys.argv[1])

client = make if sys.argv[2] == "function" else make()
store = DatastoreSessionStore(client, options.ids, options.record_envelope)
now = 1_800_000_000.0
saved = store.create(Record(b"before", now + 60, now), now)

def child():
    try:
        for _ in range(5):
            assert store.load(saved.token, now).payload == b"before"
            store.delete(store.create(Record(b"mine", now + 60, now), now).token, now)
    except StoreError as error:
        print(error)
        return 3
    return 0 if made[-1] == os.getpid() else 4

children = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        os._exit(child())
    children.append(pid)
    store.load(saved.token, now)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
assert store.load(saved.token, now).payload == b"before"
"""


@pytest.mark.parametrize(
    ("client", "ends"),
    [("function", [0] * 6), ("instance", [3] * 6)],
)
@pytest.mark.usefixtures("emulator")
def test_a_fork_after_the_first_call(project: str, client: str, ends: list[int]) -> None:
    """Children of a process that has used the store work, or are told that they cannot."""
    command = [sys.executable, "-c", _FORKING, project, client]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(ends)
    assert client == "function" or "give the store a function" in done.stdout


# -- a server that does not answer ----------------------------------------------------


@pytest.fixture
def own_emulator(
    emulator: Emulator, start_emulator: Callable[[], Emulator], monkeypatch: pytest.MonkeyPatch
) -> Emulator:
    """An emulator that a test may stop, in the place of the shared one."""
    own = start_emulator()
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", own.host)
    return own


def test_a_silent_and_a_dead_server(own_emulator: Emulator, open_store: OpenStore) -> None:
    """A server that hangs costs the deadline and a dead one less, and each says so."""
    saved = open_store().create(RECORD, NOW)  # the first commit of a new server takes long
    store = open_store(deadline=0.4)
    record = RECORD._replace(version=saved.version)
    calls: list[Callable[[], object]] = [
        lambda: store.load(saved.token, NOW),
        lambda: store.create(RECORD, NOW),
        lambda: store.update(saved.token, record, NOW),
        lambda: store.delete(saved.token, NOW),
    ]
    store.load(saved.token, NOW)

    own_emulator.send(signal.SIGSTOP)
    for call in calls:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not answer: DEADLINE_EXCEEDED"):
            call()
        assert 0.3 < time.monotonic() - start < 0.4 + SLACK
    own_emulator.send(signal.SIGCONT)
    open_store().create(RECORD, NOW)

    own_emulator.send(signal.SIGKILL)
    for call in calls:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="UNAVAILABLE"):
            call()
        assert time.monotonic() - start < 0.4 + SLACK
