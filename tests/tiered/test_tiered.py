"""The tiered store: what each call costs, and what failing tiers cost the visitor."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tieredsession import events
from tieredsession.contracts import Found, Record, SessionStore
from tieredsession.errors import CacheError, CacheTimeout, Conflict, Gone, StoreUnavailable
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.breaker import MAX_REMEMBERED
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.stores.memory_cache import MemoryCache
from tieredsession.stores.sqlite import SQLiteSessionStore
from tieredsession.stores.tiered import VALUE_TTL, TieredSessionStore
from tieredsession.testing import Chaos, FakeClock, PrincipalContract, StoreContract

NOW = 1_800_000_000.0
RECORD = Record(b"one", NOW + 86_400, NOW)
OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")


class Tiers:
    """A cache and a durable store that processes share; each tier's calls can be made to fail."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = MemoryCache(clock=self.clock)
        self.durable = MemorySessionStore.from_options(OPTIONS)
        self.events: list[events.Event] = []

    def process(self, error: Callable[[str], Exception] = CacheError) -> Process:
        return Process(self, error)

    @property
    def cached(self) -> list[bytes]:
        return [entry.value for entry, _ in self.memory._slots.values()]


class Process:
    """One process's own way to the tiers."""

    def __init__(
        self,
        tiers: Tiers,
        error: Callable[[str], Exception] = CacheError,
        observed: bool = True,
    ) -> None:
        self.to_cache = Chaos(error)
        self.to_durable = Chaos()
        self.store = TieredSessionStore(
            self.to_cache.wrap(tiers.memory),
            self.to_durable.wrap(tiers.durable),
            OPTIONS.ids,
            OPTIONS.record_envelope,
            tiers.events.append if observed else None,
            clock=tiers.clock,
        )

    def calls(self) -> tuple[int, int]:
        """Calls to the cache and to the durable store since last asked."""
        counted = len(self.to_cache.calls), len(self.to_durable.calls)
        self.to_cache.calls.clear()
        self.to_durable.calls.clear()
        return counted

    def payload(self, token: str, now: float = NOW) -> bytes | None:
        record = self.store.load(token, now)
        return None if record is None else record.payload


@pytest.fixture
def tiers() -> Tiers:
    return Tiers()


@pytest.fixture
def process(tiers: Tiers) -> Process:
    return tiers.process()


class TestTieredOverMemory(StoreContract, PrincipalContract):
    @pytest.fixture
    def store(self, process: Process) -> TieredSessionStore:
        return process.store


