"""The promises of the core, through every front end, on the stores that need no server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from adapters.frontends import FRONT_ENDS, FrontEnd
from adapters.scenarios import (
    SECRET,
    Calls,
    CookieStore,
    Costs,
    EveryStore,
    ServerStores,
    Setup,
    TwoTiers,
)

from tieredsession import Settings
from tieredsession.registry import open_store
from tieredsession.stores import SQLiteSessionStore

ONE = Calls(0, 1)
SQLITE = "tieredsession.stores.SQLiteSessionStore"

SETUPS: dict[str, Setup] = {
    # Nobody is asked: a call to the store seals or opens a cookie.
    "cookie": Setup({}, Costs(hit=ONE, miss=ONE, write=ONE, new=ONE, delete=ONE)),
    "sqlite": Setup(
        {
            "SESSION_STORE": SQLITE,
            "SESSION_STORE_URL": "sqlite:///{folder}/sessions.sqlite3?synchronous=normal",
        },
        Costs(hit=ONE, miss=ONE, write=ONE, new=ONE, delete=ONE),
    ),
    # As GAESessionStore is made, of a cache and a store that are here.
    "tiered": Setup(
        {
            "SESSION_STORE": SQLITE,
            "SESSION_STORE_URL": "sqlite:///{folder}/sessions.sqlite3?synchronous=normal",
            "SESSION_CACHE_URL": "memory:///{folder}",
            # The days of a case pass for the site alone, and the cache's entries stay fresh.
            "SESSION_CACHE_AGE": "2592000",
        },
        Costs(Calls(1, 0), Calls(2, 1), Calls(2, 1), Calls(1, 1), Calls(2, 1)),
    ),
    "dead cache": Setup(
        {
            "SESSION_STORE": SQLITE,
            "SESSION_STORE_URL": "sqlite:///{folder}/sessions.sqlite3?synchronous=normal",
            "SESSION_CACHE_URL": "memory:///{folder}",
        },
        Costs(hit=ONE, miss=ONE, write=ONE, new=ONE, delete=ONE),
        dead_cache=True,
    ),
}

front_ends = pytest.mark.parametrize("front_end_name", FRONT_ENDS)


@pytest.fixture
def front_end(front_end_name: str) -> type[FrontEnd]:
    """The front end of a case."""
    return FRONT_ENDS[front_end_name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the cases, which do not see each other, share a file: making one waits for a disk."""
    folder = tmp_path_factory.mktemp("scenarios")
    settings = {**SETUPS["sqlite"].settings, "SECRET_KEY": SECRET}
    settings["SESSION_STORE_URL"] = settings["SESSION_STORE_URL"].format(folder=folder)
    store = open_store(Settings(settings))
    assert isinstance(store, SQLiteSessionStore)
    yield folder
    store.close()


@pytest.fixture
def setup(store: str, folder: Path) -> Setup:
    """The setup of a case."""
    settings = SETUPS[store].settings
    settings = {name: value.format(folder=folder) for name, value in settings.items()}
    return replace(SETUPS[store], settings=settings)


@front_ends
@pytest.mark.parametrize("store", ["cookie", "sqlite", "tiered", "dead cache"])
class TestEveryStore(EveryStore):
    pass


@front_ends
@pytest.mark.parametrize("store", ["sqlite", "tiered", "dead cache"])
class TestServerStores(ServerStores):
    pass


@front_ends
@pytest.mark.parametrize("store", ["tiered"])
class TestTwoTiers(TwoTiers):
    pass


@front_ends
@pytest.mark.parametrize("store", ["cookie"])
class TestCookieStore(CookieStore):
    pass
