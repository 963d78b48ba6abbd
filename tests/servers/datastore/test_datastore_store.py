"""The Datastore store on Google's emulator: its contract, its conditions and its entities."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.cloud.ndb as ndb
import pytest
from google.cloud.datastore_v1.types import LookupRequest

from tieredsession.codec import MsgpackCodec
from tieredsession.contracts import Record
from tieredsession.cookies import CookieWriter
from tieredsession.errors import (
    ConfigurationError,
    Conflict,
    Gone,
    MissingDependencyError,
    StoreError,
)
from tieredsession.events import Event, TokenRefused
from tieredsession.keyring import Keyring
from tieredsession.lifetimes import Lifetimes
from tieredsession.manager import SessionManager
from tieredsession.options import StoreOptions
from tieredsession.stores import datastore, datastore_rpc
from tieredsession.stores.datastore import (
    MAX_SEALED,
    DatastoreSessionStore,
    GAESessionStore,
    SessionEntity,
)
from tieredsession.testing import FakeClock, PrincipalContract, StoreContract
from tieredsession.url import URL

NOW = 1_800_000_000.0
HOUR = 3600.0
RECORD = Record(b"payload", NOW + HOUR, NOW)

OpenStore = Callable[..., DatastoreSessionStore]


@pytest.mark.parametrize("encrypt", [False, True], ids=["sign", "seal"])
class TestDatastoreSessionStore(StoreContract, PrincipalContract):
    update_checks_expiry = False

    @pytest.fixture
    def store(self, open_store: OpenStore, encrypt: bool) -> DatastoreSessionStore:
        return open_store(encrypt=encrypt, principals=True)


@pytest.fixture
def store(open_store: OpenStore) -> DatastoreSessionStore:
    return open_store()


@pytest.fixture
def client(store: DatastoreSessionStore, project: str) -> ndb.Client:
    """An application's own ndb client, on the same database."""
    return ndb.Client(project=project)


def entity(client: ndb.Client) -> Any:
    """The only entity of the kind, as Datastore keeps it."""
    with client.context():
        (key,) = SessionEntity.query().fetch(keys_only=True)
    request = LookupRequest(project_id=client.project, keys=[key._key.to_protobuf()])
    return client.stub.lookup(request).found[0].entity


# -- conditions -----------------------------------------------------------------------


def test_versions_do_not_come_back(store: DatastoreSessionStore, client: ndb.Client) -> None:
    """A session that was deleted and made again has a version that it never had."""
    saved = store.create(RECORD, NOW)
    copy = entity(client)
    store.delete(saved.token, NOW)
    mutation = {"insert": copy}
    client.stub.commit({"project_id": client.project, "mode": 2, "mutations": [mutation]})
    with pytest.raises(Conflict) as caught:
        store.update(saved.token, RECORD._replace(version=saved.version), NOW)
    assert caught.value.current.version > saved.version


def test_the_same_bytes_are_a_new_version(store: DatastoreSessionStore) -> None:
    """A save of equal data is a save all the same, which other writers notice."""
    first = store.create(RECORD, NOW)
    second = store.update(first.token, RECORD._replace(version=first.version), NOW)
    assert second.version > first.version
    with pytest.raises(Conflict):
        store.update(first.token, RECORD._replace(version=first.version), NOW)


def test_a_conflict_with_an_expired_session_is_gone(store: DatastoreSessionStore) -> None:
    """A stale writer is told Gone, not Conflict, when what stands there has expired."""
    first = store.create(RECORD, NOW)
    store.update(first.token, RECORD._replace(version=first.version), NOW)
    stale = RECORD._replace(version=first.version, expires=NOW + 9 * HOUR)
    with pytest.raises(Gone):
        store.update(first.token, stale, NOW + 2 * HOUR)


def test_a_session_that_expires_in_mid_request_stays_dead(store: DatastoreSessionStore) -> None:
    """The store leaves the old expiry to the manager, which lets no save revive a session."""
    clock = FakeClock(NOW)
    manager = SessionManager(
        store, MsgpackCodec(), CookieWriter("id"), Lifetimes(idle=3600), clock=clock
    )
    first = manager.open(None)
    first["visits"] = 1
    reply = manager.close(first)
    assert reply is not None
    assert reply.set_cookie is not None
    cookie = reply.set_cookie.partition(";")[0]

    late = manager.open(cookie)
    late["visits"] += 1
    clock.advance(HOUR)
    manager.close(late)
    token = cookie.partition("=")[2]
    assert store.load(token, clock()) is None
    before = store.load(token, NOW)
    assert before is not None
    assert before.expires == NOW + HOUR


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": b""}, "malformed"),
        ({"data": b"\x1f" + bytes(40)}, "forged"),
        ({}, "expired"),
        (None, "unknown"),
    ],
    ids=["emptied", "forged", "expired", "deleted"],
)
def test_what_is_no_live_session_is_none(
    open_store: OpenStore, project: str, change: dict[str, bytes] | None, reason: str
) -> None:
    """An entity that is changed, expired or gone is no session, and the observer hears why."""
    events: list[Event] = []
    store = open_store(observer=events.append)
    saved = store.create(RECORD, NOW)
    with ndb.Client(project=project).context():
        (found,) = SessionEntity.query().fetch()
        if change is None:
            found.key.delete()
        else:
            found.populate(**change)
            found.put()
    assert store.load(saved.token, NOW + 2 * HOUR if change == {} else NOW) is None
    assert store.load("A" * 32, NOW) is None
    label = store.label(saved.token)
    assert events == [TokenRefused(reason, session=label), TokenRefused("forged")]