class TestTieredOverSQLite(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[TieredSessionStore]:
        durable = SQLiteSessionStore(
            tmp_path / "s.sqlite3", OPTIONS.ids, OPTIONS.record_envelope, synchronous="normal"
        )
        yield TieredSessionStore(MemoryCache(), durable, OPTIONS.ids, OPTIONS.record_envelope)
        durable.close()


class TestTieredWithADeadCache(StoreContract):
    """A cache that never answers takes no promise away."""

    @pytest.fixture
    def store(self, process: Process) -> TieredSessionStore:
        process.to_cache.down()
        return process.store


# -- what each call costs -------------------------------------------------------------


def test_what_each_request_costs(process: Process, tiers: Tiers) -> None:
    """Cache and durable calls are those of the table in the design, request by request."""
    saved = process.store.create(RECORD, NOW)
    assert process.calls() == (1, 1)
    process.store.load(saved.token, NOW)
    assert process.calls() == (1, 0)
    saved = process.store.update(saved.token, RECORD._replace(version=saved.version), NOW)
    assert process.calls() == (2, 1)
    process.store.load(saved.token, NOW)
    assert process.calls() == (1, 0)
    tiers.memory._empty()
    process.store.load(saved.token, NOW)
    assert process.calls() == (2, 1)
    process.store.load(saved.token, NOW)
    assert process.calls() == (1, 0)
    process.store.delete(saved.token, NOW, saved.version)
    assert process.calls() == (2, 1)


@pytest.mark.parametrize("token", ["A" * 32, "no token", ""])
def test_a_forged_id_costs_no_call(process: Process, tiers: Tiers, token: str) -> None:
    """A forged or malformed id reaches neither tier."""
    assert process.store.load(token, NOW) is None
    process.store.delete(token, NOW)
    with pytest.raises(Gone):
        process.store.update(token, RECORD, NOW)
    assert tiers.memory._slots == {}


def test_an_entry_dies_with_its_session(process: Process, tiers: Tiers) -> None:
    """No cache entry outlives its session, nor the bound on staleness."""
    for life in (100.0, 86_400.0):
        process.store.create(RECORD._replace(expires=NOW + life), NOW)
    ends = [expires - tiers.clock() for _, expires in tiers.memory._slots.values()]
    assert 90 <= ends[0] <= 100
    assert VALUE_TTL * 0.9 <= ends[1] <= VALUE_TTL


def test_entries_of_one_moment_end_apart(process: Process, tiers: Tiers) -> None:
    """What was cached at the same moment is not looked up again all at once."""
    for _ in range(20):
        process.store.create(RECORD, NOW)
    assert len({expires for _, expires in tiers.memory._slots.values()}) > 10


def test_a_value_too_large_for_the_cache(process: Process, tiers: Tiers) -> None:
    """What the cache cannot take is kept in the durable store, and the old entry goes."""
    saved = process.store.create(RECORD, NOW)
    large = RECORD._replace(payload=bytes(tiers.memory.max_value), version=saved.version)
    process.store.update(saved.token, large, NOW)
    assert not any(value[:1] == b"V" for value in tiers.cached)
    assert process.payload(saved.token) == large.payload
    assert process.payload(saved.token) == large.payload


# -- entries that are not to be believed ----------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: b"V" + bytes(40),
        lambda value: value[:-1] + bytes([value[-1] ^ 1]),
        lambda value: value[:8] + b"\x09" + value[9:],
        lambda value: b"garbage",
        lambda value: b"V",
    ],
    ids=["invented", "changed", "another version", "garbage", "cut"],
)
def test_a_forged_entry_is_not_believed(
    process: Process, tiers: Tiers, spoil: Callable[[bytes], bytes]
) -> None:
    """An entry that this site did not seal is passed over for the durable store."""
    saved = process.store.create(RECORD, NOW)
    (key,) = tiers.memory._slots
    tiers.memory.set(key, spoil(tiers.cached[0]), 600)
    assert process.payload(saved.token) == b"one"


def test_a_forged_value_is_repaired(process: Process, tiers: Tiers) -> None:
    """After a forged value was passed over once, the cache answers again."""
    saved = process.store.create(RECORD, NOW)
    (key,) = tiers.memory._slots
    tiers.memory.set(key, b"V" + bytes(60), 600)
    process.payload(saved.token)
    process.calls()
    assert process.payload(saved.token) == b"one"
    assert process.calls() == (1, 0)
    assert any(isinstance(event, events.CacheRefused) for event in tiers.events)


def test_a_swapped_entry_is_not_believed(process: Process, tiers: Tiers) -> None:
    """The entry of one session put in the place of another's opens nothing."""
    mine = process.store.create(RECORD, NOW)
    process.store.create(RECORD._replace(payload=b"other"), NOW)
    my_key, other_key = tiers.memory._slots
    entry = tiers.memory.get(other_key)
    assert entry is not None
    tiers.memory.set(my_key, entry.value, 600)
    assert process.payload(mine.token) == b"one"


def test_an_entry_that_was_put_back(process: Process, tiers: Tiers) -> None:
    """An entry of a session that has ended since is not believed past the bound on staleness."""
    saved = process.store.create(RECORD, NOW)
    (key,) = tiers.memory._slots
    (old,) = tiers.cached
    process.store.delete(saved.token, NOW, saved.version)
    tiers.memory.set(key, old, 600)
    later = NOW + VALUE_TTL + 300
    assert process.payload(saved.token, later) == b"one"  # nobody can tell it from a live one
    assert process.payload(saved.token, later + 1) is None
    assert [e.reason for e in tiers.events if isinstance(e, events.CacheRefused)] == ["expired"]


