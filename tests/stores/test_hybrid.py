"""The hybrid store: when a session moves from the cookie to the server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tieredsession import Session, Settings
from tieredsession.contracts import Record
from tieredsession.errors import Gone
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.registry import open_manager
from tieredsession.stores.cookie import SecureCookieSessionStore
from tieredsession.stores.hybrid import HybridSessionStore
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.testing import Chaos, FakeClock
from tieredsession.tokens import TOKEN_LENGTH

NOW = 1_800_000_000.0
SMALL = Record(b"small", NOW + 3600, NOW)
LARGE = SMALL._replace(payload=bytes(5000))
OPTIONS = StoreOptions(Keyring("only for tests, only for tests, 1"), "id")


@pytest.fixture
def chaos() -> Chaos:
    return Chaos()


@pytest.fixture
def store(chaos: Chaos) -> HybridSessionStore:
    server = chaos.wrap(MemorySessionStore.from_options(OPTIONS))
    return HybridSessionStore(SecureCookieSessionStore.from_options(OPTIONS), server)


def test_an_anonymous_visitor_costs_the_server_nothing(
    store: HybridSessionStore, chaos: Chaos
) -> None:
    """A small session of nobody is created, read, changed and deleted without the server."""
    saved = store.create(SMALL, NOW)
    more = SMALL._replace(payload=b"more", version=saved.version)
    saved = store.update(saved.token, more, NOW)
    assert store.load(saved.token, NOW) is not None
    store.delete(saved.token, NOW)
    assert chaos.calls == []


def test_a_session_that_outgrows_the_cookie_moves(store: HybridSessionStore) -> None:
    """What no longer fits into a cookie goes to the server, whole, under an id."""
    saved = store.create(SMALL, NOW)
    moved = store.update(saved.token, LARGE._replace(version=saved.version), NOW)
    assert len(moved.token) == TOKEN_LENGTH
    assert store.load(moved.token, NOW) == LARGE._replace(version=moved.version)


def test_a_large_session_begins_on_the_server(store: HybridSessionStore) -> None:
    """What never fitted into a cookie begins on the server."""
    assert len(store.create(LARGE, NOW).token) == TOKEN_LENGTH


def test_a_login_lives_on_the_server(store: HybridSessionStore) -> None:
    """A session of somebody is on the server from its first save, and can be revoked."""
    saved = store.create(SMALL._replace(principal="ann"), NOW)
    assert len(saved.token) == TOKEN_LENGTH
    store.delete(saved.token, NOW)
    assert store.load(saved.token, NOW) is None


def test_a_login_moves_to_the_server(store: HybridSessionStore) -> None:
    """A small session in the cookie that becomes somebody's moves, for there it can be revoked."""
    saved = store.create(SMALL, NOW)
    owned = SMALL._replace(principal="ann", version=saved.version)
    moved = store.update(saved.token, owned, NOW)
    assert len(moved.token) == TOKEN_LENGTH
    assert store.load(moved.token, NOW) == owned._replace(version=moved.version)


def test_a_session_that_shrinks_stays(store: HybridSessionStore) -> None:
    """A session on the server stays there, so that its old states cannot be replayed."""
    saved = store.create(LARGE, NOW)
    again = store.update(saved.token, SMALL._replace(version=saved.version), NOW)
    assert again.token == saved.token


@pytest.mark.parametrize(
    ("principal", "go_on"),
    [(None, lambda session: session.renew()), ("ann", lambda session: session.bind(None))],
    ids=["renew", "bind"],
)
def test_a_session_under_a_new_id_stays(
    store: HybridSessionStore, principal: str | None, go_on: Callable[[Session], None]
) -> None:
    """What was kept on the server is not put into a cookie by a new id, which goes on there."""
    settings = Settings({"SECRET_KEY": "a long enough text, for tests alone: 0123456789"})
    manager = open_manager(settings, store=store, clock=FakeClock(NOW))
    record = Record(manager.codec.encode({"a": 1}), NOW + 3600, NOW, principal)
    token = store.server.create(record, NOW).token
    session = manager.open(f"__Host-id={token}")
    go_on(session)
    reply = manager.close(session)
    assert reply is not None
    assert reply.set_cookie is not None
    successor = reply.set_cookie.partition(";")[0].partition("=")[2]
    assert len(successor) == TOKEN_LENGTH
    assert successor != token
    assert store.load(token, NOW) is None


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
def test_a_cookie_under_a_new_id(store: HybridSessionStore, record: Record) -> None:
    """What goes on from a cookie under a new id stays there while it fits."""
    token = store.create(SMALL, NOW).token
    saved = store.create_successor(token, record, NOW)
    assert (len(saved.token) == TOKEN_LENGTH) is (record is LARGE)


def test_the_expired_does_not_move(store: HybridSessionStore) -> None:
    """A session that has expired in the cookie is not brought to life on the server."""
    saved = store.create(SMALL, NOW)
    late = LARGE._replace(expires=NOW + 9000, version=saved.version)
    with pytest.raises(Gone):
        store.update(saved.token, late, NOW + 7200)


def test_closing_closes_the_server(store: HybridSessionStore) -> None:
    """What the part on the server holds open is closed with the store."""
    closed: list[bool] = []
    store.server.close = lambda: closed.append(True)  # type: ignore[attr-defined]  # stands in
    store.close()
    assert closed == [True]


def test_closing_what_holds_nothing_open() -> None:
    """A store whose part on the server has nothing to close can be closed as any other."""
    cookie = SecureCookieSessionStore.from_options(OPTIONS)
    HybridSessionStore(cookie, MemorySessionStore.from_options(OPTIONS)).close()
