"""Every order of events: the real tiered store, one call at a time, with faults.

Two or three clients, each a process of its own (a store object of its own), share one cache
and one durable store. Before every call of a tier a client stops, and a schedule decides
who goes on and what becomes of the call: it works, it fails and has no effect, it works and
its reply gets lost, the client crashes in place of it, or the cache forgets the session
first. All schedules of two clients with one fault are run, all of three without one or with
a fault where they are few, and many of three with one. Of schedules that lead to the same
state of everything, one is run to its end.

What is looked for:

- *stale*: a read that began after a write was acknowledged returned something older;
- *back*: a read returned something older than an earlier read had;
- *zombie*: after an acknowledged delete the session was read, or is in the durable store;
- *stuck*: when all is quiet, the cache holds what the durable store does not;
- *lost*: an acknowledged write is not in the durable store.

Each mechanism of the protocol is then taken out, and the search has to find the harm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeVar

import greenlet
import pytest

from tieredsession.contracts import Entry, Found, Handle, Record, Saved
from tieredsession.errors import CacheError, Conflict, Gone
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.stores.tiered import TieredSessionStore
from tieredsession.tokens import MAC_BYTES, SessionIds

T = TypeVar("T")

NOW = 1_800_000_000.0
OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
IDS = SessionIds(OPTIONS.keyring.authenticator("id", MAC_BYTES), random=bytes)
"""The session has the same id in every run, and so every run the same bytes in the cache."""
CACHE_FAULTS = ("fail", "lose", "crash", "evict")
STORE_FAULTS = ("crash",)


class Crash(BaseException):
    """A process dies between two calls."""


class Slots:
    """The shared cache: a dict whose entries have a state number."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, int]] = {}
        self.last = 0

    def put(self, key: str, value: bytes) -> int:
        self.last += 1
        self.entries[key] = (value, self.last)
        return self.last


class CacheClient:
    """One process's view of the cache, with the calls that its kind of server has."""

    max_value = 1 << 20

    def __init__(
        self, slots: Slots, kind: str, step: Callable[[str], str], trace: list[object]
    ) -> None:
        self._slots = slots
        self._kind = kind
        self._step = step
        self._trace = trace

    def server(self, key: str) -> str:
        return "cache"

    def get(self, key: str) -> Entry | None:
        return self._call(lambda: self._entry(key))

    def get_or_add(self, key: str, value: bytes, ttl: float) -> Found:
        if self._kind != "text":
            return self._call(lambda: self._get_or_add(key, value))
        entry = self.get(key)
        if entry is not None:
            return Found(entry.value, won=False, handle=entry.handle)
        found = self._call(lambda: self._get_or_add(key, value))
        return Found(None, found.won, None)

    def set(self, key: str, value: bytes, ttl: float) -> Handle | None:
        number = self._call(lambda: self._slots.put(key, value))
        return {"text": None, "meta": number, "redis": value}[self._kind]

    def replace(self, key: str, handle: Handle, value: bytes, ttl: float) -> bool:
        def act() -> bool:
            entry = self._entry(key)
            if entry is None or entry.handle != handle:
                return False
            self._slots.put(key, value)
            return True

        return self._call(act)

    def delete(self, key: str) -> None:
        raise AssertionError("the protocol never frees a slot")

    def _entry(self, key: str) -> Entry | None:
        if key not in self._slots.entries:
            return None
        value, number = self._slots.entries[key]
        return Entry(value, value if self._kind == "redis" else number)

    def _get_or_add(self, key: str, value: bytes) -> Found:
        entry = self._entry(key)
        if entry is not None:
            return Found(entry.value, won=False, handle=entry.handle)
        number = self._slots.put(key, b"" if self._kind == "meta" else value)
        return Found(None, won=True, handle=value if self._kind == "redis" else number)

    def _call(self, act: Callable[[], T]) -> T:
        outcome = self._step("cache")
        if outcome == "fail":
            self._trace.append(CacheError)
            raise CacheError("made to fail")
        if outcome == "evict":
            self._slots.entries.clear()
        answer = act()
        if outcome == "lose":
            self._trace.append(CacheError)
            raise CacheError("made to lose its reply")
        self._trace.append(answer)
        return answer