def test_a_record_from_the_durable_store_is_no_entry(process: Process, tiers: Tiers) -> None:
    """The durable store's bytes, read from the middle as an entry, say nothing to anybody."""
    envelope = OPTIONS.record_envelope
    inner = envelope.seal(RECORD._replace(payload=b"I am root"))[:-16]
    begin = len(envelope.seal(RECORD._replace(payload=b""))) - 16
    # What a visitor typed in begins where a version and a time would end.
    outer = RECORD._replace(payload=b"." * (12 - begin) + inner)
    saved = process.store.create(outer, NOW)
    (key,) = tiers.memory._slots
    tiers.memory.set(key, b"V" + envelope.seal(outer, key.encode()), 600)
    assert process.payload(saved.token) == outer.payload


# -- the cache fails ------------------------------------------------------------------


def test_a_write_during_an_outage_is_seen_after_it(process: Process) -> None:
    """What was written while the cache was away is read when it is back, not the old value."""
    saved = process.store.create(RECORD, NOW)
    process.to_cache.down()
    new = RECORD._replace(payload=b"two", version=saved.version)
    process.store.update(saved.token, new, NOW)
    assert process.payload(saved.token) == b"two"
    process.to_cache.up()
    assert process.payload(saved.token) == b"two"


def test_a_logout_during_an_outage_is_final(process: Process, tiers: Tiers) -> None:
    """A session that was ended while the cache was away stays dead when it is back."""
    saved = process.store.create(RECORD, NOW)
    process.to_cache.down()
    process.store.delete(saved.token, NOW, saved.version)
    process.to_cache.up()
    tiers.clock.advance(60)
    for _ in range(3):
        assert process.payload(saved.token) is None


def test_a_new_session_that_may_reach_the_cache_late(tiers: Tiers) -> None:
    """A new session's entry that timed out, and may overtake later ones, is marked first of all."""
    process = tiers.process(CacheTimeout)
    process.to_cache.fail("set")
    saved = process.store.create(RECORD, NOW)
    tiers.clock.advance(60)
    assert process.payload(saved.token) == b"one"
    assert [value[:1] for value in tiers.cached] == [b"L"]


def test_a_logout_that_missed_the_cache_once(process: Process, tiers: Tiers) -> None:
    """A logout of which one call got lost is made good with the next call, of any session."""
    saved, another = process.store.create(RECORD, NOW), process.store.create(RECORD, NOW)
    reader = tiers.process()

    def forget_the_lock_and_read() -> None:
        tiers.memory._empty()
        assert reader.payload(saved.token) == b"one"

    process.to_durable.before("delete", forget_the_lock_and_read)
    process.to_cache.before("set", lambda: None)
    process.to_cache.fail("set")
    process.store.delete(saved.token, NOW, saved.version)
    process.payload(another.token)
    assert reader.payload(saved.token) is None


def test_everything_missed_is_made_good_first(process: Process, tiers: Tiers) -> None:
    """Before a cache is trusted again, every entry that it could not be told of is marked."""
    saved = [process.store.create(RECORD, NOW) for _ in range(20)]
    process.to_cache.down()
    for one in saved:
        process.store.update(one.token, Record(b"two", NOW + 86_400, NOW, None, 1), NOW)
    process.to_cache.up()
    tiers.clock.advance(60)
    assert process.payload(saved[0].token) == b"two"
    other = tiers.process()
    assert [other.payload(one.token) for one in saved] == [b"two"] * 20


@pytest.mark.parametrize("ahead", [0, 50], ids=["in step", "a clock ahead"])
def test_more_missed_than_can_be_remembered(tiers: Tiers, ahead: float) -> None:
    """After an outage with very many writes, all that is older than it is doubted."""
    process = tiers.process(CacheTimeout)
    published = NOW + 60 + ahead if ahead else NOW  # by another process
    saved = [process.store.create(RECORD, published) for _ in range(MAX_REMEMBERED + 5)]
    process.to_cache.down()
    for one in saved:
        process.store.update(one.token, Record(b"two", NOW + 86_400, NOW, None, 1), NOW)
    process.to_cache.up()
    tiers.clock.advance(60)
    assert [process.payload(one.token, NOW + 60) for one in saved] == [b"two"] * len(saved)
    refused = [e.reason for e in tiers.events if isinstance(e, events.CacheRefused)]
    assert "distrusted" in refused


