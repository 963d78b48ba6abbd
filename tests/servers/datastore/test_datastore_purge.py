"""The purge on Google's emulator: what it deletes, asks and writes, and whom it does not touch."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import google.cloud.ndb as ndb
import pytest

from tieredsession.contracts import Record
from tieredsession.errors import Conflict, Gone
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.purge import find_sweepable, oldest_expired_age, purge
from tieredsession.stores import datastore_rpc as rpc
from tieredsession.stores.datastore import DatastoreSessionStore, SessionEntity
from tieredsession.stores.datastore_sweep import DatastoreSweep
from tieredsession.testing import FakeClock, SweepContract
from tieredsession.tokens import MAC_BYTES, SessionIds

HOUR = 3600.0
DAY = 24 * HOUR
NOW = 1_700_000_000.0  # years ago: a server that knows the time deletes nothing before its own

OpenStore = Callable[..., DatastoreSessionStore]
Connect = Callable[..., DatastoreSessionStore]


class TestDatastoreSessionStore(SweepContract):
    """The contract of a sweep."""

    @pytest.fixture
    def store(self, open_store: OpenStore) -> DatastoreSessionStore:
        return open_store()


class Client:
    """An ndb client whose calls are seen, and in which something may happen before one."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.requests: list[Any] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[Any], object]] = {}
        self.timed: Callable[[float], object] = lambda timeout: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    @property
    def stub(self) -> Client:
        return self

    @property
    def grpc_channel(self) -> Client:
        return self

    def unary_unary(self, method: str, **how: Any) -> Any:
        name = method.rpartition("/")[2]
        real = self._client.stub.grpc_channel.unary_unary(method, **how)

        def call(request: Any, **options: Any) -> Any:
            self.requests.append(request)
            self.timed(options["timeout"])
            self.before.pop(name, lambda: None)()
            response = real(request, **options)
            self.after.get(name, lambda _: None)(response)
            return response

        return call

    def of(self, kind: Any) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]


@pytest.fixture
def client(emulator: object, project: str) -> Client:
    return Client(ndb.Client(project=project))


FEW = ("00", "07", "a5", "ff")


def _few(size: int) -> bytes:
    """Random bytes whose hash falls into one of those shards."""
    while sha256(secret := os.urandom(size)).hexdigest()[:2] not in FEW:
        pass
    return secret


@pytest.fixture
def connect(client: Client) -> Connect:
    """Opens stores over that client, of a prefix, a kind; sessions and sweeps in few shards."""

    def connect(
        prefix: str = "", kind: str = "SessionEntity", *, few: bool = True
    ) -> DatastoreSessionStore:
        options = StoreOptions(Keyring("only for tests, only for tests, 1"), "id", prefix)
        authenticator = options.keyring.authenticator(f"id:id:{prefix}", MAC_BYTES)
        ids = SessionIds(authenticator, prefix, _few if few else os.urandom)
        store = DatastoreSessionStore(
            client, ids, options.record_envelope, deadline=30.0, kind=kind
        )
        if few:
            store.sweepable.shards = FEW
        return store

    return connect


@pytest.fixture
def later() -> FakeClock:
    return FakeClock(NOW + DAY)


def _fill(store: DatastoreSessionStore, count: int, expires: float = NOW + HOUR) -> list[str]:
    return [
        store.create(Record(b"%d" % number, expires, NOW), NOW).token for number in range(count)
    ]


def test_a_purge(connect: Connect, later: FakeClock) -> None:
    """A run over all shards deletes what has expired, and the next has its canaries to delete."""
    store = connect(few=False)
    dead, live = _fill(store, 40), _fill(store, 40, NOW + 9 * DAY)
    report = purge(store, clock=later, ramp=False)
    assert (report.deleted, report.spared, report.completed) == (40, 0, True)
    assert all(store.load(token, NOW) is None for token in dead)
    assert all(store.load(token, NOW) is not None for token in live)
    later.advance(3 * HOUR)
    assert oldest_expired_age(store, later()) == 3 * HOUR
    second = purge(store, clock=later, ramp=False)
    assert (second.deleted, second.stuck, second.failed) == (256, 0, 0)


def test_the_query_is_one_for_a_built_in_index(
    connect: Connect, client: Client, later: FakeClock
) -> None:
    """A query of the sweep names one property, filters and order alike, and no more than keys."""
    _fill(connect(), 3)
    purge(connect(), clock=later, ramp=False)
    purge(connect(), clock=later, ramp=False, full=True)
    oldest_expired_age(connect(), later())
    queries = [request.query for request in client.of(rpc.QueryRequest)]
    assert len(queries) >= 12
    for query in queries:
        named = {one.property_filter.property.name for one in query.filter.composite_filter.filters}
        assert named in ({"sweep"}, {"__key__"})
        assert named == {order.property.name for order in query.order}
        assert {one.property.name for one in query.projection} == {"__key__"}
        assert len(query.kind) == 1
        assert not query.distinct_on


