"""What is the memory store's alone: one dict under many threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tieredsession import Record
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.memory import MemorySessionStore

OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
NOW = 1_800_000_000.0
RECORD = Record(b"payload", NOW + 60, NOW, "ann")


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless_threads")
def test_sessions_begin_while_others_are_counted() -> None:
    """Sessions can begin at any time: no list, sweep or look at the oldest is disturbed."""
    store = MemorySessionStore.from_options(OPTIONS)
    for _ in range(500):
        store.create(RECORD, NOW)

    def begin() -> None:
        for _ in range(1000):
            store.create(RECORD, NOW)

    with ThreadPoolExecutor(1) as pool:
        beginning = pool.submit(begin)
        while not beginning.done():
            assert len(store.sessions_of("ann", NOW)) >= 500
            assert store.oldest("") == RECORD.expires
            assert store.sweep("", 0, NOW, 500).deleted == 0
    beginning.result()