def test_new_sessions_of_an_outage_need_no_mark(tiers: Tiers) -> None:
    """However many sessions begin during an outage, each that ended in it is marked afterwards."""
    process, other = tiers.process(CacheTimeout), tiers.process()
    saved = process.store.create(RECORD, NOW)
    process.to_cache.down()
    for _ in range(MAX_REMEMBERED + 5):
        process.store.create(RECORD, NOW)
    process.store.delete(saved.token, NOW, saved.version)
    process.to_cache.up()
    tiers.clock.advance(60)
    process.payload(saved.token)
    assert other.payload(saved.token) is None
    assert not any(isinstance(event, events.CacheRefused) for event in tiers.events)


def test_what_a_clock_ahead_has_published_is_doubted(tiers: Tiers) -> None:
    """Values older than such an outage are doubted, too, if a clock 300 s ahead has dated them."""
    process, other = tiers.process(CacheTimeout), tiers.process()
    saved = [other.store.create(RECORD, NOW + 300) for _ in range(MAX_REMEMBERED + 5)]
    process.to_cache.down()
    for one in saved:
        process.store.delete(one.token, NOW, one.version)
    process.to_cache.up()
    tiers.clock.advance(60)
    assert [process.payload(one.token, NOW + 60) for one in saved] == [None] * len(saved)


def test_the_bound_across_processes(tiers: Tiers) -> None:
    """Another process may see the old value until the writer is back, or for VALUE_TTL."""
    writer, reader = tiers.process(), tiers.process()
    one, two = writer.store.create(RECORD, NOW), writer.store.create(RECORD, NOW)
    writer.to_cache.down()
    for saved in (one, two):
        writer.store.update(saved.token, Record(b"new", NOW + 86_400, NOW, None, 1), NOW)
    assert reader.payload(one.token) == b"one"  # the writer could not tell anybody
    tiers.clock.advance(VALUE_TTL)
    assert reader.payload(one.token) == b"new"

    tiers.clock.advance(-VALUE_TTL)
    assert reader.payload(two.token) == b"one"
    writer.to_cache.up()
    tiers.clock.advance(60)
    writer.payload(one.token)  # whatever it does next, it first makes good what it missed
    assert reader.payload(two.token) == b"new"


def test_a_silent_cache_is_found_out_once(tiers: Tiers) -> None:
    """After one time-out nobody waits again, but for one probe after each longer pause."""
    process = tiers.process(CacheTimeout)
    saved = process.store.create(RECORD, NOW)
    process.to_cache.down()
    process.calls()
    for _ in range(50):
        assert process.payload(saved.token) == b"one"
    assert process.calls() == (1, 50)
    asked = 0
    for _ in range(600):
        tiers.clock.advance(0.1)
        process.payload(saved.token)
        asked += process.calls()[0]
    assert 3 <= asked <= 8  # pauses of 1, 2, 4, 8, 16, 30 seconds, give or take a fifth


def test_a_refusal_is_tried_once_more(process: Process) -> None:
    """A failure that costs no time does not open the breaker by itself."""
    saved = process.store.create(RECORD, NOW)
    process.to_cache.fail("get_or_add")
    process.payload(saved.token)
    process.calls()
    assert process.payload(saved.token) == b"one"
    assert process.calls() == (1, 0)


def test_failures_with_an_answer_between(process: Process, tiers: Tiers) -> None:
    """A cache that fails now and then, and answers in between, stays in use."""
    saved = process.store.create(RECORD, NOW)
    for _ in range(3):
        process.to_cache.fail("get_or_add")
        assert process.payload(saved.token) == b"one"
        assert process.payload(saved.token) == b"one"
    assert events.BreakerOpened not in map(type, tiers.events)


def test_breaker_events(tiers: Tiers) -> None:
    """The operator is told when a cache is left alone, and when it is in use again."""
    process = tiers.process(CacheTimeout)
    saved = process.store.create(RECORD, NOW)
    process.to_cache.down()
    process.store.update(saved.token, RECORD._replace(version=1), NOW)
    process.to_cache.up()
    tiers.clock.advance(2)
    process.payload(saved.token)
    told = [type(event).__name__ for event in tiers.events]
    assert [name for name in told if name.startswith("Breaker")] == [
        "BreakerOpened",
        "BreakerClosed",
    ]
    closed = next(event for event in tiers.events if isinstance(event, events.BreakerClosed))
    assert closed.marked == 1


