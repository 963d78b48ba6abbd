"""The memory store under threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from tieredsession.contracts import Record
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.memory import MemorySessionStore

NOW = 1_800_000_000.0
RECORD = Record(b"", NOW + 3600, NOW, "ann")
OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
def test_sessions_are_counted_while_others_are_made() -> None:
    """Whoever goes through the sessions does not mind that other threads begin new ones."""
    store = MemorySessionStore.from_options(OPTIONS)
    for _ in range(2000):
        store.create(RECORD, NOW)
    done = threading.Event()

    def create() -> None:
        while not done.is_set():
            store.create(RECORD, NOW)

    thread = threading.Thread(target=create)
    thread.start()
    try:
        for _ in range(20):
            assert store.oldest("") == RECORD.expires
            assert len(store.sessions_of("ann", NOW)) >= 2000
    finally:
        done.set()
        thread.join()