class DurableClient:
    """One process's view of the durable store."""

    revocable = True

    def __init__(
        self, store: MemorySessionStore, step: Callable[[str], str], trace: list[object]
    ) -> None:
        self._store = store
        self._step = step
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def stepped(*arguments: Any) -> Any:
            self._step("store")
            try:
                answer = method(*arguments)
            except (Conflict, Gone) as refusal:
                self._trace.append(getattr(refusal, "current", Gone))
                raise
            self._trace.append(answer)
            return answer

        return stepped


class Schedule:
    """A list of choices; runs out into zeros, and remembers how many there were each time."""

    def __init__(self, choices: list[int], pick: random.Random | None = None) -> None:
        self._choices = choices
        self._pick = pick
        self.taken: list[int] = []
        self.options: list[int] = []

    def choose(self, options: int) -> int:
        place = len(self.taken)
        if self._pick is not None:
            choice = self._pick.randrange(options)
        else:
            choice = self._choices[place] if place < len(self._choices) else 0
        self.taken.append(choice)
        self.options.append(options)
        return choice

    @property
    def is_new(self) -> bool:
        """Whether what is to be chosen next was not given."""
        return self._pick is None and len(self.taken) >= len(self._choices)

    def next(self) -> list[int] | None:
        """The choices of the schedule after this one, or ``None`` after the last."""
        for place in range(len(self.taken) - 1, -1, -1):
            if self.taken[place] + 1 < self.options[place]:
                return [*self.taken[:place], self.taken[place] + 1]
        return None