def test_unwatched_outages_are_logged(tiers: Tiers, caplog: pytest.LogCaptureFixture) -> None:
    """Without an observer, the log tells the operator what the visitor does not notice."""
    caplog.set_level("INFO", "tieredsession")
    process = Process(tiers, CacheTimeout, observed=False)
    saved = process.store.create(RECORD, NOW)
    assert process.payload(saved.token) == b"one"
    assert not caplog.records
    process.to_cache.down()
    assert process.payload(saved.token) == b"one"
    process.to_cache.up()
    tiers.clock.advance(2)
    assert process.payload(saved.token) == b"one"
    (key,) = tiers.memory._slots
    tiers.memory.set(key, b"V" + bytes(60), 600)
    assert process.payload(saved.token) == b"one"
    told = [(record.levelname, record.getMessage().split()[0]) for record in caplog.records]
    assert told == [
        ("WARNING", "CacheFailed"),
        ("WARNING", "BreakerOpened"),
        ("INFO", "BreakerClosed"),
        ("WARNING", "CacheRefused"),
    ]


def test_a_probe_that_fails_keeps_what_was_missed(tiers: Tiers) -> None:
    """What could not be made good at the first probe is made good at a later one."""
    process = tiers.process(CacheTimeout)
    saved = process.store.create(RECORD, NOW)
    process.to_cache.down()
    process.store.update(saved.token, Record(b"two", NOW + 86_400, NOW, None, 1), NOW)
    process.to_cache.up()
    process.to_cache.fail("set")
    tiers.clock.advance(2)
    assert process.payload(saved.token) == b"two"  # the probe answered, the marking failed
    tiers.clock.advance(10)
    assert process.payload(saved.token) == b"two"
    assert tiers.process().payload(saved.token) == b"two"


def test_a_strict_logout_fails_while_the_cache_cannot_be_told(tiers: Tiers) -> None:
    """With strict_delete, a logout is acknowledged if no other can see the session any more."""
    to_cache = Chaos(CacheError)
    store = TieredSessionStore(
        to_cache.wrap(tiers.memory),
        tiers.durable,
        OPTIONS.ids,
        OPTIONS.record_envelope,
        strict_delete=True,
        clock=tiers.clock,
    )
    told = store.create(RECORD, NOW)
    store.delete(told.token, NOW, told.version)
    saved = store.create(RECORD, NOW)
    to_cache.down()
    with pytest.raises(StoreUnavailable, match="cache could not be told"):
        store.delete(saved.token, NOW, saved.version)
    assert tiers.durable.load(saved.token, NOW) is None


# -- the durable store fails ----------------------------------------------------------


def test_a_warm_read_needs_no_durable_store(process: Process) -> None:
    """While the durable store is away, what is cached is read."""
    saved = process.store.create(RECORD, NOW)
    process.to_durable.down()
    assert process.payload(saved.token) == b"one"


def test_a_cold_read_without_the_durable_store(process: Process, tiers: Tiers) -> None:
    """While the durable store is away, what is not cached is unknown, not empty."""
    saved = process.store.create(RECORD, NOW)
    tiers.memory._empty()
    process.to_durable.down()
    with pytest.raises(StoreUnavailable):
        process.store.load(saved.token, NOW)


@pytest.mark.parametrize("fault", ["fail", "lose_reply"])
def test_what_was_not_acknowledged_is_not_shown(process: Process, fault: str) -> None:
    """After a failed commit the durable store is asked, whatever the commit came to."""
    saved = process.store.create(RECORD, NOW)
    getattr(process.to_durable, fault)("update")
    with pytest.raises(StoreUnavailable):
        process.store.update(saved.token, Record(b"two", NOW + 86_400, NOW, None, 1), NOW)
    assert process.payload(saved.token) == (b"one" if fault == "fail" else b"two")


