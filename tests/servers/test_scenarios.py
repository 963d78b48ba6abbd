"""The promises of the core, through every front end, on memcached and Datastore."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from adapters.frontends import FRONT_ENDS, FrontEnd
from adapters.scenarios import Calls, Costs, EveryStore, ServerStores, Setup, TwoTiers

if TYPE_CHECKING:
    from servers.conftest import Emulator, Memcached


@pytest.fixture
def front_end(front_end_name: str) -> type[FrontEnd]:
    """The front end of a case."""
    return FRONT_ENDS[front_end_name]


@pytest.fixture
def setup(shared_memcached: list[Memcached], shared_emulator: Emulator) -> Setup:
    """The setup of a case; the cases share one project, for they do not see each other."""
    return Setup(
        {
            "SESSION_STORE": "tieredsession.stores.GAESessionStore",
            "SESSION_STORE_URL": f"datastore://scenarios-{os.getpid()}?deadline=20",
            "SESSION_CACHE_URL": shared_memcached[0].url("timeout=5&protocol=meta"),
            # The days of a case pass for the site alone, and memcached's entries stay fresh.
            "SESSION_CACHE_AGE": 30 * 24 * 3600,
        },
        Costs(Calls(1, 0), Calls(2, 1), Calls(2, 1), Calls(1, 1), Calls(2, 1)),
    )


@pytest.mark.parametrize("front_end_name", FRONT_ENDS)
class TestOnServers(EveryStore, ServerStores, TwoTiers):
    pass