class World:
    """One run: clients, their tiers, and what was observed."""

    def __init__(
        self,
        schedule: Schedule,
        make: Callable[..., TieredSessionStore],
        kind: str,
        *,
        warm: bool,
        faults: int,
        durable: type[MemorySessionStore] = MemorySessionStore,
        visited: set[object] | None = None,
    ) -> None:
        self._schedule = schedule
        self._visited = visited
        self._make = make
        self._kind = kind
        self._faults = faults
        self.slots = Slots()
        self.store = durable(IDS)
        self.harm: set[str] = set()
        self.acknowledged = 1  # the newest version that a finished write has made
        self.seen = 1  # the newest version that a finished read has returned
        self.deleted = False  # whether a delete was acknowledged
        self._scheduler = greenlet.getcurrent()
        self._traces: list[list[object]] = []  # by client, all that it has been told
        saved = self.store.create(Record(b"1", NOW + 3600, NOW), NOW)
        self.token = saved.token
        self.base = self.store.load(self.token, NOW)
        if warm:
            self._client("warm", lambda tier: "ok", []).load(self.token, NOW)

    def _client(
        self, name: str, step: Callable[[str], str], trace: list[object]
    ) -> TieredSessionStore:
        cache = CacheClient(self.slots, self._kind, step, trace)
        durable: Any = DurableClient(self.store, step, trace)
        numbers = count()

        def token(size: int) -> bytes:
            return f"{name}{next(numbers)}".encode().ljust(size)

        return self._make(cache, durable, IDS, OPTIONS.record_envelope, random=token)

    def run(self, roles: str) -> None:
        """Let one client of each of *roles* (R, W, D) run to the end, in scheduled order."""
        clients = [greenlet.greenlet(self._program(role)) for role in roles]
        waiting = {client: str(client.switch()) for client in clients}
        # Clients of one role are alike: which of them begins makes no difference.
        alike = len(set(roles)) == 1
        while waiting:
            if self._was_here([client in waiting for client in clients]):
                for client in waiting:
                    client.throw()
                return
            alive = [client for client in clients if client in waiting]
            client = alive[self._schedule.choose(1 if alike else len(alive))]
            alike = False
            answer = client.switch(self._outcome(waiting[client]))
            if client.dead:
                del waiting[client]
            else:
                waiting[client] = str(answer)
        self._look_at_the_end()

    def _was_here(self, alive: list[bool]) -> bool:
        """Whether another schedule has led to the same state, from which the same follows.

        What a client does next depends on what it has been told and on nothing else.
        """
        if self._visited is None or not self._schedule.is_new:
            return False
        told = tuple(map(tuple, self._traces))
        shared = (
            tuple(self.slots.entries.items()),
            self.slots.last,
            self.store.load(self.token, NOW),
        )
        seen = self.acknowledged, self.seen, self.deleted, self._faults, frozenset(self.harm)
        state = (tuple(alive), told, shared, seen)
        if state in self._visited:
            return True
        self._visited.add(state)
        return False

    def _outcome(self, tier: str) -> str:
        if tier == "start" or not self._faults:
            return "ok"
        kinds = CACHE_FAULTS if tier == "cache" else STORE_FAULTS
        choice = self._schedule.choose(1 + len(kinds))
        if choice == 0:
            return "ok"
        self._faults -= 1
        return kinds[choice - 1]

    def _step(self, tier: str) -> str:
        outcome = str(self._scheduler.switch(tier))
        if outcome == "crash":
            raise Crash
        return outcome

    def _program(self, role: str) -> Callable[[], None]:
        trace: list[object] = []
        client = self._client(f"{len(self._traces)}:", self._step, trace)
        self._traces.append(trace)
        work = {"R": self._read, "W": self._write, "D": self._delete}[role]

        def program() -> None:
            self._step("start")
            trace.append((self.acknowledged, self.seen, self.deleted))
            try:
                work(client)
            except Crash:
                return

        return program

    def _read(self, client: TieredSessionStore) -> None:
        acknowledged, seen, deleted = self.acknowledged, self.seen, self.deleted
        record = client.load(self.token, NOW)
        if record is None:
            return
        if record.version < acknowledged:
            self.harm.add("stale")
        if record.version < seen:
            self.harm.add("back")
        if deleted:
            self.harm.add("zombie")
        self.seen = max(self.seen, record.version)

    def _write(self, client: TieredSessionStore) -> None:
        record = self.base
        assert record is not None
        while True:
            try:
                new = record._replace(payload=record.payload + b"+")
                saved = client.update(self.token, new, NOW)
            except Conflict as conflict:
                record = conflict.current
                continue
            except Gone:
                return
            self.acknowledged = max(self.acknowledged, saved.version)
            self.seen = max(self.seen, saved.version)
            return

    def _delete(self, client: TieredSessionStore) -> None:
        record = self.base
        assert record is not None
        while True:
            try:
                client.delete(self.token, NOW, record.version)
            except Conflict as conflict:
                record = conflict.current
                continue
            except Gone:
                return
            self.deleted = True
            return

    def _look_at_the_end(self) -> None:
        stored = self.store.load(self.token, NOW)
        if self.deleted and stored is not None:
            self.harm.add("zombie")
        if stored is not None and len(stored.payload) != stored.version:
            self.harm.add("lost")
        for value, _ in self.slots.entries.values():
            if value[:1] == b"V":
                version = int.from_bytes(value[1:9], "big")
                if stored is None or stored.version != version:
                    self.harm.add("stuck")


def search(
    roles: str,
    kind: str,
    make: Callable[..., TieredSessionStore] = TieredSessionStore,
    *,
    faults: int = 1,
    durable: type[MemorySessionStore] = MemorySessionStore,
) -> tuple[set[str], int]:
    """The harm found in all schedules of *roles*, cache cold and warm, and their number."""
    harm: set[str] = set()
    runs = 0
    for warm in (False, True):
        choices: list[int] | None = []
        visited: set[object] = set()
        while choices is not None:
            schedule = Schedule(choices)
            world = World(
                schedule, make, kind, warm=warm, faults=faults, durable=durable, visited=visited
            )
            world.run(roles)
            harm |= world.harm
            runs += 1
            choices = schedule.next()
    return harm, runs