@pytest.mark.parametrize("fault", ["fail", "lose_reply"])
def test_a_logout_that_fails_says_so(process: Process, fault: str) -> None:
    """A deletion that the durable store did not acknowledge raises."""
    saved = process.store.create(RECORD, NOW)
    getattr(process.to_durable, fault)("delete")
    with pytest.raises(StoreUnavailable):
        process.store.delete(saved.token, NOW, saved.version)
    assert (process.payload(saved.token) is None) == (fault == "lose_reply")


def test_cache_events_name_the_session(process: Process, tiers: Tiers) -> None:
    """Whatever is told of the cache names the session whose entry it is."""
    saved = process.store.create(RECORD, NOW)
    process.payload(saved.token)
    tiers.memory._empty()
    process.payload(saved.token)
    label = process.store.label(saved.token)
    assert tiers.events == [
        events.CacheHit(session=label),
        events.CacheMiss(session=label),
        events.CacheFilled(session=label),
    ]


# -- many at once ---------------------------------------------------------------------


class Gate(MemoryCache):
    """Says when somebody has been to the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = threading.Semaphore(0)

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        found = super().get_or_add(key, value, ttl)
        self.passed.release()
        return found


class GateOfTwoCalls(Gate):
    """Does not tell the handle of what it has added, as memcached's text commands."""

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        found = super().get_or_add(key, value, ttl)
        return found._replace(handle=None) if found.won else found


class GateOfTheServer(Gate):
    """Makes the entry of a lease by itself, and empty, as memcached's meta commands."""

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        return super().get_or_add(key, b"", ttl)


GATES = pytest.mark.parametrize("gate_of", [Gate, GateOfTwoCalls, GateOfTheServer])


@GATES
def test_many_misses_make_one_lookup(gate_of: type[Gate]) -> None:
    """Threads that miss one session at once share one lookup, and its answer."""
    gate, chaos = gate_of(), Chaos()
    durable = MemorySessionStore.from_options(OPTIONS)
    token = durable.create(RECORD, NOW).token
    store = TieredSessionStore(gate, chaos.wrap(durable), OPTIONS.ids, OPTIONS.record_envelope)
    threads = 12

    def wait_for_all() -> None:
        for _ in range(threads):
            assert gate.passed.acquire(timeout=20)

    chaos.before("load", wait_for_all)
    with ThreadPoolExecutor(threads) as pool:
        records = list(pool.map(lambda _: store.load(token, NOW), range(threads)))
    assert records == [RECORD._replace(version=1)] * threads
    assert chaos.calls.count("load") == 1


class Overtaken(MemorySessionStore):
    """Has something happen between the first look at a record and its answer."""

    meanwhile: Callable[[], object] | None = None

    def load(self, token: str, now: float) -> Record | None:
        record = super().load(token, now)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return record


@GATES
def test_a_lookup_is_not_shared_with_who_comes_after_a_write(gate_of: type[Gate]) -> None:
    """A request that begins after a save sees it, though an older lookup is under way."""
    cache, chaos = gate_of(), Chaos(CacheError)
    durable = Overtaken(OPTIONS.ids)
    saved = durable.create(RECORD, NOW)
    store, elsewhere = (
        TieredSessionStore(tier, durable, OPTIONS.ids, OPTIONS.record_envelope)
        for tier in (cache, chaos.wrap(cache))
    )
    new = RECORD._replace(payload=b"two", version=saved.version)

    def save_and_look() -> None:
        chaos.fail("replace", 2)  # so that the LOCK stays where it is
        elsewhere.update(saved.token, new, NOW)
        after = pool.submit(store.load, saved.token, NOW).result(20)
        assert after == new._replace(version=2)

    durable.meanwhile = save_and_look
    with ThreadPoolExecutor(1) as pool:
        assert store.load(saved.token, NOW) == RECORD._replace(version=saved.version)
    assert store.load(saved.token, NOW) == new._replace(version=2)


def test_many_misses_of_a_store_that_fails() -> None:
    """Threads that share a lookup share its failure: none sees an empty session."""
    gate, chaos = Gate(), Chaos()
    durable = MemorySessionStore.from_options(OPTIONS)
    token = durable.create(RECORD, NOW).token
    store = TieredSessionStore(gate, chaos.wrap(durable), OPTIONS.ids, OPTIONS.record_envelope)

    def wait_and_fail() -> None:
        for _ in range(4):
            assert gate.passed.acquire(timeout=20)
        raise StoreUnavailable("made to fail")

    def load(_: int) -> str:
        try:
            return repr(store.load(token, NOW))
        except StoreUnavailable:
            return "unavailable"

    chaos.before("load", wait_and_fail)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(4))) == ["unavailable"] * 4


