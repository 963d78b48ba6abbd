"""Every cache in front of every durable store is held to the contract, on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tieredsession import SessionMiddleware, StoreUnavailable
from tieredsession.contracts import Cache, Record, SessionStore
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.registry import open_cache
from tieredsession.stores.datastore import DatastoreSessionStore
from tieredsession.stores.sqlite import SQLiteSessionStore
from tieredsession.stores.tiered import TieredSessionStore
from tieredsession.testing import Chaos, FakeClock, PrincipalContract, StoreContract

if TYPE_CHECKING:
    from servers.conftest import DurableEmulator, Emulator, Memcached, RedisServer

SECRET = "only for tests, only for tests, 1"
OPTIONS = StoreOptions(Keyring(SECRET), "id", "app:", principals=True)
NOW = 1_800_000_000.0
PATIENT = "timeout=5"  # seconds; a busy machine is no failure

CACHES = ["none", "memory", "fakeredis", "memcached-text", "memcached-meta", "redis"]
DURABLES = ["sqlite", "datastore"]


@pytest.fixture
def cache(request: pytest.FixtureRequest, cache_kind: str) -> Iterator[Cache | None]:
    """A cache of one kind, empty."""
    cache = _open(request, cache_kind)
    yield cache
    if cache is not None and hasattr(cache, "close"):
        cache.close()


def _open(request: pytest.FixtureRequest, cache_kind: str) -> Cache | None:
    if cache_kind == "none":
        return None
    if cache_kind in ("memory", "fakeredis"):
        return open_cache(f"{cache_kind}:///{request.node.name}".replace("[", "/").replace("]", ""))
    if cache_kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis")
        return open_cache(redis.url(PATIENT))
    memcached: Memcached = request.getfixturevalue("memcached")
    protocol = cache_kind.removeprefix("memcached-")
    return open_cache(memcached.url(f"{PATIENT}&protocol={protocol}"))


@pytest.fixture
def durable(
    request: pytest.FixtureRequest, durable_kind: str, tmp_path: Path
) -> Iterator[SessionStore]:
    """A durable store of one kind, empty."""
    if durable_kind == "datastore":
        open_store: Callable[..., DatastoreSessionStore] = request.getfixturevalue("open_store")
        yield open_store(principals=True)
        return
    store = SQLiteSessionStore(
        tmp_path / "s.sqlite3",
        OPTIONS.ids,
        OPTIONS.record_envelope,
        owners=OPTIONS.owners,
        synchronous="normal",
    )
    yield store
    store.close()


@pytest.mark.parametrize("durable_kind", DURABLES)
@pytest.mark.parametrize("cache_kind", CACHES)
class TestEveryPair(StoreContract, PrincipalContract):
    update_checks_expiry = False  # of Datastore, nor of a tiered store over it

    @pytest.fixture
    def store(self, cache: Cache | None, durable: SessionStore) -> SessionStore:
        if cache is None:
            return durable
        return TieredSessionStore(cache, durable, OPTIONS.ids, OPTIONS.record_envelope)


CALLS = {  # cache and durable calls: read hit, read miss, write, new, delete
    "memory": [(1, 0), (2, 1), (2, 1), (1, 1), (2, 1)],
    "fakeredis": [(1, 0), (2, 1), (2, 1), (1, 1), (2, 1)],
    "redis": [(1, 0), (2, 1), (2, 1), (1, 1), (2, 1)],
    "memcached-meta": [(1, 0), (2, 1), (2, 1), (1, 1), (2, 1)],
    "memcached-text": [(1, 0), (3, 1), (3, 1), (1, 1), (2, 1)],
}
"""By methods of the cache. In text, ``get_or_add`` of a miss is two calls to the server."""


@pytest.mark.parametrize("durable_kind", DURABLES)
@pytest.mark.parametrize("cache_kind", CACHES[1:])
def test_calls_of_each_request(
    cache: Cache, durable: SessionStore, cache_kind: str, durable_kind: str
) -> None:
    """Each kind of request makes the calls of the table in the design, and no more."""
    to_cache, to_durable = Chaos(), Chaos()
    store = TieredSessionStore(
        to_cache.wrap(cache), to_durable.wrap(durable), OPTIONS.ids, OPTIONS.record_envelope
    )

    def calls() -> tuple[int, int]:
        counted = len(to_cache.calls), len(to_durable.calls)
        to_cache.calls.clear()
        to_durable.calls.clear()
        return counted

    hit, miss, write, new, delete = CALLS[cache_kind]
    saved = store.create(Record(b"1", NOW + 3600, NOW), NOW)
    assert calls() == new
    record = store.load(saved.token, NOW)
    assert calls() == hit
    assert record is not None
    saved = store.update(saved.token, record._replace(payload=b"2"), NOW)
    assert calls() == write
    cache.delete(OPTIONS.ids.key(saved.token) or "")
    record = store.load(saved.token, NOW)
    assert calls() == miss
    assert record is not None
    assert store.load(saved.token, NOW) == record
    assert calls() == hit
    store.delete(saved.token, NOW, record.version)
    assert calls() == delete


class Site:
    """A counter page over the tiered store, as a site sets it up, in one of its processes."""

    def __init__(self, cache_url: str, store_url: str) -> None:
        self.answer: list[int | None] = []
        self.app = SessionMiddleware(
            self._count,
            {
                "SECRET_KEY": SECRET,
                "SESSION_STORE": "tieredsession.stores.GAESessionStore",
                "SESSION_STORE_URL": store_url,
                "SESSION_CACHE_URL": cache_url,
            },
        )

    def _count(self, environ: Any, start_response: Any) -> list[bytes]:
        session = environ["tieredsession.session"]
        session["count"] = session.get("count", 0) + 1
        count = session["count"]
        start_response("200 OK", [])
        return [b"%d" % count]

    def close(self) -> None:
        store = self.app.manager.store
        assert isinstance(store, TieredSessionStore)
        store.close()

    def visit(self, cookie: str) -> tuple[str, int, str]:
        """Status, count and the cookie afterwards."""
        status, headers = "", []

        def start_response(line: str, lines: Any, exc_info: Any = None) -> Any:
            nonlocal status, headers
            status, headers = line, lines

        environ = {"REQUEST_METHOD": "GET", "HTTP_COOKIE": cookie}
        body = b"".join(self.app(environ, start_response))
        for name, value in headers:
            if name == "Set-Cookie":
                cookie = value.partition(";")[0]
        return status, int(body) if status.startswith("200") else 0, cookie


@pytest.fixture
def open_site() -> Iterator[Callable[[str, str], Site]]:
    """Sites, which are closed in the end."""
    sites: list[Site] = []

    def open_one(cache_url: str, store_url: str) -> Site:
        sites.append(Site(cache_url, store_url))
        return sites[-1]

    yield open_one
    for site in sites:
        site.close()


def test_a_loop_of_requests_through_restarts(
    open_site: Callable[[str, str], Site],
    own_memcached: Callable[..., Memcached],
    start_emulator: Callable[[], Emulator],
    monkeypatch: pytest.MonkeyPatch,
    project: str,
) -> None:
    """While memcached is killed and restarted, no acknowledged change is lost or taken back."""
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", start_emulator().host)
    memcached = own_memcached()
    site = open_site(memcached.url("timeout=1"), f"datastore://{project}?deadline=20")
    _, count, cookie = site.visit("")
    for number in range(1, 40):
        if number % 10 == 5:
            memcached.stop()
        if number % 10 == 8:
            memcached.start()
        status, count, cookie = site.visit(cookie)
        assert (status, count) == ("200 OK", number + 1)
    session = site.app.manager.open(cookie)
    assert session["count"] == 40
    memcached.stop()
    session.destroy()
    site.app.manager.close(session)
    memcached.start()
    assert site.app.manager.open(cookie).new


def test_a_loop_of_requests_through_restarts_of_both(
    open_site: Callable[[str, str], Site],
    own_memcached: Callable[..., Memcached],
    durable_emulator: DurableEmulator,
    project: str,
) -> None:
    """While memcached and Datastore stop and start, each answer of 200 counts exactly once."""
    memcached = own_memcached()
    site = open_site(memcached.url("timeout=1"), f"datastore://{project}?deadline=10")
    status, acknowledged, cookie = site.visit("")
    assert status == "200 OK"
    refused = 0
    for number in range(24):
        if number == 6:
            memcached.stop()
        if number in (8, 16):
            durable_emulator.stop()
        if number == 10:
            memcached.start()
        if number in (10, 18):
            durable_emulator.start()
        status, count, cookie = site.visit(cookie)
        if status.startswith("503"):
            refused += 1
            continue
        assert (status, count) == ("200 OK", acknowledged + 1)
        acknowledged = count
    assert refused >= 2
    assert acknowledged >= 9  # those before the first stop of Datastore
    # The channel takes its time to connect again; until then every answer is 503.
    for _ in range(500):
        status, count, cookie = site.visit(cookie)
        if status == "200 OK":
            break
    assert (status, count) == ("200 OK", acknowledged + 1)
    assert site.app.manager.open(cookie)["count"] == count


def test_an_outage_of_datastore(
    open_site: Callable[[str, str], Site],
    memcached: Memcached,
    start_emulator: Callable[[], Emulator],
    monkeypatch: pytest.MonkeyPatch,
    project: str,
) -> None:
    """Without Datastore a warm session is read, a change answers 503, and nothing is claimed."""
    emulator = start_emulator()
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", emulator.host)
    site = open_site(memcached.url(PATIENT), f"datastore://{project}?deadline=10")
    status, _, cookie = site.visit("")
    assert status == "200 OK"
    assert emulator.process is not None
    emulator.process.terminate()
    emulator.process.wait()
    assert site.app.manager.open(cookie)["count"] == 1  # warm
    assert site.visit(cookie)[0] == "503 Service Unavailable"
    # The slot is marked by now, so that what may have been committed is asked for, not guessed.
    with pytest.raises(StoreUnavailable):
        _ = site.app.manager.open(cookie)["count"]


def test_threads_count_to_the_last(
    open_site: Callable[[str, str], Site], memcached: Memcached, emulator: Emulator, project: str
) -> None:
    """Sixteen visitors' threads through memcached and Datastore lose no count."""
    site = open_site(memcached.url(f"{PATIENT}&pool=32"), f"datastore://{project}?deadline=20")
    wrong: list[object] = []

    def visitor() -> None:
        cookie = ""
        for number in range(1, 9):
            status, count, cookie = site.visit(cookie)
            if (status, count) != ("200 OK", number):
                wrong.append((status, count, number))

    threads = [threading.Thread(target=visitor) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_processes_and_a_clock(
    open_site: Callable[[str, str], Site], memcached: Memcached, emulator: Emulator, project: str
) -> None:
    """What one process writes, another reads at once; what it ends is dead there at once."""
    one, other = (
        open_site(memcached.url(PATIENT), f"datastore://{project}?deadline=20") for _ in range(2)
    )
    clock = FakeClock(NOW)
    for site in (one, other):
        site.app.manager.clock = clock
    _, _, cookie = one.visit("")
    for number in range(2, 8):
        site = (one, other)[number % 2]
        assert site.visit(cookie)[1] == number
    session = other.app.manager.open(cookie)
    session.destroy()
    other.app.manager.close(session)
    assert one.app.manager.open(cookie).new