KINDS = ["text", "meta", "redis"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roles", ["RR", "RW", "RD", "WW", "WD", "DD"])
def test_all_schedules_of_two_clients_with_one_fault(roles: str, kind: str) -> None:
    """No order of events with at most one fault does any harm."""
    harm, runs = search(roles, kind)
    assert harm == set()
    assert runs > 100


@pytest.mark.parametrize(
    ("roles", "server", "faults"),
    [
        *((roles, kind, 0) for roles in ("RRW", "RRD", "RWW", "RWD") for kind in KINDS),
        *((roles, "meta", 1) for roles in ("RRW", "RRD")),
    ],
)
def test_all_schedules_of_three_clients(roles: str, server: str, faults: int) -> None:
    """No order of events of three clients does any harm, nor does one fault where all are run."""
    harm, runs = search(roles, server, faults=faults)
    assert harm == set()
    assert runs > 400


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roles", ["RRW", "RRD", "RWW", "RWD", "WWD"])
def test_many_schedules_of_three_clients_with_one_fault(roles: str, kind: str) -> None:
    """No sampled order of three clients' events with one fault does any harm."""
    seed = random.SystemRandom().randrange(1 << 32)
    pick = random.Random(seed)
    for _ in range(1500):
        schedule = Schedule([], pick)
        warm = pick.random() < 0.5
        world = World(schedule, TieredSessionStore, kind, warm=warm, faults=1)
        world.run(roles)
        assert world.harm == set(), (seed, roles, kind, warm, schedule.taken)


class NoLock(TieredSessionStore):
    """Writers do not mark the slot before they commit."""

    def _set_lock(self, key: str, lock: bytes, now: float) -> tuple[bool, Handle | None]:
        return True, None


class NoLease(TieredSessionStore):
    """Readers fill an empty slot whatever has happened since they looked."""

    def _fill(
        self, key: str, lease: bytes, handle: Handle | None, value: bytes, ttl: float
    ) -> bool:
        self.cache.set(key, value, ttl)
        return True


class NoSecondLock(TieredSessionStore):
    """A delete marks the slot before its commit and not after it."""

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        key = self._ids.key(token)
        assert key is not None
        self._set_lock(key, self._new_lock(), now)
        self.durable.delete(token, now, version)


class NoSecondMark(TieredSessionStore):
    """A LOCK that was not acknowledged is not set again after the commit."""

    _refused = False

    def _set_lock(self, key: str, lock: bytes, now: float) -> tuple[bool, Handle | None]:
        if self._refused:
            return False, None
        held, handle = super()._set_lock(key, lock, now)
        self._refused = not held
        return held, handle


class PublishAlways(TieredSessionStore):
    """A publish does not look at what stands in the slot."""

    def _publish(
        self, key: str, lock: bytes, handle: Handle | None, value: bytes, ttl: float
    ) -> None:
        self.cache.set(key, value, ttl)


class NoCondition(MemorySessionStore):
    """A durable store that commits whatever version the writer had read."""

    def update(self, token: str, record: Record, now: float) -> Saved:
        current = self.load(token, now)
        if current is None:
            raise Gone("the session has ended")
        return super().update(token, record._replace(version=current.version), now)


REMOVALS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "the LOCK": ({"make": NoLock}, "RW", {"stale"}),
    "the lease": ({"make": NoLease}, "RW", {"stuck"}),
    "the lease, at a delete": ({"make": NoLease}, "RD", {"stuck"}),
    "the second LOCK of a delete": ({"make": NoSecondLock}, "WD", {"stuck"}),
    "the second mark": ({"make": NoSecondMark}, "RW", {"stuck"}),
    "the look before a publish": ({"make": PublishAlways}, "WW", {"stuck"}),
    "the condition of the commit": ({"durable": NoCondition}, "WW", {"lost"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("removal", REMOVALS)
def test_without_a_mechanism_harm_is_found(removal: str, kind: str) -> None:
    """Taking one mechanism out of the protocol is found by the same search."""
    arguments, roles, expected = REMOVALS[removal]
    harm, _ = search(roles, kind, **arguments)
    assert expected <= harm


def test_a_schedule_can_be_run_again() -> None:
    """The same choices give the same run, so that a failure can be looked into."""

    def play(choices: list[int]) -> Iterator[int]:
        schedule = Schedule(choices)
        World(schedule, TieredSessionStore, "text", warm=False, faults=1).run("RW")
        yield from schedule.taken

    first = list(play([1, 0, 1, 2]))
    assert list(play(first)) == first
