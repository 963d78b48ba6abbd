"""From names to stores: imported on demand, made from the settings, refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tieredsession.codec import MsgpackCodec
from tieredsession.contracts import Handle, Record, SessionStore
from tieredsession.errors import (
    CacheError,
    ConfigurationError,
    MissingDependencyError,
    StoreUnavailable,
    UnstorableError,
)
from tieredsession.events import Event, SessionCreated, TokenRefused
from tieredsession.merge import counter
from tieredsession.options import StoreOptions
from tieredsession.registry import CACHES, SERVER_STORES, open_cache, open_manager, open_store
from tieredsession.settings import Settings
from tieredsession.stores.hybrid import HybridSessionStore
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.stores.memory_cache import MemoryCache
from tieredsession.stores.tiered import TieredSessionStore
from tieredsession.testing import Chaos, FakeClock
from tieredsession.tokens import decode_base64

NOW = 1_800_000_000.0
RECORD = Record(b"payload", NOW + 3600, NOW)
STORES = "tieredsession.stores"
MEMORY = {"SESSION_STORE": f"{STORES}.MemorySessionStore"}


def make(**given: Any) -> Settings:
    return Settings({"SECRET_KEY": "only for tests, only for tests, 1", **given})


def pair(line: str | None) -> str:
    """The name and value of a ``Set-Cookie`` line, as a browser sends them back."""
    assert line is not None
    return line.partition(";")[0]


@pytest.fixture
def sqlite(tmp_path: Path) -> dict[str, Any]:
    return {
        "SESSION_STORE": f"{STORES}.SQLiteSessionStore",
        "SESSION_STORE_URL": f"sqlite:///{tmp_path}/s.sqlite3?synchronous=normal",
    }


@pytest.fixture
def open_one() -> Iterator[Callable[[Settings], Any]]:
    """Opens stores, and in the end closes the databases under them."""
    opened: list[Any] = []

    def open_and_note(settings: Settings) -> Any:
        opened.append(open_store(settings))
        return opened[-1]

    yield open_and_note
    for store in opened:
        server = getattr(store, "server", store)
        durable = getattr(server, "durable", server)
        getattr(durable, "close", lambda: None)()


# -- stores -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["MemorySessionStore", "SQLiteSessionStore", "SecureCookieSessionStore"]
)
def test_names_become_stores(
    name: str, sqlite: dict[str, Any], open_one: Callable[[Settings], Any]
) -> None:
    """The store that is named is made, and keeps what it is given."""
    url = sqlite["SESSION_STORE_URL"] if name == "SQLiteSessionStore" else None
    store = open_one(make(SESSION_STORE=f"{STORES}.{name}", SESSION_STORE_URL=url))
    assert type(store).__name__ == name
    saved = store.create(RECORD, NOW)
    assert store.load(saved.token, NOW) == RECORD._replace(version=saved.version)


def test_a_store_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of the application's is made by its from_options, from all that was set."""
    given: list[StoreOptions] = []

    class MyStore(MemorySessionStore):
        @classmethod
        def from_options(cls, options: StoreOptions) -> MyStore:
            given.append(options)
            return cls(options.ids, options.observer)

    module = ModuleType("my_stores")
    vars(module)["MyStore"] = MyStore
    monkeypatch.setitem(sys.modules, "my_stores", module)
    store = open_store(
        make(
            SESSION_STORE="my_stores.MyStore",
            SESSION_STORE_URL="mine://h:1/x",
            SESSION_PREFIX="app:",
            SESSION_COOKIE_NAME="sid",
            SESSION_COOKIE_ENCRYPT=True,
            SESSION_PRINCIPALS=True,
        )
    )
    assert type(store) is MyStore
    (options,) = given
    assert repr(options.url) == "mine://h:1/x"
    assert (options.cookie_name, options.prefix) == ("sid", "app:")
    assert (options.encrypt, options.compress, options.principals) == (True, False, True)
    assert options.observer is None


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module.Store", "cannot be imported (No module named 'no_such_module')"),
        (f"{STORES}.NoStore", "cannot be imported (module"),
        (f"{STORES}.no_such_module.Store", "cannot be imported (No module named"),
        ("SQLiteSessionStore", "cannot be imported"),
        (".SQLiteSessionStore", "cannot be imported"),
        ("..stores.SQLiteSessionStore", "cannot be imported"),
        ("tieredsession.", "cannot be imported"),
        ("tieredsession.url.URL", "is not a store: it has no from_options"),
        ("json.dumps", "is not a store: it has no from_options"),
    ],
)
def test_names_that_are_no_stores(path: str, problem: str) -> None:
    """A name that leads to no store stops the start, with the name and what is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(make(SESSION_STORE=path))
    assert str(caught.value).startswith(f"SESSION_STORE {path!r} {problem}")
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose library is not installed says how to install it."""
    (tmp_path / "a_store_with_an_extra.py").write_text(
        "from tieredsession.errors import MissingDependencyError\n"
        "raise MissingDependencyError('a library', 'an-extra')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[an-extra\]"'):
        open_store(make(SESSION_STORE="a_store_with_an_extra.Store"))


@pytest.mark.parametrize("name", ["MemorySessionStore", "SecureCookieSessionStore"])
def test_urls_of_stores_that_have_none(name: str) -> None:
    """A URL for a store that keeps nothing anywhere stops the start."""
    with pytest.raises(ConfigurationError, match=rf"^SESSION_STORE_URL is set, but {name}"):
        open_store(make(SESSION_STORE=f"{STORES}.{name}", SESSION_STORE_URL="memory://"))


def test_a_bad_url_of_a_store(sqlite: dict[str, Any]) -> None:
    """A URL that cannot be read stops the start, without being quoted."""
    for url in ("/no/scheme", "redis://user:hunter2@h/0", "sqlite:///x?hunter2=1"):
        with pytest.raises(ConfigurationError, match=r"^SESSION_STORE_URL ") as caught:
            open_store(make(**{**sqlite, "SESSION_STORE_URL": url}))
        assert url not in str(caught.value)


def test_nothing_is_imported_before_it_is_named() -> None:
    """Importing the registry imports no store, no cache and none of their libraries."""
    script = (
        "import sys, tieredsession.registry\n"
        "print([m for m in sys.modules if m.startswith('tieredsession.stores')"
        " or m in ('sqlite3', 'redis', 'pymemcache', 'grpc', 'cryptography', 'opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_an_observer_of_the_store_is_told() -> None:
    """The observers hear from the store why a token was refused."""
    heard: list[Event] = []
    store = open_store(make(**MEMORY), [heard.append])
    assert store.load("no token", NOW) is None
    assert heard == [TokenRefused("malformed")]


# -- stores made of stores ----------------------------------------------------------------


def test_a_cache_goes_in_front_of_a_store(
    sqlite: dict[str, Any], open_one: Callable[[Settings], Any]
) -> None:
    """With SESSION_CACHE_URL, the store that is named has that cache in front of it."""
    store = open_one(make(**sqlite, SESSION_CACHE_URL="memory://"))
    assert type(store) is TieredSessionStore
    saved = store.create(RECORD, NOW)
    assert store.load(saved.token, NOW) == RECORD._replace(version=saved.version)


class NotingCache(MemoryCache):
    """Notes for how long the sessions in it are to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.ttls: list[float] = []

    def set(self, key: str, value: bytes, ttl: float) -> Handle | None:
        self.ttls.append(ttl)
        return super().set(key, value, ttl)


def test_how_long_a_session_is_cached(
    sqlite: dict[str, Any], open_one: Callable[[Settings], Any]
) -> None:
    """SESSION_CACHE_AGE is how long a session stays in the cache, give or take a tenth."""
    store = open_one(make(**sqlite, SESSION_CACHE_URL="memory://", SESSION_CACHE_AGE=100))
    store.cache = NotingCache()
    store.create(RECORD, NOW)
    (ttl,) = store.cache.ttls
    assert 90 <= ttl <= 100


@pytest.mark.parametrize("strict", [False, True])
def test_a_logout_that_the_cache_is_not_told_of(
    sqlite: dict[str, Any], open_one: Callable[[Settings], Any], strict: bool
) -> None:
    """With SESSION_STRICT_LOGOUT, and only with it, such a logout is not acknowledged."""
    given = {"SESSION_CACHE_URL": "memory://", "SESSION_STRICT_LOGOUT": strict}
    store = open_one(make(**sqlite, **given))
    saved = store.create(RECORD, NOW)
    chaos = Chaos(CacheError)
    store.cache = chaos.wrap(store.cache)
    chaos.down()
    with pytest.raises(StoreUnavailable) if strict else nullcontext():
        store.delete(saved.token, NOW, saved.version)
    assert store.durable.load(saved.token, NOW) is None


@pytest.mark.parametrize("cache", [None, "memory://"])
def test_a_hybrid_store(
    sqlite: dict[str, Any], open_one: Callable[[Settings], Any], cache: str | None
) -> None:
    """The hybrid store is the cookie store and the server store that its URL names."""
    given = {**sqlite, "SESSION_STORE": f"{STORES}.HybridSessionStore", "SESSION_CACHE_URL": cache}
    store = open_one(make(**given))
    assert type(store) is HybridSessionStore
    assert (type(store.server) is TieredSessionStore) == (cache is not None)
    anonymous = store.create(RECORD, NOW).token
    known = store.create(RECORD._replace(principal="ann"), NOW).token
    assert store.server.load(anonymous, NOW) is None
    assert store.server.load(known, NOW) is not None


def test_a_hybrid_store_of_a_long_path(
    sqlite: dict[str, Any], open_one: Callable[[Settings], Any]
) -> None:
    """What fits into no cookie beside a long path goes to the server, and is not refused."""
    hybrid = {**sqlite, "SESSION_STORE": f"{STORES}.HybridSessionStore"}
    settings = make(**hybrid, SESSION_COOKIE_PATH="/" + 600 * "p", SESSION_COOKIE_COMPRESS=False)
    manager = open_manager(settings, store=open_one(settings))
    for size in range(2400, 2800, 7):
        session = manager.open(None)
        session["x"] = size * "x"
        session.persistent = True
        reply = manager.close(session)
        assert reply is not None
        assert manager.open(pair(reply.set_cookie))["x"] == size * "x"


def test_the_server_of_a_hybrid_store_is_datastore(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hybrid store whose server nobody names has Datastore."""
    monkeypatch.setitem(SERVER_STORES, "datastore", f"{STORES}.MemorySessionStore")
    store = open_store(make(SESSION_STORE=f"{STORES}.HybridSessionStore"))
    assert isinstance(store, HybridSessionStore)
    assert isinstance(store.server, MemorySessionStore)


def test_a_hybrid_store_over_nothing_known() -> None:
    """The hybrid store names the server stores that there are."""
    given = {"SESSION_STORE": f"{STORES}.HybridSessionStore", "SESSION_STORE_URL": "mysql://h"}
    with pytest.raises(
        ConfigurationError, match=r"^SESSION_STORE_URL .*'mysql': use one of datastore, sqlite"
    ):
        open_store(make(**given))


# -- caches -------------------------------------------------------------------------------


def test_a_cache_by_its_url() -> None:
    """A URL becomes the cache of its scheme."""
    cache = open_cache("memory://")
    cache.set("key", b"value", 60)
    entry = cache.get("key")
    assert entry is not None
    assert entry.value == b"value"


def test_unknown_caches() -> None:
    """An unknown scheme stops the start with the ones that there are."""
    with pytest.raises(ConfigurationError) as caught:
        open_cache("http://user:hunter2@h")
    message = str(caught.value)
    assert message.startswith("SESSION_CACHE_URL has the unknown scheme 'http': use one of memory,")
    assert all(scheme in message for scheme in CACHES)
    assert "hunter2" not in message


@pytest.mark.parametrize("text", ["memory", "memory://?unknown=1", "memory://h"])
def test_bad_urls_of_caches(text: str) -> None:
    """A cache URL that cannot be read, or has more than the cache takes, stops the start."""
    with pytest.raises(ConfigurationError, match=r"^SESSION_CACHE_URL "):
        open_cache(text)


# -- managers -----------------------------------------------------------------------------


def test_a_manager_has_all_that_was_set() -> None:
    """The cookie, its lifetimes, the headers beside it and the time are as the settings say."""
    clock = FakeClock(NOW)
    heard: list[Event] = []
    manager = open_manager(
        make(
            **MEMORY,
            SESSION_COOKIE_NAME="sid",
            SESSION_COOKIE_DOMAIN="example.org",
            SESSION_COOKIE_PATH="/app",
            SESSION_COOKIE_HTTPONLY=False,
            SESSION_COOKIE_SAMESITE="None",
            SESSION_COOKIE_PARTITIONED=True,
            SESSION_COOKIE_AGE=600,
            SESSION_ABSOLUTE_AGE=1000,
            SESSION_REFRESH=0.5,
            SESSION_EXPIRE_AT_BROWSER_CLOSE=False,
            SESSION_CACHE_CONTROL="no-store",
            SESSION_MERGE_RULES={"hits": counter},
        ),
        observers=[heard.append],
        clock=clock,
    )
    session = manager.open(None)
    session["hits"] = 1
    reply = manager.close(session)
    assert reply is not None
    assert reply.cache_control == "no-store"
    cookie = pair(reply.set_cookie)
    assert reply.set_cookie == (
        f"{cookie}; Max-Age=600; Domain=example.org; Path=/app; Secure; SameSite=None; Partitioned"
    )
    assert cookie.startswith("sid=")
    assert [type(event) for event in heard] == [SessionCreated]
    assert session.created == NOW
    assert session.expires == NOW + 600

    one, other = manager.open(cookie), manager.open(cookie)
    one["hits"] += 1
    other["hits"] += 1
    manager.close(one)
    manager.close(other)
    assert manager.open(cookie)["hits"] == 3

    for age, expires in [(299, NOW + 600), (301, NOW + 901), (800, NOW + 1000)]:
        clock.now = NOW + age
        session = manager.open(cookie)
        assert session["hits"] == 3
        manager.close(session)
        assert session.expires == expires
    clock.now = NOW + 1000
    assert manager.open(cookie).new


def test_a_manager_over_a_given_store() -> None:
    """A store that is given goes before the one that the settings name."""
    store: SessionStore = open_store(make(**MEMORY))
    assert open_manager(make(SESSION_STORE="no.such.Store"), store=store).store is store


def test_pickle_is_for_those_who_ask() -> None:
    """Only with SESSION_PICKLE does a session take what only pickle keeps."""
    with pytest.raises(UnstorableError, match="SESSION_PICKLE"):
        open_manager(make(**MEMORY)).open(None)["x"] = Fraction(1, 3)
    manager = open_manager(make(**MEMORY, SESSION_PICKLE=True))
    session = manager.open(None)
    session["x"] = Fraction(1, 3)
    reply = manager.close(session)
    assert reply is not None
    assert manager.open(pair(reply.set_cookie))["x"] == Fraction(1, 3)


@pytest.mark.parametrize(
    "given", [{"SESSION_PICKLE": True}, {"SESSION_CACHE_URL": "memory://"}], ids=repr
)
def test_a_cookie_store_by_any_path(given: dict[str, Any]) -> None:
    """A store in cookies has no pickles and no cache, by whatever path it is named."""
    path = "tieredsession.stores.cookie.SecureCookieSessionStore"
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        open_manager(make(SESSION_STORE=path, **given))


def test_a_given_store_in_cookies() -> None:
    """A store in cookies has no pickles, whatever store the settings name."""
    with pytest.raises(ConfigurationError, match="SESSION_PICKLE"):
        open_manager(make(**MEMORY, SESSION_PICKLE=True), store=open_store(make()))


@pytest.mark.parametrize(("encrypt", "first"), [(False, 0x10), (True, 0x20)])
def test_encryption_reaches_the_cookie(encrypt: bool, first: int) -> None:
    """With SESSION_COOKIE_ENCRYPT, what leaves is encrypted, and signed without it."""
    manager = open_manager(make(SESSION_COOKIE_ENCRYPT=encrypt))
    session = manager.open(None)
    session["x"] = 1
    reply = manager.close(session)
    assert reply is not None
    sealed = decode_base64(pair(reply.set_cookie).partition("=")[2])
    assert sealed is not None
    assert sealed[0] & 0xF0 == first


@pytest.mark.parametrize(
    ("name", "compress", "tables"),
    [
        ("SecureCookieSessionStore", True, True),
        ("SecureCookieSessionStore", False, False),
        ("MemorySessionStore", True, False),
    ],
)
def test_tables_are_for_cookies(name: str, compress: bool, tables: bool) -> None:
    """Lists of alike dicts are written as tables where bytes are weighed, and read anywhere."""
    settings = make(SESSION_STORE=f"{STORES}.{name}", SESSION_COOKIE_COMPRESS=compress)
    codec = open_manager(settings).codec
    data = {"cart": [{"sku": number, "quantity": 1} for number in range(9)]}
    assert codec.encode(data) == MsgpackCodec(tables=tables).encode(data)
    assert codec.decode(MsgpackCodec(tables=not tables).encode(data)) == data


def test_old_secrets_open() -> None:
    """With SECRET_KEY_FALLBACKS, sessions from under the old secret go on."""
    old, new = "only for tests, only for tests, 1", "only for tests, only for tests, 2"
    manager = open_manager(make())
    session = manager.open(None)
    session["x"] = 1
    reply = manager.close(session)
    assert reply is not None
    cookie = pair(reply.set_cookie)
    rotated = {"SECRET_KEY": new, "SECRET_KEY_FALLBACKS": [old]}
    assert open_manager(Settings(rotated)).open(cookie)["x"] == 1
    assert open_manager(Settings({"SECRET_KEY": new})).open(cookie).new


def test_observers_of_any_kind() -> None:
    """Observers that can be looked at once are told by the store and by the manager alike."""
    events: list[Event] = []
    manager = open_manager(make(**MEMORY), observers=(one for one in [events.append]))
    session = manager.open("__Host-id=nonsense")
    session["a"] = 1
    manager.close(session)
    assert [type(event) for event in events] == [TokenRefused, SessionCreated]


def test_cookies_are_compressed_where_that_is_said() -> None:
    """With SESSION_COOKIE_COMPRESS a text of many repetitions takes a fraction of the cookie."""
    large = RECORD._replace(payload=b"word " * 200)
    plain, short = (
        len(open_store(make(SESSION_COOKIE_COMPRESS=compress)).create(large, NOW).token)
        for compress in (False, True)
    )
    assert short < plain / 4
