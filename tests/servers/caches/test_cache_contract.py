"""Every cache, on every server and by every protocol, is held to the same contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tieredsession.contracts import Cache
from tieredsession.stores.memcached import MemcachedCache
from tieredsession.stores.memory_cache import MemoryCache
from tieredsession.stores.redis import RedisCache
from tieredsession.testing import FakeClock
from tieredsession.testing.cache_contract import CacheContract
from tieredsession.url import URL

if TYPE_CHECKING:
    from servers.conftest import Memcached, RedisServer

SETTING = "SESSION_CACHE_URL"


@pytest.mark.parametrize(
    ("missing", "module", "use", "extra"),
    [
        ("pymemcache", "memcached", "", "memcached"),
        ("redis", "redis", "", "redis"),
        ("fakeredis", "redis", "RedisCache.from_url(URL('fakeredis://', 'X'))", "fakeredis"),
        ("lupa", "redis", "RedisCache.from_url(URL('fakeredis://', 'X'))", "fakeredis"),
    ],
)
def test_a_library_that_is_not_installed(missing: str, module: str, use: str, extra: str) -> None:
    """A cache without its library says the command that installs it."""
    script = f"""
import sys
from tieredsession.errors import MissingDependencyError
from tieredsession.url import URL
sys.modules[{missing!r}] = None
try:
    from tieredsession.stores.{module} import *
    {use}
except MissingDependencyError as error:
    print(error)
"""
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert f'pip install "tieredsession[{extra}]"' in done.stdout


class TestMemory(CacheContract):
    @pytest.fixture
    def cache(self) -> MemoryCache:
        self.clock = FakeClock()
        return MemoryCache(clock=self.clock)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class TestFakeRedis(CacheContract):
    @pytest.fixture
    def cache(self) -> RedisCache:
        return RedisCache.from_url(URL(f"fakeredis:///{uuid4()}", SETTING))


@pytest.mark.parametrize("protocol", ["text", "meta", "auto"])
class TestMemcached(CacheContract):
    @pytest.fixture
    def cache(self, memcached: Memcached, protocol: str) -> Iterator[MemcachedCache]:
        url = memcached.url(f"timeout=5&protocol={protocol}")
        cache = MemcachedCache.from_url(URL(url, SETTING))
        yield cache
        cache.close()


class TestMemcachedOnASocket(CacheContract):
    @pytest.fixture
    def cache(self, unix_memcached: Memcached) -> Iterator[MemcachedCache]:
        cache = MemcachedCache.from_url(URL(unix_memcached.url(), SETTING))
        yield cache
        cache.close()

    def test_server_is_a_name(self, cache: Cache) -> None:
        """The server of a key is named by the path of its socket."""
        assert cache.server("contract:server").endswith("/sock")


class TestTwoMemcached(CacheContract):
    @pytest.fixture
    def cache(self, memcached_pair: list[Memcached]) -> Iterator[MemcachedCache]:
        both = ",".join(server.authority for server in memcached_pair)
        cache = MemcachedCache.from_url(URL(f"memcached://{both}?timeout=5", SETTING))
        yield cache
        cache.close()


@pytest.mark.parametrize("way", ["tcp", "unix"])
class TestRedis(CacheContract):
    @pytest.fixture
    def cache(self, redis: RedisServer, way: str) -> Iterator[RedisCache]:
        url = redis.url() if way == "tcp" else redis.unix_url()
        cache = RedisCache.from_url(URL(url, SETTING))
        yield cache
        cache.close()