def test_a_shared_answer_is_not_kept(process: Process, tiers: Tiers) -> None:
    """What a lookup has answered is for those who waited for it, and not for a later request."""
    saved = process.store.create(RECORD._replace(expires=NOW + 5), NOW)
    tiers.memory._empty()
    process.to_cache.fail("replace")  # so that the lease stays where it is
    assert process.payload(saved.token) == b"one"
    assert process.payload(saved.token, NOW + 5) is None


def test_an_observer_that_reads_the_session() -> None:
    """An observer that is told of a lookup and reads that session itself does not hang."""
    told: list[events.Event] = []

    def observe(event: events.Event) -> None:
        told.append(event)
        if len(told) == 1:
            assert store.load(token, NOW) is None

    options = replace(OPTIONS, observer=observe)
    durable = MemorySessionStore.from_options(options)
    token = durable.create(RECORD._replace(expires=NOW - 1), NOW).token
    store = TieredSessionStore(MemoryCache(), durable, options.ids, options.record_envelope)
    thread = threading.Thread(target=store.load, args=(token, NOW), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


# -- a fork while other threads are at work ---------------------------------------------


class Served(MemoryCache):
    """A cache that a fork leaves as it is, as one on a server would be."""

    def _empty(self) -> None:
        if not hasattr(self, "_slots"):
            super()._empty()


def in_a_child(
    during: Chaos, method: str, work: Callable[[], object], check: Callable[[], bool]
) -> None:
    """Fork while another thread is at *work*, inside *method*; then *check* in the child."""
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        go_on.wait(20)

    during.before(method, hold)
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    ended = os.waitpid(child, 0)[1]
    go_on.set()
    thread.join()
    assert ended == 0


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
many_threads = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@forks
@many_threads
def test_a_fork_during_a_lookup(tiers: Tiers) -> None:
    """A child looks up by itself what a thread of its parent was looking up, and does not hang."""
    tiers.memory = Served()
    process = tiers.process()
    token = tiers.durable.create(RECORD, NOW).token
    work = partial(process.store.load, token, NOW)
    in_a_child(process.to_durable, "load", work, lambda: process.payload(token) == b"one")


@forks
@many_threads
def test_a_fork_during_a_probe(tiers: Tiers) -> None:
    """A child finds out by itself whether the cache is back, and uses it."""
    tiers.memory = Served(clock=tiers.clock)
    process = tiers.process(CacheTimeout)
    token = process.store.create(RECORD, NOW).token
    process.to_cache.fail("get_or_add")
    process.store.load(token, NOW)
    tiers.clock.advance(60)

    def is_used() -> bool:
        process.payload(token)
        process.calls()
        process.payload(token)
        return process.calls() == (1, 0)

    in_a_child(process.to_cache, "get", partial(process.store.load, token, NOW), is_used)


@forks
@many_threads
def test_a_fork_inside_the_breaker(tiers: Tiers) -> None:
    """A child does not wait for a lock that a thread of its parent held."""
    tiers.memory = Served(clock=tiers.clock)
    to_cache, to_clock = Chaos(CacheTimeout), Chaos()
    store = TieredSessionStore(
        to_cache.wrap(tiers.memory),
        tiers.durable,
        OPTIONS.ids,
        OPTIONS.record_envelope,
        clock=lambda: to_clock.call("clock", tiers.clock),
    )
    token = store.create(RECORD, NOW).token
    to_cache.fail("get_or_add")
    work = partial(store.load, token, NOW)
    work()
    in_a_child(to_clock, "clock", work, lambda: work() == RECORD._replace(version=1))


# -- deleting without a version, and by principal -------------------------------------


def test_a_deletion_without_a_version_meets_a_writer(process: Process, tiers: Tiers) -> None:
    """A session that is saved by others while it is deleted is deleted all the same."""
    saved = process.store.create(RECORD, NOW)
    other = tiers.process()

    def save() -> None:
        record = tiers.durable.load(saved.token, NOW)
        assert record is not None
        other.store.update(saved.token, record, NOW)

    process.to_durable.before("delete", save)
    process.store.delete(saved.token, NOW)
    assert process.payload(saved.token) is None
    assert other.payload(saved.token) is None


def test_a_deletion_without_a_version_meets_another(process: Process, tiers: Tiers) -> None:
    """A session that others end while it is deleted is deleted, and that is no error."""
    saved = process.store.create(RECORD, NOW)
    other = tiers.process()
    process.to_durable.before("delete", lambda: other.store.delete(saved.token, NOW))
    process.store.delete(saved.token, NOW)
    assert process.payload(saved.token) is None


@GATES
def test_a_write_that_a_logout_has_overtaken(tiers: Tiers, gate_of: type[Gate]) -> None:
    """A late writer whose LOCK was forgotten shows nothing over the lease of a reader."""
    tiers.memory = gate_of()
    process, other = tiers.process(), tiers.process()
    saved = process.store.create(RECORD, NOW)

    def log_out_and_look() -> None:
        other.store.delete(saved.token, NOW)
        tiers.memory._empty()
        assert other.payload(saved.token) is None

    process.to_cache.before("replace", log_out_and_look)
    process.store.update(saved.token, RECORD._replace(version=saved.version), NOW)
    assert other.payload(saved.token) is None


def test_sessions_of_a_principal_end_in_both_tiers(process: Process, tiers: Tiers) -> None:
    """A session that is ended by its key is dead in the cache, too."""
    saved = process.store.create(RECORD._replace(principal="ann"), NOW)
    process.store.create(RECORD, NOW)
    assert process.store.principals
    (owned,) = process.store.sessions_of("ann", NOW)
    with pytest.raises(Conflict):
        process.store.end(owned.key, NOW, owned.record.version + 1)
    process.store.end(owned.key, NOW, owned.record.version)
    assert process.payload(saved.token) is None
    assert process.store.sessions_of("ann", NOW) == []


def test_a_store_without_an_index_says_so() -> None:
    """Over a store that keeps no index, the tiered store keeps none either."""

    class Plain:
        revocable = True

    durable: SessionStore = Plain()  # type: ignore[assignment]  # no call is made
    store = TieredSessionStore(MemoryCache(), durable, OPTIONS.ids, OPTIONS.record_envelope)
    assert not store.principals


# -- interruptions --------------------------------------------------------------------


class Interrupted(BaseException):
    """What ends a worker in the middle of a call: a signal, or a greenlet's time-out."""


def interrupt() -> None:
    raise Interrupted


def test_an_interrupted_probe_is_not_the_last(tiers: Tiers) -> None:
    """A probe that never came to its end does not keep the cache out of use for ever."""
    process = tiers.process(CacheTimeout)
    saved = process.store.create(RECORD, NOW)
    process.to_cache.fail("get_or_add")
    process.payload(saved.token)  # opens the breaker
    tiers.clock.advance(60)
    process.to_cache.before("get", interrupt)
    with pytest.raises(Interrupted):
        process.payload(saved.token)
    tiers.clock.advance(60)
    process.payload(saved.token)
    process.calls()
    assert process.payload(saved.token) == b"one"
    assert process.calls() == (1, 0)


def test_an_interruption_stays_in_its_own_thread() -> None:
    """Threads that share a lookup are told that it failed, not what ended its thread."""
    gate, chaos = Gate(), Chaos()
    durable = MemorySessionStore.from_options(OPTIONS)
    token = durable.create(RECORD, NOW).token
    store = TieredSessionStore(gate, chaos.wrap(durable), OPTIONS.ids, OPTIONS.record_envelope)

    def wait_and_interrupt() -> None:
        for _ in range(4):
            assert gate.passed.acquire(timeout=20)
        raise Interrupted

    def load(_: int) -> str:
        try:
            return repr(store.load(token, NOW))
        except BaseException as error:  # Interrupted is none of Exception
            return type(error).__name__

    chaos.before("load", wait_and_interrupt)
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(load, range(4))) == ["Interrupted"] + ["StoreUnavailable"] * 3