def test_a_session_extended_while_it_is_swept(
    connect: Connect, client: Client, later: FakeClock
) -> None:
    """A session that is extended between the look-up and the deletion stays (I13, R22)."""
    store = connect()
    (token,) = _fill(store, 1)
    record = store.load(token, NOW)
    assert record is not None
    sweep = find_sweepable(store)
    shard = _shard(store, token)

    def extend() -> None:
        # Not at the very end of its life, whatever the sweep thinks of the time.
        store.update(token, record._replace(expires=NOW + 9 * DAY), NOW)

    client.before["Lookup"] = lambda: client.before.update(Commit=extend)
    page = sweep.sweep(shard, 0.0, later(), 100)
    assert (page.scanned, page.deleted, page.spared) == (1, 0, 1)
    assert store.load(token, later()) is not None


def test_an_index_that_is_behind(connect: Connect, client: Client, later: FakeClock) -> None:
    """A session that a query calls expired, and that is alive, is spared."""
    store = connect()
    dead, live = _fill(store, 1)[0], _fill(store, 1, NOW + 9 * DAY)[0]
    live_key = _key(store, live)

    def lie(response: Any) -> None:
        if len(response.batch.entity_results):
            added = response.batch.entity_results.add()
            added.CopyFrom(response.batch.entity_results[0])
            added.entity.key.path[0].name = _shard(store, dead) + live_key[2:]

    # Under a key of the shard that is being swept there is a live entity, too.
    other = _copy_of(client, live_key, _shard(store, dead) + live_key[2:])
    client.after["RunQuery"] = lie
    page = find_sweepable(store).sweep(_shard(store, dead), 0.0, later(), 100)
    assert (page.deleted, page.spared) == (1, 1)
    assert _exists(client, other)


def test_rows_that_say_nothing(connect: Connect, client: Client, later: FakeClock) -> None:
    """An entity without an expiry, or without a ``sweep``, is left alone; a full pass counts it."""
    store = connect()
    with client._client.context():
        names = ["a5" + "0" * 62, "a5" + "1" * 62]
        SessionEntity(id=names[0], sweep=f"a5{int(NOW) // 3600:010d}", data=b"").put()
        SessionEntity(id=names[1], data=b"").put()
    report = purge(store, clock=later, ramp=False)
    assert (report.odd, report.deleted, report.completed) == (1, 0, True)
    full = purge(store, clock=later, ramp=False, full=True)
    assert full.odd == 2
    assert all(_exists(client, name) for name in names)


def test_an_expired_row_that_no_index_knows(
    connect: Connect, client: Client, later: FakeClock
) -> None:
    """A full pass deletes an expired entity without ``sweep``, and spares the live ones."""
    from datetime import datetime, timezone

    store = connect()
    live = _fill(store, 5, NOW + 9 * DAY)
    expired = datetime.fromtimestamp(NOW, timezone.utc).replace(tzinfo=None)
    with client._client.context():
        SessionEntity(id="a5" + "0" * 62, expires=expired, data=b"").put()
    assert purge(store, clock=later, ramp=False).deleted == 0
    report = purge(store, clock=later, ramp=False, full=True)
    assert (report.deleted, report.spared) == (1, 5 + 4)
    assert all(store.load(token, NOW) is not None for token in live)


def test_others_are_not_touched(
    connect: Connect, open_store: OpenStore, client: Client, later: FakeClock
) -> None:
    """Other kinds, namespaces, databases and prefixes keep their rows, also inside one's range."""
    mine = connect("")
    others = [connect(prefix) for prefix in ("a", "0", "ab", "ff", "app:")]
    others += [connect("", "OtherKind"), open_store(namespace="elsewhere")]
    tokens = {store: _fill(store, 10) for store in others}
    _fill(mine, 10)
    report = purge(mine, clock=later, ramp=False)
    assert (report.deleted, report.odd, report.spared) == (10, 0, 0)
    assert purge(mine, clock=later, ramp=False, full=True).deleted == 0
    for store, kept in tokens.items():
        assert all(store.load(token, NOW) is not None for token in kept)
    assert purge(others[2], clock=later, ramp=False).deleted == 10


def test_a_page_is_followed_to_its_end(connect: Connect, later: FakeClock) -> None:
    """More rows in one shard than the server puts on a page are all deleted, in pages."""
    store = connect()
    sweep = find_sweepable(store)
    _fill(store, 120)
    counts = []
    for shard in sweep.shards:
        after: str | None = None
        while True:
            page = sweep.sweep(shard, 0.0, later(), 1, after)
            counts.append(page.deleted)
            after = page.after
            if after is None:
                break
    assert sum(counts) == 120
    assert max(counts) == 1


