"""Every store of the core is held to the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.cookie import SecureCookieSessionStore
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.stores.sqlite import SQLiteSessionStore
from tieredsession.testing import StoreContract, SweepContract

OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id", prefix="app:")
ENCRYPTED = StoreOptions(Keyring("only for tests, only for tests, 1"), "id", encrypt=True)
COMPRESSED = StoreOptions(Keyring("only for tests, only for tests, 1"), "id", compress=True)


@pytest.mark.parametrize("options", [OPTIONS, ENCRYPTED, COMPRESSED], ids=["sign", "seal", "zip"])
class TestSecureCookieSessionStore(StoreContract):
    @pytest.fixture
    def store(self, options: StoreOptions) -> SecureCookieSessionStore:
        return SecureCookieSessionStore.from_options(options)


class TestMemorySessionStore(StoreContract, SweepContract):
    @pytest.fixture
    def store(self) -> MemorySessionStore:
        return MemorySessionStore.from_options(OPTIONS)


@pytest.mark.parametrize("options", [OPTIONS, ENCRYPTED], ids=["sign", "seal"])
class TestSQLiteSessionStore(StoreContract, SweepContract):
    @pytest.fixture
    def store(self, options: StoreOptions, tmp_path: Path) -> Iterator[SQLiteSessionStore]:
        store = SQLiteSessionStore(
            tmp_path / "s.sqlite3", options.ids, options.record_envelope, synchronous="normal"
        )
        yield store
        store.close()