@pytest.mark.parametrize("size", [MAX_SEALED, MAX_SEALED + 1], ids=["fits", "too-large"])
def test_the_largest_session(store: DatastoreSessionStore, size: int) -> None:
    """A session is kept up to the size of an entity, and beyond it the error says the size."""
    overhead = 1 + 4 + 2 + 16  # kind, expiry, span and tag of the envelope
    record = RECORD._replace(payload=bytes(size - overhead))
    if size == MAX_SEALED:
        assert store.load(store.create(record, NOW).token, NOW) is not None
        return
    with pytest.raises(StoreError, match=f"takes {size} bytes and Datastore keeps {MAX_SEALED}"):
        store.create(record, NOW)
    saved = store.create(RECORD, NOW)
    with pytest.raises(StoreError, match="keep large values elsewhere"):
        store.update(saved.token, record._replace(version=saved.version), NOW)


# -- entities -------------------------------------------------------------------------


def test_only_the_sweep_property_is_indexed(
    store: DatastoreSessionStore, client: ndb.Client
) -> None:
    """Of an entity's properties the built-in index holds one, after an update, too."""
    saved = store.create(RECORD, NOW)
    for _ in range(2):
        properties = entity(client).properties
        assert set(properties) == {"data", "expires", "sweep", "write"}
        indexed = [name for name in properties if not properties[name].exclude_from_indexes]
        assert indexed == ["sweep"]
        saved = store.update(saved.token, RECORD._replace(version=saved.version), NOW)


def test_an_index_of_principals_names_nobody(open_store: OpenStore, project: str) -> None:
    """With principals on, the owner is indexed too, by a name that tells nobody who it is."""
    store = open_store(principals=True)
    store.create(RECORD._replace(principal="ann@example.org"), NOW)
    client = ndb.Client(project=project)
    properties = entity(client).properties
    indexed = {name for name in properties if not properties[name].exclude_from_indexes}
    assert indexed == {"sweep", "owner"}
    assert "ann" not in properties["owner"].string_value
    with client.context():
        owner = properties["owner"].string_value
        assert SessionEntity.query(SessionEntity.owner == owner).count() == 1


def test_a_principal_of_many_sessions(open_store: OpenStore) -> None:
    """More sessions of one principal than a page of results holds are all found."""
    store = open_store(principals=True)
    for _ in range(320):  # the emulator answers 300 at a time
        store.create(RECORD._replace(principal="ann"), NOW)
    assert len(store.sessions_of("ann", NOW)) == 320


def test_an_owner_that_was_changed(open_store: OpenStore, project: str) -> None:
    """An entity that was put under another owner is not among that one's sessions."""
    store = open_store(principals=True)
    for name in ("ann", "eve"):
        store.create(RECORD._replace(principal=name), NOW)
    with ndb.Client(project=project).context():
        first, second = SessionEntity.query().fetch()
        first.owner = second.owner
        first.put()
    assert sorted(len(store.sessions_of(name, NOW)) for name in ("ann", "eve")) == [0, 1]


def test_an_entity_opens_no_session(store: DatastoreSessionStore, client: ndb.Client) -> None:
    """Neither key nor properties hold the token or any part of it that opens a session."""
    saved = store.create(RECORD, NOW)
    raw = type(entity(client)).serialize(entity(client))
    assert saved.token.encode() not in raw
    name = entity(client).key.path[0].name
    assert store.load(name, NOW) is None
    assert name.startswith("app:")
    assert store.label(saved.token) == name[4:16]


def test_ndb_reads_and_queries_the_same_entities(
    store: DatastoreSessionStore, client: ndb.Client
) -> None:
    """To ndb the sessions are entities of a model, found by key, by range and by count."""
    early = store.create(RECORD, NOW)
    store.create(RECORD._replace(expires=NOW + 50 * HOUR), NOW)
    with client.context():
        assert SessionEntity.query().count() == 2
        found = SessionEntity.query().fetch()
        (mine,) = [e for e in found if e.key.id()[4:16] == store.label(early.token)]
        assert mine.expires.timestamp() != 0
        assert mine.expires.isoformat() == "2027-01-15T09:00:00"
        shard = mine.key.id()[4:6]
        assert mine.sweep == f"app:{shard}0000500001"
        assert SessionEntity.get_by_id(mine.key.id()) == mine
        due = SessionEntity.query(
            SessionEntity.sweep >= f"app:{shard}{0:010d}",
            SessionEntity.sweep < f"app:{shard}0000500002",
        )
        assert due.fetch(keys_only=True) == [mine.key]


