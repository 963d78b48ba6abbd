"""A dict as a cache: for one process, without a server, and for tests."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakSet

from tieredsession.contracts import Entry, Found, Handle
from tieredsession.errors import CacheError
from tieredsession.url import URL

MAX_BYTES = 64 << 20
MAX_ENTRIES = 100_000
_OVERHEAD = 400  # bytes of an entry beside its key and value; CPython 3.11 takes about 350


class MemoryCache:
    """Values in a dict of this process; the least recently used make way for new ones.

    It is coherent within one process: with several, each would keep its own old values
    until their ttl. A forked process begins with an empty one.

    Args:
        max_bytes: of all entries together, what Python adds to them included.
        max_entries: how many there are at most.
        clock: seconds from any start. It never goes back.

    Raises:
        CacheError: a value above ``max_value``; the entry that was there is gone.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_value = max_bytes // 16
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._clock = clock
        self._last_handle = 0
        self._empty()
        _caches.add(self)

    @classmethod
    def from_url(cls, url: URL) -> MemoryCache:
        """``memory://[/name]``: in one process, caches of one name are one.

        Options: ``bytes`` (64 MiB) and ``entries`` (100,000), the limits of the cache. They
        are those of its first user.
        """
        if url.hosts:
            raise url.error("is not of the form memory:///name")
        max_bytes = url.option("bytes", MAX_BYTES, _parse_count)
        max_entries = url.option("entries", MAX_ENTRIES, _parse_count)
        url.finish()
        with _lock:
            cache = _named.get(url.path)
            if cache is None:
                cache = _named[url.path] = cls(max_bytes=max_bytes, max_entries=max_entries)
        return cache

    # -- Cache ------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        with self._lock:
            return self._live(key)

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        with self._lock:
            entry = self._live(key)
            if entry is None:
                return Found(None, True, self._put(key, value, ttl))
        return Found(entry.value, False, entry.handle)

    def set(self, key: str, value: bytes, ttl: float) -> Handle | None:
        with self._lock:
            return self._put(key, value, ttl)

    def replace(self, key: str, handle: Handle, value: bytes, ttl: float) -> bool:
        with self._lock:
            entry = self._live(key)
            if entry is None or entry.handle != handle:
                return False
            self._put(key, value, ttl)
        return True

    def delete(self, key: str) -> None:
        with self._lock:
            self._drop(key)

    def server(self, key: str) -> str:
        return "memory"

    def __len__(self) -> int:
        """How many entries are held, expired ones included."""
        return len(self._slots)

    # -- inside, under the lock ---------------------------------------------------------

    def _live(self, key: str) -> Entry | None:
        slot = self._slots.get(key)
        if slot is None:
            return None
        entry, expires = slot
        if expires <= self._clock():
            self._drop(key)
            return None
        self._slots.move_to_end(key)
        return entry

    def _put(self, key: str, value: bytes, ttl: float) -> int:
        self._drop(key)
        if len(value) > self.max_value:
            raise CacheError(f"memory: a value of {len(value)} bytes is above {self.max_value}")
        self._last_handle += 1
        self._slots[key] = Entry(value, self._last_handle), self._clock() + ttl
        self._bytes += _size(key, value)
        while self._bytes > self._max_bytes or len(self._slots) > self._max_entries:
            self._drop(next(iter(self._slots)))
        return self._last_handle

    def _drop(self, key: str) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._bytes -= _size(key, slot[0].value)

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self._slots: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._bytes = 0


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number above 0")
    return int(text)


_named: dict[str, MemoryCache] = {}
_lock = threading.Lock()  # of _named
_caches: WeakSet[MemoryCache] = WeakSet()


def _after_fork() -> None:
    """A child has its own copy of each cache, and perhaps a lock that nobody will release."""
    global _lock
    _lock = threading.Lock()
    for cache in _caches:
        cache._empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
