"""What the Datastore store makes of lost replies, refusals and silence.

The two calls go to a double that keeps entities as Datastore does (conditions included, which
:mod:`test_datastore_store` shows on the emulator) and fails as it is told. Time is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from tieredsession.contracts import Record, Saved
from tieredsession.errors import Conflict, Gone, StoreError, StoreUnavailable
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.stores.datastore import DatastoreSessionStore
from tieredsession.stores.datastore_rpc import CommitResponse, LookupResponse
from tieredsession.testing import FakeClock

NOW = 1_800_000_000.0
HOUR = 3600.0
RECORD = Record(b"the payload", NOW + HOUR, NOW)
OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")
DEADLINE = 2.0

Code = grpc.StatusCode
PASSING = [
    Code.ABORTED,
    Code.CANCELLED,
    Code.DEADLINE_EXCEEDED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.UNKNOWN,
]


class Failure(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """An error as gRPC raises it. Its text names a key, as Datastore's may."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class FakeDatastore:
    """An ndb client, its channel, and a Datastore with versions behind it.

    *plan* says what becomes of the next calls, by method: a code (the call has no effect),
    ``("lost", code)`` (it has, and fails all the same), ``"hang"`` (no effect, and time runs
    until the timeout), ``"late"`` (the same, but the effect comes just before the next commit),
    ``"deferred"``, or a function that is called before the call goes its way.
    """

    project = "some-project"
    database = "some-database"
    namespace = "some-namespace"

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.pauses: list[float] = []
        self.calls: list[str] = []
        self.metadata: set[Any] = set()
        self.plan: dict[str, list[Any]] = {"Lookup": [], "Commit": []}
        self.entities: dict[str, tuple[Any, int]] = {}
        self.version = 100
        self.late: list[Any] = []

    @property
    def stub(self) -> FakeDatastore:
        return self

    @property
    def grpc_channel(self) -> FakeDatastore:
        return self

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)

    def unary_unary(
        self, method: str, *, request_serializer: Any, response_deserializer: Any
    ) -> Any:
        name = method.rpartition("/")[2]
        act = {"Lookup": self.lookup, "Commit": self.commit}.get(name)

        def call(request: Any, *, timeout: float, metadata: Any) -> Any:
            assert 0 < timeout <= DEADLINE
            request_serializer(request)
            self.calls.append(name)
            self.metadata.add(metadata)
            return self.carry_out(self.plan[name], act, request, timeout)

        return call

    def carry_out(self, plan: list[Any], act: Any, request: Any, timeout: float) -> Any:
        step = plan.pop(0) if plan else None
        if callable(step):
            step()
        elif isinstance(step, grpc.StatusCode):
            raise Failure(step, f"about {request}")
        elif isinstance(step, tuple):
            act(request)
            raise Failure(step[1], f"about {request}")
        elif step in ("hang", "late"):
            if step == "late":
                self.late.append(request)
            self.clock.advance(timeout)
            raise Failure(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
        elif step == "deferred":
            return LookupResponse(deferred=request.keys)
        return act(request)

    def lookup(self, request: Any) -> Any:
        response = LookupResponse()
        (key,) = request.keys
        found = self.entities.get(key.path[0].name)
        if found is None:
            response.missing.add().entity.key.CopyFrom(key)
        else:
            response.found.add(entity=found[0], version=found[1])
        return response

    def commit(self, request: Any) -> Any:
        late, self.late = self.late, []
        for earlier in late:
            with suppress(Failure):
                self.commit(earlier)
        (mutation,) = request.mutations
        kind = mutation.WhichOneof("operation")
        target = getattr(mutation, kind)
        name = (target if kind == "delete" else target.key).path[0].name
        current = self.entities.get(name)
        if kind == "insert" and current is not None:
            raise Failure(Code.ALREADY_EXISTS, "entity already exists")
        if kind == "update" and current is None:
            raise Failure(Code.NOT_FOUND, "no entity to update")
        if mutation.HasField("base_version") and (
            current is None or current[1] != mutation.base_version
        ):
            response = CommitResponse()
            response.mutation_results.add(conflict_detected=True)
            return response
        self.version += 1
        if kind == "delete":
            self.entities.pop(name, None)
        else:
            self.entities[name] = (target, self.version)
        response = CommitResponse()
        response.mutation_results.add(version=self.version)
        return response


@pytest.fixture
def fake() -> FakeDatastore:
    return FakeDatastore()


def open_store(fake: FakeDatastore, *, jitter: float = 1.0) -> DatastoreSessionStore:
    return DatastoreSessionStore(
        lambda: fake,
        OPTIONS.ids,
        OPTIONS.record_envelope,
        deadline=DEADLINE,
        clock=fake.clock,
        sleep=fake.sleep,
        jitter=lambda: jitter,
    )


@pytest.fixture
def store(fake: FakeDatastore) -> DatastoreSessionStore:
    return open_store(fake)


@pytest.fixture
def saved(store: DatastoreSessionStore, fake: FakeDatastore) -> Saved:
    """A session that is there; the calls that it took are forgotten."""
    saved = store.create(RECORD, NOW)
    fake.calls.clear()
    return saved


def successor(saved: Saved, payload: bytes = b"new") -> Record:
    return RECORD._replace(payload=payload, version=saved.version)


def calls_of(store: DatastoreSessionStore, saved: Saved) -> dict[str, Callable[[], Any]]:
    """One call of each method."""
    return {
        "load": lambda: store.load(saved.token, NOW),
        "create": lambda: store.create(RECORD, NOW),
        "update": lambda: store.update(saved.token, successor(saved), NOW),
        "delete": lambda: store.delete(saved.token, NOW),
        "delete-version": lambda: store.delete(saved.token, NOW, saved.version),
    }


METHODS = ["load", "create", "update", "delete", "delete-version"]
WRITES = METHODS[1:]


# -- calls ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_call_each(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """What goes well takes one call to Datastore, and no pause."""
    calls_of(store, saved)[method]()
    assert fake.calls == ["Lookup" if method == "load" else "Commit"]
    assert fake.pauses == []


def test_strange_tokens_take_no_call(store: DatastoreSessionStore, fake: FakeDatastore) -> None:
    """A malformed or forged token is refused without asking Datastore, or even a client."""
    for token in ("", "x", "A" * 32, "é" * 32, "A" * 5000):
        assert store.load(token, NOW) is None
        store.delete(token, NOW)
        with pytest.raises(Gone):
            store.delete(token, NOW, 1)
        with pytest.raises(Gone):
            store.update(token, RECORD, NOW)
    assert fake.calls == []


def test_calls_are_routed_to_the_database(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved
) -> None:
    """Every call carries the header by which the service finds the database."""
    for call in calls_of(store, saved).values():
        with suppress(Gone):
            call()
    route = ("x-goog-request-params", "project_id=some-project&database_id=some-database")
    assert fake.metadata == {(route,)}


def test_a_refused_save_takes_one_look_up(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved
) -> None:
    """A conflict costs one look-up, and so does a session that has ended."""
    store.update(saved.token, successor(saved), NOW)
    fake.calls.clear()
    with pytest.raises(Conflict):
        store.update(saved.token, successor(saved), NOW)
    assert fake.calls == ["Commit", "Lookup"]
    fake.entities.clear()
    with pytest.raises(Gone):
        store.update(saved.token, successor(saved), NOW)
    assert fake.calls == ["Commit", "Lookup"] * 2


# -- replies that get lost ------------------------------------------------------------


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.parametrize("method", WRITES)
def test_a_lost_reply_is_no_loss(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str, code: Any
) -> None:
    """A commit that was done but not acknowledged is found out, and not done again."""
    fake.plan["Commit"] = [("lost", code)]
    answer = calls_of(store, saved)[method]()
    assert fake.calls == ["Commit", "Lookup"]
    if method.startswith("delete"):
        assert fake.entities == {}
    else:
        loaded = store.load(answer.token, NOW)
        assert loaded is not None
        assert loaded.version == answer.version == fake.version


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.parametrize("method", WRITES)
def test_a_commit_that_was_not_done_is_tried_again(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str, code: Any
) -> None:
    """A commit that failed without effect is done once by a later try."""
    before = fake.version
    fake.plan["Commit"] = [code, code]
    calls_of(store, saved)[method]()
    assert fake.version == before + 1
    assert fake.calls == ["Commit", "Lookup"] * 2 + ["Commit"]


@pytest.mark.parametrize("method", WRITES)
def test_a_try_that_arrives_late_counts_once(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """A first try that takes effect only just before the second is not overwritten by it."""
    before = fake.version
    fake.plan["Commit"] = ["late"]
    answer = calls_of(store, saved)[method]()
    assert fake.calls[:3] == ["Commit", "Lookup", "Commit"]
    if method == "delete":  # without a condition, and to delete twice changes nothing
        assert fake.entities == {}
        return
    assert fake.version == before + 1
    assert answer is None or answer.version == fake.version


@pytest.mark.parametrize("fault", [Code.UNAVAILABLE, "hang"], ids=["failed", "hung"])
def test_another_writer_during_the_doubt_is_a_conflict(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, fault: Any
) -> None:
    """When another save took the place of one in doubt, the caller is told to merge."""
    other = open_store(fake)
    theirs: list[Saved] = []

    def overtake() -> None:
        theirs.append(other.update(saved.token, successor(saved, b"theirs"), NOW))

    fake.plan["Lookup"] = [overtake]
    fake.plan["Commit"] = [fault]
    with pytest.raises(Conflict) as caught:
        store.update(saved.token, successor(saved), NOW)
    assert caught.value.current == RECORD._replace(payload=b"theirs", version=theirs[0].version)


def test_a_save_in_doubt_is_not_merged_twice(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved
) -> None:
    """When another save may stand on the one in doubt, that is said instead of a conflict."""
    other = open_store(fake)

    def build_on_it() -> None:
        mine = other.load(saved.token, NOW)
        assert mine is not None
        assert mine.payload == b"new"
        other.update(saved.token, mine._replace(payload=b"theirs"), NOW)

    fake.plan["Commit"] = [("lost", Code.UNAVAILABLE)]
    fake.plan["Lookup"] = [build_on_it]
    with pytest.raises(StoreUnavailable, match="overtaken"):
        store.update(saved.token, successor(saved), NOW)
    loaded = store.load(saved.token, NOW)
    assert loaded is not None
    assert loaded.payload == b"theirs"


@pytest.mark.parametrize("method", ["update", "delete-version"])
def test_a_session_that_ends_during_the_doubt(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """A save in doubt whose session was ended is Gone; a deletion in doubt is content."""
    fake.plan["Commit"] = [Code.UNAVAILABLE]
    fake.plan["Lookup"] = [fake.entities.clear]
    call = calls_of(store, saved)[method]
    if method == "update":
        with pytest.raises(Gone):
            call()
    else:
        call()
    assert fake.entities == {}


def test_a_deletion_in_doubt_spares_a_newer_version(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved
) -> None:
    """A conditional deletion that failed does not, when tried again, delete a newer save."""
    other = open_store(fake)
    fake.plan["Commit"] = [Code.UNAVAILABLE]
    fake.plan["Lookup"] = [lambda: other.update(saved.token, successor(saved), NOW)]
    with pytest.raises(Conflict):
        store.delete(saved.token, NOW, saved.version)
    assert store.load(saved.token, NOW) is not None


def test_an_id_that_is_taken_is_not_taken_over(
    store: DatastoreSessionStore, fake: FakeDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new session never replaces one that is there, even if their ids were the same."""
    taken = store.create(RECORD, NOW)
    monkeypatch.setattr(OPTIONS.ids, "mint", lambda: (taken.token, OPTIONS.ids.key(taken.token)))
    with pytest.raises(StoreError, match="refused a new session"):
        store.create(successor(taken), NOW)
    assert store.load(taken.token, NOW) == RECORD._replace(version=taken.version)


# -- errors ---------------------------------------------------------------------------

QUOTED = {Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.FAILED_PRECONDITION}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "code", [*sorted(QUOTED, key=str), Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED]
)
def test_a_refusal_is_named_and_not_repeated(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str, code: Any
) -> None:
    """What no retry mends is one call and one sentence with project, database and cause."""
    for plan in fake.plan.values():
        plan[:] = [code]
    with pytest.raises(StoreError, match=f"project some-project.* some-database.*{code.name}") as e:
        calls_of(store, saved)[method]()
    assert type(e.value) is StoreError
    assert len(fake.calls) == 1
    assert fake.pauses == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "code", [Code.INVALID_ARGUMENT, Code.ABORTED, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED]
)
def test_an_error_names_no_key(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str, code: Any
) -> None:
    """Of errors that may quote an entity, only the name of their kind is passed on."""
    for plan in fake.plan.values():
        plan[:] = [code] * 9
    with pytest.raises(StoreError) as caught:
        calls_of(store, saved)[method]()
    (key,) = fake.entities
    assert str(store.label(saved.token)) in key
    assert code.name in str(caught.value)
    assert "about" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_used_up_quota_is_not_pressed(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """When a quota is used up the call fails at once, for later calls may succeed."""
    for plan in fake.plan.values():
        plan[:] = [Code.RESOURCE_EXHAUSTED]
    with pytest.raises(StoreUnavailable, match="RESOURCE_EXHAUSTED"):
        calls_of(store, saved)[method]()
    assert len(fake.calls) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_database_ends_no_session(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """NOT_FOUND about the database is an error and not a session that is gone."""
    for plan in fake.plan.values():
        plan[:] = [Code.NOT_FOUND]
    with pytest.raises(StoreError, match="NOT_FOUND"):
        calls_of(store, saved)[method]()


def test_a_deferred_look_up_is_not_an_answer(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved
) -> None:
    """A look-up that Datastore puts off is made again, and is unknown if it stays put off."""
    fake.plan["Lookup"] = ["deferred"]
    assert store.load(saved.token, NOW) is not None
    fake.plan["Lookup"] = ["deferred"] * 3
    with pytest.raises(StoreUnavailable, match="put the look-up off"):
        store.load(saved.token, NOW)


# -- time -----------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_retries_are_few_and_spread(fake: FakeDatastore, jitter: float) -> None:
    """A look-up is tried three times, with random pauses of up to 50 and 100 ms between."""
    store = open_store(fake, jitter=jitter)
    saved = store.create(RECORD, NOW)
    fake.plan["Lookup"] = [Code.UNAVAILABLE] * 9
    with pytest.raises(StoreUnavailable, match="does not answer: UNAVAILABLE"):
        store.load(saved.token, NOW)
    assert fake.calls == ["Commit", "Lookup", "Lookup", "Lookup"]
    assert fake.pauses == [0.05 * jitter, 0.1 * jitter]


@pytest.mark.parametrize("method", WRITES)
def test_a_commit_is_tried_three_times(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """A commit that fails each time is given up after three tries, having changed nothing."""
    before = dict(fake.entities)
    fake.plan["Commit"] = [Code.INTERNAL] * 9
    with pytest.raises(StoreUnavailable, match="does not answer: INTERNAL"):
        calls_of(store, saved)[method]()
    assert fake.calls == ["Commit", "Lookup"] * 3
    assert fake.entities == before


@pytest.mark.parametrize("code", PASSING)
def test_a_passing_fault_of_a_read_is_not_seen(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, code: Any
) -> None:
    """Two faults of a look-up that pass cost the caller nothing but time."""
    fake.plan["Lookup"] = [code, code]
    assert store.load(saved.token, NOW) is not None


@pytest.mark.parametrize("method", METHODS)
def test_one_deadline_for_all_tries(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """When nothing answers, a call of the store ends at its deadline, tries and pauses included."""
    for plan in fake.plan.values():
        plan[:] = ["hang"] * 99
    start = fake.clock()
    with pytest.raises(StoreUnavailable, match=r"DEADLINE_EXCEEDED|the time is up"):
        calls_of(store, saved)[method]()
    assert fake.clock() - start == pytest.approx(DEADLINE)
    assert len(fake.calls) <= 4


@pytest.mark.parametrize("method", WRITES)
def test_a_hanging_commit_leaves_time_to_ask(
    store: DatastoreSessionStore, fake: FakeDatastore, saved: Saved, method: str
) -> None:
    """A commit that hangs is asked about before the deadline, and tried again."""
    fake.plan["Commit"] = ["hang"]
    start = fake.clock()
    calls_of(store, saved)[method]()
    assert fake.clock() - start < DEADLINE
    assert fake.calls == ["Commit", "Lookup", "Commit"]


def test_a_pause_ends_with_the_deadline(store: DatastoreSessionStore, fake: FakeDatastore) -> None:
    """No pause is longer than the time that is left."""
    saved = store.create(RECORD, NOW)

    def be_slow() -> None:
        fake.clock.advance(DEADLINE - 0.01)
        raise Failure(Code.UNAVAILABLE, "gone away")

    fake.plan["Lookup"] = [be_slow]
    with pytest.raises(StoreUnavailable, match="gone away"):
        store.load(saved.token, NOW)
    assert fake.pauses == [pytest.approx(0.01)]