def test_ndb_caches_nothing_of_the_kind(store: DatastoreSessionStore, client: ndb.Client) -> None:
    """Within one ndb context, a second read sees what the store has written since the first."""
    saved = store.create(RECORD, NOW)
    with client.context(global_cache=ndb.global_cache._InProcessGlobalCache()):
        (key,) = SessionEntity.query().fetch(keys_only=True)
        before = key.get()
        store.update(saved.token, RECORD._replace(version=saved.version), NOW)
        assert key.get().write != before.write
        store.delete(saved.token, NOW)
        assert key.get() is None


def test_what_ndb_deletes_is_gone(store: DatastoreSessionStore, client: ndb.Client) -> None:
    """A session whose entity an administrator deletes with ndb is ended."""
    saved = store.create(RECORD, NOW)
    with client.context():
        ndb.delete_multi(SessionEntity.query().fetch(keys_only=True))
    assert store.load(saved.token, NOW) is None
    with pytest.raises(Gone):
        store.update(saved.token, RECORD._replace(version=saved.version), NOW)


def test_a_kind_of_ones_own(open_store: OpenStore, project: str) -> None:
    """A store with another kind keeps its entities apart, and a subclass reads them."""

    class Visit(SessionEntity):
        @classmethod
        def _get_kind(cls) -> str:
            return "Visit"

    saved = open_store(kind="Visit").create(RECORD, NOW)
    assert open_store().load(saved.token, NOW) is None
    with ndb.Client(project=project).context():
        assert SessionEntity.query().count() == 0
        assert Visit.query().count() == 1


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"namespace": "a"}, {"namespace": "b"}),
        ({"namespace": "a"}, {}),
        ({"path": "/one"}, {"path": "/two"}),
        ({"path": "/one"}, {}),
    ],
    ids=["namespaces", "namespace-default", "databases", "database-default"],
)
def test_namespaces_and_databases_are_apart(
    open_store: OpenStore, here: dict[str, str], there: dict[str, str]
) -> None:
    """A session of one namespace or database does not exist in another."""
    store, other = open_store(**here), open_store(**there)
    saved = store.create(RECORD, NOW)
    assert other.load(saved.token, NOW) is None
    other.delete(saved.token, NOW)
    with pytest.raises(Gone):
        other.update(saved.token, RECORD._replace(version=saved.version), NOW)
    assert store.load(saved.token, NOW) is not None


def test_the_default_database_by_name(open_store: OpenStore) -> None:
    """The name that the console shows for the default database stands for it."""
    saved = open_store("/(default)").create(RECORD, NOW)
    assert open_store().load(saved.token, NOW) is not None


# -- opening --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:///x", "not of the form"),
        ("datastore://a,b", "not of the form"),
        ("datastore://a:80", "not of the form"),
        ("datastore://me@a", "not of the form"),
        ("datastore://a/b/c", "not of the form"),
        ("datastore://a?deadline=0", "deadline='0'"),
        ("datastore://a?deadline=2000", "a deadline of 2000 s; 20 is the most"),
        ("datastore://a?kind=", "kind=''"),
        ("datastore://a?kind=__x__", "kind='__x__'"),
        ("datastore://a?cache=1", "unknown option: cache"),
    ],
)
def test_a_wrong_url_stops_the_start(url: str, problem: str) -> None:
    """A URL that is not understood to the last option is refused, naming the setting."""
    keyring = Keyring("only for tests, only for tests, 1")
    options = StoreOptions(keyring, "id", url=URL(url, "SESSION_STORE_URL"))
    with pytest.raises(ConfigurationError, match=f"SESSION_STORE_URL .*{problem}"):
        DatastoreSessionStore.from_options(options)


def test_the_environment_is_enough(
    emulator: object, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a URL, project and emulator come from the environment as for any Google client."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", project)
    keyring = Keyring("only for tests, only for tests, 1")
    store = GAESessionStore.from_options(StoreOptions(keyring, "id"))
    store.create(RECORD, NOW)
    with ndb.Client(project=project).context():
        assert SessionEntity.query().count() == 1


@pytest.mark.parametrize("missing", ["project", "credentials"])
def test_what_is_missing_stops_the_start(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a project or without credentials the start fails, saying what to set."""
    for name in ("GOOGLE_CLOUD_PROJECT", "DATASTORE_DATASET", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    if missing == "project":
        monkeypatch.setenv("DATASTORE_EMULATOR_HOST", "127.0.0.1:1")
    else:
        monkeypatch.delenv("DATASTORE_EMULATOR_HOST", raising=False)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "some-project")
    keyring = Keyring("only for tests, only for tests, 1")
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*set GOOGLE_CLOUD_PROJECT"):
        DatastoreSessionStore.from_options(StoreOptions(keyring, "id"))


@pytest.mark.parametrize(
    ("module", "library"), [(datastore, "google.cloud.ndb"), (datastore_rpc, "grpc")]
)
def test_a_missing_library_is_named(
    module: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the client library the import fails with the command that installs it."""
    monkeypatch.setitem(sys.modules, library, None)
    spec = importlib.util.spec_from_file_location("again", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[datastore\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
