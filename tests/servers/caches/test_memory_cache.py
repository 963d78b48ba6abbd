"""The cache in this process: its limits, its time, and who shares it."""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import uuid4

import pytest

from tieredsession.errors import CacheError, ConfigurationError
from tieredsession.stores.memory_cache import MemoryCache
from tieredsession.testing import FakeClock
from tieredsession.url import URL

TTL = 60.0


def open_cache(url: str) -> MemoryCache:
    return MemoryCache.from_url(URL(url, "SESSION_CACHE_URL"))


def test_an_entry_lives_as_long_as_its_ttl() -> None:
    """An entry is there until its ttl has passed, and not a moment longer."""
    clock = FakeClock()
    cache = MemoryCache(clock=clock)
    cache.set("key", b"value", 1.5)
    clock.advance(1.49)
    assert cache.get("key") is not None
    clock.advance(0.01)
    assert cache.get("key") is None
    assert len(cache) == 0


def test_an_expired_entry_is_not_replaced() -> None:
    """A handle does not outlive its entry."""
    clock = FakeClock()
    cache = MemoryCache(clock=clock)
    handle = cache.set("key", b"value", 1)
    assert handle is not None
    clock.advance(1)
    assert not cache.replace("key", handle, b"late", TTL)
    assert cache.get("key") is None


def test_handles_never_repeat() -> None:
    """No two states of any entries have one handle, gone ones included."""
    cache = MemoryCache()
    handles = []
    for number in range(100):
        handles.append(cache.set(f"key:{number % 3}", b"same", TTL))
        cache.delete(f"key:{number % 2}")
        handles.append(cache.get_or_add(f"key:{number % 2}", b"same", TTL).handle)
    assert len(set(handles)) == len(handles)


def test_the_least_recently_used_goes_first() -> None:
    """Where there is no more room, what was not used for longest makes way."""
    cache = MemoryCache(max_entries=3)
    for key in ("a", "b", "c"):
        cache.set(key, b"", TTL)
    cache.get("a")
    cache.get_or_add("b", b"", TTL)
    cache.set("d", b"", TTL)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "b", "d"]


def test_the_limit_in_bytes() -> None:
    """However many and large the values, together they stay below max_bytes."""
    cache = MemoryCache(max_bytes=1 << 20)
    for number in range(2000):
        cache.set(f"key:{number}", b"x" * (number % 5000), TTL)
    held = sum(len(entry.value) for n in range(2000) if (entry := cache.get(f"key:{n}")))
    assert 1 << 19 < held < 1 << 20
    for number in range(2000):
        cache.delete(f"key:{number}")
    cache.set("key", b"x" * cache.max_value, TTL)
    assert cache.get("key") is not None


def test_a_million_sessions_take_no_more_room() -> None:
    """A process that meets ever new keys keeps no more entries than it may."""
    cache = MemoryCache(max_entries=1000)
    for number in range(20_000):
        cache.set(f"key:{number}", b"value", TTL)
    assert len(cache) == 1000


def test_a_value_above_the_limit() -> None:
    """A value that is too large is a CacheError, and takes the old one along."""
    cache = MemoryCache(max_bytes=16_000)
    cache.set("key", b"old", TTL)
    with pytest.raises(CacheError, match="above 1000"):
        cache.set("key", b"x" * 1001, TTL)
    assert cache.get("key") is None


def test_caches_of_one_name_are_one() -> None:
    """Within a process all caches of one memory:// URL share their entries."""
    name = uuid4()
    one, two, other = (open_cache(f"memory:///{part}") for part in (name, name, uuid4()))
    one.set("key", b"value", TTL)
    assert two.get("key") is not None
    assert other.get("key") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_begins_with_an_empty_one() -> None:
    """A child has neither the entries of its parent nor a lock that its parent held."""
    script = """
import os, threading
from tieredsession.stores.memory_cache import MemoryCache
cache = MemoryCache()
cache.set("key", b"value", 60)
with cache._lock:
    child = os.fork()
    if child == 0:
        os._exit(0 if cache.get("key") is None and cache.set("key", b"", 60) else 1)
assert os.waitpid(child, 0)[1] == 0
assert cache.get("key") is not None
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_the_options_of_a_url() -> None:
    """The limits can be said in the URL."""
    cache = open_cache(f"memory:///{uuid4()}?bytes=16000&entries=2")
    for key in ("a", "b", "c"):
        cache.set(key, b"", TTL)
    assert (len(cache), cache.max_value) == (2, 1000)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("memory://host", "memory:///name"),
        ("memory://?bytes=0", "bytes='0'"),
        ("memory://?entries=some", "entries='some'"),
        ("memory://?timeout=1", "unknown option: timeout"),
    ],
    ids=lambda text: text,
)
def test_urls_that_stop_the_start(url: str, problem: str) -> None:
    """A URL that is not understood to the end is a ConfigurationError that says why."""
    with pytest.raises(ConfigurationError, match=r"^SESSION_CACHE_URL ") as error:
        open_cache(url)
    assert problem in str(error.value)
