"""Every store of the core is held to the same contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tieredsession.contracts import Record
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.cookie import SecureCookieSessionStore
from tieredsession.stores.hybrid import HybridSessionStore
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.stores.sqlite import SQLiteSessionStore
from tieredsession.testing import PrincipalContract, StoreContract, SweepContract

KEYRING = Keyring("only for tests, only for tests, 1")
OPTIONS = StoreOptions(KEYRING, "id", prefix="app:", principals=True)
ENCRYPTED = StoreOptions(KEYRING, "id", encrypt=True, principals=True)
COMPRESSED = StoreOptions(KEYRING, "id", compress=True)


@pytest.mark.parametrize("options", [OPTIONS, ENCRYPTED, COMPRESSED], ids=["sign", "seal", "zip"])
class TestSecureCookieSessionStore(StoreContract):
    @pytest.fixture
    def store(self, options: StoreOptions) -> SecureCookieSessionStore:
        return SecureCookieSessionStore.from_options(options)


class TestMemorySessionStore(StoreContract, SweepContract, PrincipalContract):
    @pytest.fixture
    def store(self) -> MemorySessionStore:
        return MemorySessionStore.from_options(OPTIONS)

    def test_sessions_begin_while_others_are_sought(self, store: MemorySessionStore) -> None:
        """A user's sessions are listed, and old ones swept, while threads begin others."""

        def begin() -> None:
            for _ in range(3000):
                store.create(Record(b"", 2e9, 1e9), 1e9)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(1) as pool:
                begun = pool.submit(begin)
                while not begun.done():
                    assert store.sessions_of("ann", 1e9) == []
                    assert store.sweep("", 0, 1e9, 1).scanned == 0
        finally:
            sys.setswitchinterval(interval)
        begun.result()


@pytest.mark.parametrize("options", [OPTIONS, ENCRYPTED], ids=["sign", "seal"])
class TestSQLiteSessionStore(StoreContract, SweepContract, PrincipalContract):
    @pytest.fixture
    def store(self, options: StoreOptions, tmp_path: Path) -> Iterator[SQLiteSessionStore]:
        store = SQLiteSessionStore(
            tmp_path / "s.sqlite3",
            options.ids,
            options.record_envelope,
            owners=options.owners,
            synchronous="normal",
        )
        yield store
        store.close()


class TestHybridSessionStore(StoreContract):
    @pytest.fixture
    def store(self) -> HybridSessionStore:
        cookie = SecureCookieSessionStore.from_options(OPTIONS)
        return HybridSessionStore(cookie, MemorySessionStore.from_options(OPTIONS))


class TestHybridSessionStoreOnTheServer(StoreContract):
    """With no room in the cookie, every session is the server store's."""

    @pytest.fixture
    def store(self) -> HybridSessionStore:
        cookie = SecureCookieSessionStore.from_options(OPTIONS)
        store = HybridSessionStore(cookie, MemorySessionStore.from_options(OPTIONS), limit=0)
        store.revocable = True  # every one of them is, here
        return store
