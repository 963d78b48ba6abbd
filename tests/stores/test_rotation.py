"""A change of keys: what an old key sealed is sealed under the new one at the next save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tieredsession.contracts import Record, SessionStore
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.cookie import SecureCookieSessionStore
from tieredsession.stores.memory_cache import MemoryCache
from tieredsession.stores.sqlite import SQLiteSessionStore
from tieredsession.stores.tiered import TieredSessionStore

NOW = 1_800_000_000.0
RECORD = Record(b"payload", NOW + 3600, NOW, "ann")
OLD, NEW = "only for tests, the old one, 0123", "only for tests, the new one, 4567"

Open = Callable[[Keyring], SessionStore]


def _sqlite(path: Path, keyring: Keyring) -> SQLiteSessionStore:
    options = StoreOptions(keyring, "id")
    return SQLiteSessionStore(
        path / "s.sqlite3", options.ids, options.record_envelope, synchronous="normal"
    )


@pytest.fixture(params=["cookie", "sqlite", "tiered"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    cache = MemoryCache()

    def open_one(keyring: Keyring) -> SessionStore:
        options = StoreOptions(keyring, "id")
        if request.param == "cookie":
            return SecureCookieSessionStore.from_options(options)
        durable = _sqlite(tmp_path, keyring)
        request.addfinalizer(durable.close)
        if request.param == "sqlite":
            return durable
        return TieredSessionStore(cache, durable, options.ids, options.record_envelope)

    return open_one


def test_a_session_in_use_outlives_its_key(open_store: Open) -> None:
    """A session that is saved while both keys are known lives on under the new one alone."""
    saved = open_store(Keyring(OLD)).create(RECORD, NOW)
    both = open_store(Keyring(NEW, [OLD]))
    loaded = both.load(saved.token, NOW)
    assert loaded is not None
    again = both.update(saved.token, loaded, NOW)
    assert open_store(Keyring(NEW)).load(again.token, NOW) is not None


def test_without_the_old_key_its_sessions_are_none(open_store: Open) -> None:
    """A session that nobody used in the meantime ends with its key, without an error."""
    saved = open_store(Keyring(OLD)).create(RECORD, NOW)
    assert open_store(Keyring(NEW)).load(saved.token, NOW) is None


def test_servers_with_the_keys_in_either_order(open_store: Open) -> None:
    """While a new key is rolled out, servers with it first or last read one another."""
    servers = [open_store(Keyring(OLD, [NEW])), open_store(Keyring(NEW, [OLD]))]
    for writer, reader in (servers, servers[::-1]):
        saved = writer.create(RECORD, NOW)
        assert reader.load(saved.token, NOW) is not None