def test_a_lost_reply_of_a_deletion(connect: Connect, client: Client, later: FakeClock) -> None:
    """A deletion whose reply is lost is repeated, and nothing else is taken for it."""
    store = connect()
    (token,) = _fill(store, 1)

    def lose(response: Any) -> None:
        client.after.clear()
        raise rpc.Undecided("the reply is lost")

    client.after["Commit"] = lose
    page = find_sweepable(store).sweep(_shard(store, token), 0.0, later(), 100)
    assert (page.deleted, page.spared) == (1, 0)
    assert store.load(token, NOW) is None


def test_a_lost_reply_of_a_lease(connect: Connect, client: Client, later: FakeClock) -> None:
    """A worker knows a lease that it took without a reply for its own, and sweeps the shard."""
    store = connect()
    _fill(store, 4)

    def lose(response: Any) -> None:
        client.after.clear()
        raise rpc.Undecided("the reply is lost")

    client.after["Commit"] = lose
    report = purge(store, clock=later, ramp=False)
    assert (report.deleted, report.shards_taken, report.completed) == (4, 0, True)


@pytest.mark.parametrize("first", [None, b"before"])
def test_a_lost_call_of_a_lease(connect: Connect, client: Client, first: bytes | None) -> None:
    """A note that somebody else wrote while a call got lost is not taken for one's own."""
    sweep = connect().sweepable
    version = None if first is None else sweep.write_note("note", first, None)

    def be_overtaken() -> None:
        assert sweep.write_note("note", b"theirs", version) is not None
        raise rpc.Undecided("the call is lost")

    client.before["Commit"] = be_overtaken
    assert sweep.write_note("note", b"mine", version) is None
    assert sweep.read_notes(["note"])["note"].data == b"theirs"


def test_a_lost_reply_of_a_canary(connect: Connect, client: Client, later: FakeClock) -> None:
    """A canary whose reply is lost is no alarm; one that is there is."""
    sweep = connect().sweepable

    def lose(response: Any) -> None:
        client.after.clear()
        raise rpc.Undecided("the reply is lost")

    client.after["Commit"] = lose
    assert sweep.plant("a5", later())
    assert not sweep.plant("a5", later())


def test_look_ups_that_are_put_off(connect: Connect, client: Client, later: FakeClock) -> None:
    """What a look-up puts off is asked for again, and not taken for missing."""
    store = connect()
    store.sweepable.shards = ("a5",)
    tokens = [token for token in _fill(store, 40) if _key(store, token)[:2] == "a5"]

    def put_off(response: Any) -> None:
        found = list(response.found)
        del response.found[1:]
        response.deferred.extend(one.entity.key for one in found[1:])

    client.after["Lookup"] = put_off
    report = purge(store, clock=later, ramp=False)
    assert (report.deleted, report.completed) == (len(tokens), True)
    assert len(client.of(rpc.LookupRequest)) >= len(tokens) > 1


def test_a_call_of_a_sweep_has_one_deadline(connect: Connect, client: Client) -> None:
    """The calls of a page share twenty seconds, as do those of any other call of a sweep."""
    store = connect()
    _fill(store, 8)
    clock = FakeClock(0.0)
    timeouts: list[float] = []

    def seconds(seconds: float) -> rpc.Deadline:
        return rpc.Deadline(seconds, clock, clock.advance, lambda: 0.0)

    def hang(timeout: float) -> None:
        timeouts.append(timeout)
        clock.advance(timeout * 0.9)

    sweep = DatastoreSweep(store._connect, "", "SessionEntity", seconds)
    client.timed = hang
    for call in (
        lambda: sweep.sweep("a5", 0.0, NOW + DAY, 100),
        lambda: sweep.walk("a5", NOW + DAY, 100),
        lambda: sweep.oldest("a5"),
        lambda: sweep.read_notes(["purge-a5"]),
        lambda: sweep.write_note("purge-a5", b"", None),
        lambda: sweep.plant("a5", NOW),
    ):
        begin = clock()
        call()
        assert clock() - begin <= 20.0
    assert max(timeouts) == 10.0


def test_a_full_dry_run(connect: Connect, client: Client, later: FakeClock) -> None:
    """A dry run of a full pass counts what it would delete, and deletes nothing."""
    store = connect()
    dead = _fill(store, 5)
    _fill(store, 3, NOW + 9 * DAY)
    report = purge(store, clock=later, full=True, dry_run=True)
    assert (report.deleted, report.spared, report.completed) == (5, 3, True)
    assert all(store.load(token, NOW) is not None for token in dead)


