"""What every cache promises, as tests.

Subclass :class:`CacheContract` in a test module and give it a fixture ``cache``::

    class TestMyCache(CacheContract):
        @pytest.fixture
        def cache(self):
            return MyCache(...)

A cache with a clock of its own overrides :meth:`CacheContract.pass_time`; for all others
the suite waits until the server has let an entry expire, and no longer than that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tieredsession.contracts import Cache, Handle

T = TypeVar("T")

TTL = 60.0
_DAY = 24 * 3600.0
_PATIENCE = 10.0  # seconds; for servers that let entries expire on the second
_TRAPS = (
    b"",
    b"\r\n",
    b"END\r\n",
    b"VALUE key 0 3 1\r\nabc\r\nEND\r\n",
    b"$3\r\nabc\r\n",
    b"None",
    b"0",
    bytes(range(256)),
)
"""Values that a protocol or a client might take for something else."""


class CacheContract:
    """Tests of :class:`~tieredsession.contracts.Cache`, on keys that nobody else uses.

    *shortest_ttl* is the number of seconds after which an entry of the smallest ttl has to
    be gone, give or take what the server rounds.
    """

    shortest_ttl = 1.0

    def pass_time(self, seconds: float) -> None:
        """Let *seconds* pass for the cache, if that can be done without waiting."""

    # -- one entry ----------------------------------------------------------------------

    def test_nothing_is_none(self, cache: Cache) -> None:
        """A key that was never used has no entry."""
        assert cache.get("contract:nothing") is None

    def test_what_was_set_is_there(self, cache: Cache) -> None:
        """What was set is got back, byte for byte, whatever the bytes."""
        for number, value in enumerate(_TRAPS):
            cache.set(f"contract:set:{number}", value, TTL)
        for number, value in enumerate(_TRAPS):
            assert got(cache, f"contract:set:{number}") == value

    def test_set_overwrites(self, cache: Cache) -> None:
        """The last of several sets stays, longer or shorter than the one before."""
        for value in (b"a", b"b" * 5000, b"c"):
            cache.set("contract:overwrite", value, TTL)
            assert got(cache, "contract:overwrite") == value

    def test_the_largest_value(self, cache: Cache) -> None:
        """A value of max_value bytes is kept by each of the calls that put one."""
        large = bytes(range(256)) * (cache.max_value // 256 + 1)
        large = large[: cache.max_value]
        cache.set("contract:large", large, TTL)
        assert got(cache, "contract:large") == large
        assert cache.replace("contract:large", handle_of(cache, "contract:large"), large[1:], TTL)
        assert got(cache, "contract:large") == large[1:]

    def test_keys_of_every_form(self, cache: Cache) -> None:
        """Any printable ASCII without spaces is a key, up to 200 characters."""
        printable = "".join(map(chr, range(33, 127)))
        keys = ["k", "contract:" + printable, "contract:" + "x" * 191, "%s{}$1", "-1", "0", "*"]
        for key in keys:
            cache.set(key, key.encode(), TTL)
        for key in keys:
            assert got(cache, key) == key.encode()
            cache.delete(key)
            assert cache.get(key) is None

    def test_keys_do_not_touch_each_other(self, cache: Cache) -> None:
        """Setting and deleting one key leaves all others, however alike, as they are."""
        keys = [f"contract:apart:{number}" for number in range(50)]
        for key in keys:
            cache.set(key, key.encode(), TTL)
        cache.delete(keys[0])
        cache.set(keys[1], b"other", TTL)
        assert cache.get(keys[0]) is None
        assert [got(cache, key) for key in keys[2:]] == [key.encode() for key in keys[2:]]

    def test_delete(self, cache: Cache) -> None:
        """A deleted entry is gone, and deleting nothing is no error."""
        cache.delete("contract:delete")
        cache.set("contract:delete", b"value", TTL)
        cache.delete("contract:delete")
        cache.delete("contract:delete")
        assert cache.get("contract:delete") is None

    def test_server_is_a_name(self, cache: Cache) -> None:
        """The server of a key has a name, always the same, that is no key."""
        name = cache.server("contract:server")
        assert name
        assert "contract" not in name
        assert cache.server("contract:server") == name

    # -- get_or_add ---------------------------------------------------------------------

    def test_get_or_add_makes_an_entry(self, cache: Cache) -> None:
        """Where there is no entry, get_or_add wins and an entry stands there."""
        found = cache.get_or_add("contract:add", b"mine", TTL)
        assert (found.value, found.won) == (None, True)
        entry = cache.get("contract:add")
        assert entry is not None
        assert found.handle is None or found.handle == entry.handle

    def test_get_or_add_finds_an_entry(self, cache: Cache) -> None:
        """Where there is an entry, get_or_add answers it and its handle, and changes nothing."""
        cache.set("contract:find", b"theirs", TTL)
        handle = handle_of(cache, "contract:find")
        found = cache.get_or_add("contract:find", b"mine", TTL)
        assert (found.value, found.won, found.handle) == (b"theirs", False, handle)
        assert got(cache, "contract:find") == b"theirs"

    def test_get_or_add_wins_once(self, cache: Cache) -> None:
        """Who comes second does not win, and is told what the first one's entry is."""
        first = cache.get_or_add("contract:twice", b"first", TTL)
        second = cache.get_or_add("contract:twice", b"second", TTL)
        assert (first.won, second.won) == (True, False)
        assert second.value == got(cache, "contract:twice")
        assert second.handle == handle_of(cache, "contract:twice")

    def test_get_or_add_after_delete(self, cache: Cache) -> None:
        """A deleted entry makes room for another."""
        cache.get_or_add("contract:again", b"first", TTL)
        cache.delete("contract:again")
        assert cache.get_or_add("contract:again", b"second", TTL).won

    # -- replace ------------------------------------------------------------------------

    def test_every_call_tells_the_same_handle(self, cache: Cache) -> None:
        """A handle from set or get_or_add is the one that get tells."""
        handle = cache.set("contract:handle", b"value", TTL)
        assert handle is None or handle == handle_of(cache, "contract:handle")
        assert handle_of(cache, "contract:handle") == handle_of(cache, "contract:handle")

    def test_replace_of_the_state_that_was_seen(self, cache: Cache) -> None:
        """An entry that nobody touched since is replaced, once."""
        for value in _TRAPS:
            cache.set("contract:replace", b"old", TTL)
            handle = handle_of(cache, "contract:replace")
            assert cache.replace("contract:replace", handle, value, TTL) is True
            assert got(cache, "contract:replace") == value
            assert cache.replace("contract:replace", handle, b"again", TTL) is False
            assert got(cache, "contract:replace") == value

    def test_replace_of_an_empty_value(self, cache: Cache) -> None:
        """An empty entry has a handle like any other."""
        cache.set("contract:empty", b"", TTL)
        assert cache.replace("contract:empty", handle_of(cache, "contract:empty"), b"new", TTL)
        assert got(cache, "contract:empty") == b"new"

    def test_replace_of_what_one_added(self, cache: Cache) -> None:
        """Whoever won with get_or_add can replace that entry, and the loser cannot."""
        found = cache.get_or_add("contract:lease", b"lease", TTL)
        handle = found.handle
        if handle is None:
            handle = handle_of(cache, "contract:lease")
        assert cache.replace("contract:lease", handle, b"value", TTL) is True
        assert got(cache, "contract:lease") == b"value"

    def test_replace_meets_another_value(self, cache: Cache) -> None:
        """An entry that another one has set since is not replaced."""
        cache.set("contract:late", b"old", TTL)
        handle = handle_of(cache, "contract:late")
        cache.set("contract:late", b"newer", TTL)
        assert cache.replace("contract:late", handle, b"late", TTL) is False
        assert got(cache, "contract:late") == b"newer"

    def test_replace_meets_nothing(self, cache: Cache) -> None:
        """An entry that is gone is not made again."""
        cache.set("contract:gone", b"old", TTL)
        handle = handle_of(cache, "contract:gone")
        cache.delete("contract:gone")
        assert cache.replace("contract:gone", handle, b"late", TTL) is False
        assert cache.get("contract:gone") is None

    def test_replace_meets_what_came_after_it_was_gone(self, cache: Cache) -> None:
        """A handle does not fit the entry that took the place of the one it was for."""
        cache.set("contract:reborn", b"old", TTL)
        handle = handle_of(cache, "contract:reborn")
        cache.delete("contract:reborn")
        cache.set("contract:reborn", b"new", TTL)
        assert cache.replace("contract:reborn", handle, b"late", TTL) is False
        assert got(cache, "contract:reborn") == b"new"

    def test_a_handle_is_for_one_key(self, cache: Cache) -> None:
        """A handle of one key does not fit another key's entry."""
        cache.set("contract:one", b"one", TTL)
        cache.set("contract:two", b"two", TTL)
        handle = handle_of(cache, "contract:one")
        assert cache.replace("contract:two", handle, b"mixed up", TTL) is False
        assert got(cache, "contract:two") == b"two"

    # -- time ---------------------------------------------------------------------------

    def test_entries_expire(self, cache: Cache) -> None:
        """An entry ends with its ttl, whichever call put it there, and frees its key."""
        cache.set("contract:expire:replaced", b"value", TTL)
        handle = handle_of(cache, "contract:expire:replaced")
        cache.set("contract:expire:set", b"value", 0.2)
        cache.get_or_add("contract:expire:added", b"value", 0.2)
        cache.replace("contract:expire:replaced", handle, b"value", 0.2)
        cache.set("contract:expire:stays", b"value", TTL)
        handle = handle_of(cache, "contract:expire:stays")
        self.pass_time(self.shortest_ttl)
        for key in ("set", "added", "replaced"):
            wait_until_gone(cache, f"contract:expire:{key}")
            assert cache.get_or_add(f"contract:expire:{key}", b"next", TTL).won
        assert handle_of(cache, "contract:expire:stays") == handle

    def test_a_long_ttl(self, cache: Cache) -> None:
        """A ttl of 29, 31 or 400 days, or a thousand years, is no ttl in the past."""
        for days in (29, 31, 400, 365_000):
            cache.set(f"contract:long:{days}", b"value", days * _DAY)
            assert got(cache, f"contract:long:{days}") == b"value"
            cache.get_or_add(f"contract:long:add:{days}", b"value", days * _DAY)
            handle = handle_of(cache, f"contract:long:add:{days}")
            assert cache.replace(f"contract:long:add:{days}", handle, b"value", days * _DAY)
            assert got(cache, f"contract:long:add:{days}") == b"value"

    # -- threads ------------------------------------------------------------------------

    def test_one_of_many_threads_adds(self, cache: Cache) -> None:
        """Of eight threads that add under one key at once, one wins, for every key."""
        keys = [f"contract:race:add:{number}" for number in range(25)]

        def add(thread: int) -> list[bool]:
            return [cache.get_or_add(key, b"%d" % thread, TTL).won for key in keys]

        outcomes = at_once(8, add)
        assert [sum(wins) for wins in zip(*outcomes, strict=True)] == [1] * len(keys)

    def test_one_of_many_threads_replaces(self, cache: Cache) -> None:
        """Of eight threads with one handle, one replaces the entry and the rest are told."""
        keys = [f"contract:race:replace:{number}" for number in range(25)]
        for key in keys:
            cache.set(key, b"old", TTL)
        handles = [handle_of(cache, key) for key in keys]

        def replace(thread: int) -> list[bool]:
            return [
                cache.replace(key, handle, b"%d" % thread, TTL)
                for key, handle in zip(keys, handles, strict=True)
            ]

        outcomes = at_once(8, replace)
        assert [sum(wins) for wins in zip(*outcomes, strict=True)] == [1] * len(keys)
        for key, wins in zip(keys, zip(*outcomes, strict=True), strict=True):
            assert got(cache, key) == b"%d" % wins.index(True)

    def test_threads_get_their_own_answers(self, cache: Cache) -> None:
        """Of sixteen threads that read and write, each gets what is under its own key."""

        def work(thread: int) -> int:
            right = 0
            for number in range(40):
                key = f"contract:own:{thread}:{number % 5}"
                value = b"%d:%d" % (thread, number) * (1 + number * 13 % 700)
                cache.set(key, value, TTL)
                right += got(cache, key) == value
            return right

        assert at_once(16, work) == [40] * 16


def got(cache: Cache, key: str) -> bytes | None:
    """The value under *key*."""
    entry = cache.get(key)
    return None if entry is None else entry.value


def handle_of(cache: Cache, key: str) -> Handle:
    """The handle of the entry that is there."""
    entry = cache.get(key)
    assert entry is not None, f"there is no entry under {key}"
    return entry.handle


def wait_until_gone(cache: Cache, key: str) -> None:
    """Ask again and again until there is no entry, for ten seconds at most."""
    pause = threading.Event()
    deadline = time.monotonic() + _PATIENCE
    while cache.get(key) is not None:
        assert time.monotonic() < deadline, f"{key} did not expire"
        pause.wait(0.02)


def at_once(count: int, function: Callable[[int], T]) -> list[T]:
    """What *function* of 0, 1, ... returns in *count* threads that start together."""
    barrier = threading.Barrier(count)

    def run(number: int) -> T:
        barrier.wait(10)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
