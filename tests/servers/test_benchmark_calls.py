"""The benchmarks count the calls that reach the servers, and what these do there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pymemcache.client.base import Client
from redis import Redis

from benchmarks.calls import CACHE, CALLS, DELETES, READS, WRITES, metered
from benchmarks.servers import EMULATOR, Servers
from tieredsession.contracts import Record

if TYPE_CHECKING:
    import pytest
    from servers.conftest import Emulator, Memcached, RedisServer

NOW = 1_800_000_000.0


def test_each_command_to_memcached_counts_once(memcached: Memcached) -> None:
    """Reads, writes and deletions count one each, by text and by meta commands."""
    client = Client(memcached.address)

    def work() -> None:
        client.get("a")
        client.set("a", b"1", noreply=False)
        client.gets("a")
        client.delete("a", noreply=False)
        client.delete("b", noreply=False)
        client.raw_command(b"mg c v", b"\r\n")
        client.raw_command(b"ms c 1\r\n1", b"\r\n")

    with metered(Servers(memcached=memcached.authority)) as meters:
        assert meters.count(work)[CACHE] == 7
    client.close()


def test_a_script_counts_as_one_command(redis: RedisServer) -> None:
    """What a script does inside Redis is not counted beside its own call."""
    with (
        Redis.from_url(redis.url("")) as client,
        metered(Servers(redis=redis.authority)) as meters,
    ):
        client.ping()

        def work() -> None:
            client.set("a", 1)
            client.eval("redis.call('INCR', 'a') return redis.call('GET', 'a')", 0)

        assert meters.count(work)[CACHE] == 2


def test_calls_to_datastore_are_counted_with_their_entities(
    emulator: Emulator, open_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A creation, a change, a deletion and three looks count as such, and as calls."""
    with metered(Servers(datastore=emulator.host)) as meters:
        monkeypatch.setenv(EMULATOR, meters.servers["datastore"])
        store = open_store()

        def work() -> None:
            record = Record(b"1", NOW + 60, NOW)
            token = store.create(record, NOW).token
            for _ in range(3):
                read = store.load(token, NOW)
            store.update(token, read._replace(payload=b"2"), NOW)
            store.delete(token, NOW)

        counts = meters.count(work)
    assert [counts[what] for what in (READS, WRITES, DELETES, CALLS)] == [3, 2, 1, 6]