def test_two_workers_at_once(connect: Connect, later: FakeClock) -> None:
    """Two workers at once delete each row once, and leave nothing."""
    store = connect()
    _fill(store, 100)
    deleted: list[int] = []

    def work() -> None:
        deleted.append(purge(store, clock=later, ramp=False).deleted)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(deleted) == 100


def test_renewals_while_the_purge_runs(connect: Connect) -> None:
    """Sessions that are extended and renewed while they expire are never lost to a sweep."""
    store = connect()
    clock = FakeClock(NOW)
    stop = threading.Event()
    failures: list[str] = []

    def live() -> None:
        rng = random.Random(7)
        tokens = [store.create(Record(b"x", clock() + 2 * HOUR, clock()), clock()).token]
        while not stop.is_set():
            now = clock()
            place = rng.randrange(len(tokens))
            record = store.load(tokens[place], now)
            if record is None:
                failures.append("a live session was gone")
                return
            try:
                if rng.random() < 0.3:
                    store.delete(tokens[place], now, record.version)
                    tokens[place] = store.create(record._replace(expires=now + 2 * HOUR), now).token
                else:
                    longer = record._replace(expires=float(int(now) + 7200))
                    store.update(tokens[place], longer, now)
            except (Conflict, Gone) as error:
                failures.append(repr(error))
            if len(tokens) < 10:
                tokens.append(store.create(record, now).token)

    threads = [threading.Thread(target=live) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        clock.advance(0.2 * HOUR)  # each session is used more often than it expires
        _fill(store, 20, clock() - 3 * HOUR)
        assert purge(store, clock=clock, grace=0.0, ramp=False).failed == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_life_on_the_emulator(connect: Connect) -> None:
    """In weeks of creations, extensions, ends and sweeps no live session is lost."""
    store = connect()
    clock, rng = FakeClock(NOW), random.Random(11)
    alive: dict[str, float] = {}
    for _ in range(12):
        for _ in range(12):
            now = clock()
            action = rng.choice(["create", "create", "extend", "end"])
            living = [token for token, expires in alive.items() if expires > now]
            if action == "create" or not living:
                expires = now + rng.choice([HOUR, DAY, 9 * DAY])
                token = store.create(Record(b"x", float(int(expires)), now), now).token
                alive[token] = float(int(expires))
                continue
            token = rng.choice(living)
            record = store.load(token, now)
            assert record is not None
            if action == "extend":
                alive[token] = float(int(now + 5 * DAY))
                store.update(token, record._replace(expires=alive[token]), now)
            else:
                store.delete(token, now, record.version)
                del alive[token]
        clock.advance(rng.uniform(0.1, 2.0) * DAY)
        report = purge(store, clock=clock, ramp=False)
        assert (report.failed, report.spared, report.completed) == (0, 0, True)
        for token, expires in alive.items():
            assert (store.load(token, clock()) is not None) == (expires > clock())
    clock.advance(30 * DAY)
    purge(store, clock=clock, ramp=False)
    with store._connect._client._client.context():  # type: ignore[union-attr]  # in use, so not None
        assert SessionEntity.query().count() == 4  # the canaries


def test_a_time_of_the_server(connect: Connect, client: Client) -> None:
    """Where the server tells its time, a clock that is ahead deletes nothing early."""
    store = connect()
    (token,) = _fill(store, 1, NOW + 30 * DAY)

    def tell(response: Any) -> None:
        response.read_time.seconds = int(NOW)

    client.after["Lookup"] = tell
    page = find_sweepable(store).sweep(_shard(store, token), 0.0, NOW + 99 * DAY, 100)
    assert (page.deleted, page.spared) == (0, 1)


def test_notes_are_of_a_kind_of_their_own(
    connect: Connect, client: Client, later: FakeClock
) -> None:
    """What the purge writes down is kept apart from the sessions, a note a shard."""
    purge(connect("app:"), clock=later, ramp=False)
    with client._client.context():
        notes = ndb.Query(kind="SessionEntitySweep").fetch(keys_only=True)
    assert len(notes) == 4
    assert {key.id()[:10] for key in notes} == {"app:purge-"}


# -- inside ---------------------------------------------------------------------------


def _key(store: DatastoreSessionStore, token: str) -> str:
    key = store._ids.key(token)
    assert key is not None
    return key


def _shard(store: DatastoreSessionStore, token: str) -> str:
    key = _key(store, token)
    shard = key[-64:][:2]
    assert isinstance(store.sweepable, DatastoreSweep)
    assert shard in store.sweepable.shards
    return shard


def _copy_of(client: Client, name: str, other: str) -> str:
    """Another entity like *name*; its own name."""
    with client._client.context():
        entity = SessionEntity.get_by_id(name)
        SessionEntity(id=other, **entity.to_dict()).put()
    return other


def _exists(client: Client, name: str) -> bool:
    with client._client.context():
        return SessionEntity.get_by_id(name) is not None
