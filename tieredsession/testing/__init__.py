"""For tests of applications, stores and caches: a clock to turn, faults to inject, contracts.

The suites are plain classes with ``test_*`` methods for pytest: subclass one, give it the
fixture that it asks for, and your store or cache is held to what ours are held to.
"""

from __future__ import annotations

from tieredsession.testing.cache_contract import CacheContract as CacheContract
from tieredsession.testing.chaos import Chaos as Chaos
from tieredsession.testing.clock import FakeClock as FakeClock
from tieredsession.testing.store_contract import PrincipalContract as PrincipalContract
from tieredsession.testing.store_contract import StoreContract as StoreContract
from tieredsession.testing.store_contract import SweepContract as SweepContract

__all__ = [
    "CacheContract",
    "Chaos",
    "FakeClock",
    "PrincipalContract",
    "StoreContract",
    "SweepContract",
]
