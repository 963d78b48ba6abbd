"""The security checklist: what a cookie says, what a thief gets, what others can read."""

from __future__ import annotations

import base64
import pickle
import re
import secrets
import sqlite3
import traceback
from contextlib import closing
from email.message import Message
from http.cookiejar import CookieJar
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request
from urllib.response import addinfourl

import pytest

from tieredsession import ConfigurationError, Session, SessionMiddleware
from tieredsession.observers import LoggingObserver, describe

if TYPE_CHECKING:
    from conftest import MakeSite, Site

    from tieredsession.testing import FakeClock

DAY = 24 * 3600
OLD, NEW, NEWER = (f"key number {number}: " + "0123456789abcdef" * 2 for number in range(3))


# -- the cookie's line ----------------------------------------------------------------


def test_the_default_line(site: Site) -> None:
    """A cookie is host-only, Secure, HttpOnly and Lax, each said once (security 5, 20, 21)."""
    name, *attributes = site.browser().put(a=1).set_cookie.split("; ")
    assert name.startswith("__Host-id=")
    assert attributes == ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"]


LINES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "domain": (
        {"SESSION_COOKIE_DOMAIN": "example.org"},
        ["__Secure-id", "Domain=example.org", "Path=/", "Secure", "HttpOnly", "SameSite=Lax"],
    ),
    "path": (
        {"SESSION_COOKIE_PATH": "/app"},
        ["__Secure-id", "Path=/app", "Secure", "HttpOnly", "SameSite=Lax"],
    ),
    "name": (
        {"SESSION_COOKIE_NAME": "shop"},
        ["shop", "Path=/", "Secure", "HttpOnly", "SameSite=Lax"],
    ),
    "plain http": (
        {"SESSION_COOKIE_SECURE": False},
        ["id", "Path=/", "HttpOnly", "SameSite=Lax"],
    ),
    "for scripts": (
        {"SESSION_COOKIE_HTTPONLY": False},
        ["__Host-id", "Path=/", "Secure", "SameSite=Lax"],
    ),
    "strict": (
        {"SESSION_COOKIE_SAMESITE": "strict"},
        ["__Host-id", "Path=/", "Secure", "HttpOnly", "SameSite=Strict"],
    ),
    "embedded": (
        {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_PARTITIONED": True},
        ["__Host-id", "Path=/", "Secure", "HttpOnly", "SameSite=None", "Partitioned"],
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_every_line_has_the_same_attributes(make_site: MakeSite, name: str) -> None:
    """What sets, changes, renews and deletes a cookie differs in nothing else (67, 49, 66)."""
    settings, (cookie, *attributes) = LINES[name]
    site = make_site(**settings)
    site.clock.advance(1)
    header, lines = "", []
    for step in ("begin", "renew", "logout"):

        def view(session: Session, step: str = step) -> None:
            if step == "logout":
                session.destroy()
            else:
                session["step"] = step
                session.renew()

        visit = site.send(header, view)
        lines.append(visit.set_cookie)
        header = visit.set_cookie.partition(";")[0]
    for line in lines[:2]:
        assert re.fullmatch(re.escape(cookie) + "=[A-Za-z0-9_-]+", line.split("; ")[0])
        assert line.split("; ")[1:] == attributes
    gone = ["Expires=Thu, 01 Jan 1970 00:00:00 GMT", "Max-Age=0"]
    assert lines[2].split("; ") == [f"{cookie}=", *gone, *attributes]


def test_any_data_makes_a_clean_cookie(site: Site) -> None:
    """Whatever the data, the value has octets that need no quoting (security 36)."""
    for size in range(0, 300, 7):
        token = site.browser().put(data=secrets.token_bytes(size)).token
        assert re.fullmatch("[A-Za-z0-9_-]+", token)


def test_one_set_cookie_for_all(site: Site) -> None:
    """A request that does everything at once sets one cookie (security 26)."""
    browser = site.browser(a=1)
    visit = browser.visit(
        lambda session: session.update(b=2),
        lambda session: session.save(),
        lambda session: session.renew(),
        lambda session: session.save(),
        lambda session: session.destroy(),
        lambda session: session.save(),
        lambda session: session.bind("ann"),
        lambda session: session.update(c=3),
    )
    assert len(visit.set_cookies) == 1
    assert browser.visit(lambda s: (s.principal, dict(s))).result == ("ann", {"c": 3})


@pytest.mark.any_store
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("forwarded", ["http", "https", None])
def test_secure_is_no_guess(site: Site, scheme: str, forwarded: str | None) -> None:
    """Secure is said whatever scheme a request or a header claims (lineage 64, security 24, 25)."""
    base = {} if forwarded is None else {"HTTP_X_FORWARDED_PROTO": forwarded}
    visit = site.browser().visit(
        lambda session: session.update(a=1), base_url=f"{scheme}://localhost", environ_base=base
    )
    assert "; Secure;" in visit.set_cookie


def test_a_dropped_cookie(site: Site) -> None:
    """A browser that lost its cookie is a new visitor, and no error (security 35)."""
    browser = site.browser(a=1)
    browser.client.delete_cookie(site.cookie_name)
    assert browser.data() == {}
    assert site.events == []


# -- the headers beside it ------------------------------------------------------------


@pytest.mark.any_store
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "Cookie"),
        ([("Vary", "Accept-Encoding")], "Accept-Encoding, Cookie"),
        ([("vary", "Accept"), ("Vary", "Origin")], "Accept, Origin, Cookie"),
        ([("Vary", "cookie")], "cookie"),
        ([("Vary", "*")], "*"),
    ],
)
def test_vary(site: Site, given: list[tuple[str, str]], expected: str) -> None:
    """A response that read the session varies on Cookie, once (lineage R30, security 74)."""
    headers = site.browser(a=1).visit(dict, headers=given).response.headers
    assert headers.getlist("Vary") == [expected]
    assert "Cache-Control" not in headers
    assert "Set-Cookie" not in headers


@pytest.mark.any_store
@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        ("private", [], "private"),
        ("no-store", [], "no-store"),
        ("private", [("Cache-Control", "no-store")], "no-store"),
        ("private", [("Cache-Control", "max-age=60")], "max-age=60, private"),
        ("private", [("Cache-Control", "public, max-age=60")], "max-age=60, private"),
        ("private", [("Cache-Control", "s-maxage=9"), ("cache-control", "x")], "x, private"),
        ("private", [("Cache-Control", 'private="set-cookie"')], "private"),
        ("private", [("Cache-Control", "PRIVATE")], "PRIVATE"),
        ("no-store", [("Cache-Control", "private")], "no-store"),
        ("no-store", [("Cache-Control", "public, max-age=60")], "no-store"),
    ],
)
def test_no_shared_cache_keeps_a_cookie(
    make_site: MakeSite, wanted: str, given: list[tuple[str, str]], expected: str
) -> None:
    """A response that sets a cookie is not for shared caches; what is stricter stays (74)."""
    site = make_site(SESSION_CACHE_CONTROL=wanted)
    visit = site.browser().visit(lambda session: session.update(a=1), headers=given)
    assert visit.response.headers.getlist("Cache-Control") == [expected]
    assert visit.response.headers.getlist("Vary") == ["Cookie"]


# -- what a token tells ---------------------------------------------------------------


@pytest.mark.server_stores
def test_an_id_is_opaque(site: Site) -> None:
    """An id is random and of one length, whatever it stands for (lineage 73, security 4)."""
    tokens = [site.browser(user="ann", n=n, filler="x" * n * 100).cookie for n in range(20)]
    assert {len(token) for token in tokens} == {32}
    raw = [base64.urlsafe_b64decode(token) for token in tokens]
    for index in range(24):
        assert len({data[index] for data in raw}) > 10


@pytest.mark.parametrize("kind", ["cookie-encrypted"])
def test_an_encrypted_cookie_tells_nothing(site: Site) -> None:
    """Encrypted data shows neither its text, nor that it is the same, nor its length (68, 69)."""
    browsers = [site.browser(who=who) for who in ("ann-smith", "ann-smith", "Bartholomew")]
    tokens = [browser.cookie for browser in browsers]
    assert len(set(tokens)) == 3
    assert len({len(token) for token in tokens}) == 1
    assert all(b"ann-smith" not in base64.urlsafe_b64decode(token + "==") for token in tokens)


def test_an_id_goes_nowhere_else(site: Site) -> None:
    """No body, header or event but the Set-Cookie line has the token (security 11, 78)."""
    browser = site.browser()
    views: list[Any] = [
        lambda session: session.update(a=1),
        lambda session: session.bind("ann"),
        dict,
        lambda session: session.renew(),
        lambda session: session.destroy(),
    ]
    tokens: list[str] = []
    texts: list[str] = []
    for view in views:
        visit = browser.visit(view)
        tokens.append(browser.cookie)
        headers = [(k, v) for k, v in visit.response.headers if k != "Set-Cookie"]
        texts += [visit.response.text, repr(headers), repr(visit.result)]
    texts += [describe(event) for event in site.events]
    for token in filter(None, tokens):
        assert all(token not in text and token[:12] not in text for text in texts)


# -- what rests in the store ----------------------------------------------------------


def _dump(site: Site) -> bytes:
    """Every byte of the database's files."""
    assert site.database is not None
    folder = Path(site.database).parent
    return b"".join(path.read_bytes() for path in sorted(folder.glob("sessions.sqlite3*")))


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("encrypt", [True, False])
def test_a_dump_opens_no_session(make_site: MakeSite, encrypt: bool) -> None:
    """A dump has neither token nor its bytes, and no data where it is encrypted (security 6)."""
    site = make_site(SESSION_COOKIE_ENCRYPT=encrypt)
    browser = site.browser(card="4111-1111")
    browser.visit(lambda session: session.bind("ann-smith"))
    token = browser.cookie
    dump = _dump(site)
    raw = base64.urlsafe_b64decode(token)
    for part in (token.encode(), raw, raw[:16], raw[:16].hex().encode()):
        assert part not in dump
    for text in (b"4111-1111", b"ann-smith"):
        assert (text in dump) is not encrypt


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_stored_key_is_no_cookie(site: Site) -> None:
    """Who reads the database's keys has no session by them (security 7)."""
    browser = site.browser(a=1)
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        ((key,),) = connection.execute("SELECT key FROM sessions").fetchall()
    digest = bytes.fromhex(key)
    for token in (key, key[:32], base64.urlsafe_b64encode(digest[:24]).decode()):
        browser.cookie = token
        assert browser.data() == {}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_two_applications_on_one_file(make_site: MakeSite) -> None:
    """Applications of different prefixes share a file and no session (security 90)."""
    shop, blog = make_site(SESSION_PREFIX="shop:"), make_site(SESSION_PREFIX="blog:")
    customer, reader = shop.browser(a="shop"), blog.browser(a="blog")
    assert shop.rows == blog.rows == 2
    assert shop.send(shop.header(reader.cookie)).result == {}
    assert blog.send(blog.header(customer.cookie)).result == {}
    assert shop.events.reasons == blog.events.reasons == ["forged"]
    assert customer.data() == {"a": "shop"}
    reader.visit(lambda session: session.destroy())
    assert customer.data() == {"a": "shop"}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_two_applications_name_their_users_apart(make_site: MakeSite) -> None:
    """A user of two applications on one file stands under another name in each (security 90)."""
    sites = [make_site(SESSION_PREFIX=p, SESSION_PRINCIPALS=True) for p in ("shop:", "blog:")]
    for site in sites:
        site.browser().visit(lambda session: session.bind("ann"))
    assert sites[0].database is not None
    with closing(sqlite3.connect(sites[0].database)) as connection:
        owners = connection.execute("SELECT DISTINCT owner FROM sessions").fetchall()
    assert len(owners) == 2
    assert sites[0].manager.end_all("ann") == 1
    assert len(sites[1].manager.sessions_of("ann")) == 1


# -- fixation -------------------------------------------------------------------------


def test_no_id_from_outside_is_taken_over(site: Site) -> None:
    """Who logs in with a cookie that somebody else made gets one of ours (security 8, 13)."""
    browser = site.browser()
    for planted in ("A" * 32, "admin", secrets.token_urlsafe(24)):
        browser.cookie = planted
        visit = browser.visit(lambda session: session.bind("ann"), lambda s: s.update(a=1))
        assert visit.token not in ("", planted)
        browser.client.delete_cookie(site.cookie_name)


@pytest.mark.server_stores
def test_a_planted_session_is_worthless_after_login(site: Site) -> None:
    """A thief who knows the id from before the login sees nothing of the login (security 13)."""
    thief = site.browser(cart=[1])
    victim = thief.copy()
    victim.visit(lambda session: session.bind("ann"), lambda session: session.update(card="4111"))
    assert victim.data() == {"cart": [1], "card": "4111"}
    assert thief.data() == {}


# -- logout ---------------------------------------------------------------------------


@pytest.mark.server_stores
@pytest.mark.parametrize("later", [0, 0.001, 1, 3600])
def test_a_replayed_cookie_after_logout(
    make_site: MakeSite, clock: FakeClock, later: float
) -> None:
    """After a logout the old cookie opens nothing, on no node, at no time (R1, security 45)."""
    site = make_site()
    other_node = make_site(store=site.real_store)
    browser = site.browser(a=1)
    stolen = site.header(browser.cookie)
    assert other_node.send(stolen).result == {"a": 1}
    browser.visit(lambda session: session.destroy())
    clock.advance(later)
    assert site.send(stolen).result == {}
    assert other_node.send(stolen).result == {}


@pytest.mark.server_stores
def test_a_replayed_cookie_after_renewal(make_site: MakeSite) -> None:
    """After a renewal the old cookie opens nothing, on any node (R2, security 13, 16)."""
    site = make_site()
    other_node = make_site(store=site.real_store)
    browser = site.browser(a=1)
    stolen = site.header(browser.cookie)
    browser.visit(lambda session: session.renew())
    assert site.send(stolen).result == {}
    assert other_node.send(stolen).result == {}
    assert other_node.send(site.header(browser.cookie)).result == {"a": 1}


@pytest.mark.cookie_stores
def test_a_cookie_store_cannot_revoke(site: Site, clock: FakeClock) -> None:
    """A copy of a cookie outlives a logout until it expires, and the store says so (70)."""
    assert site.store.revocable is False
    browser = site.browser(a=1)
    stolen = site.header(browser.cookie)
    assert browser.visit(lambda session: session.destroy()).deletes_cookie
    assert browser.data() == {}
    assert site.send(stolen).result == {"a": 1}
    clock.advance(14 * DAY)
    assert site.send(stolen).result == {}


def test_the_cookie_stores_expiry_survives_a_save(site: Site, clock: FakeClock) -> None:
    """The expiry is sealed in, and a save of the data keeps it (lineage R16)."""
    browser = site.browser(a=1)
    clock.advance(DAY)
    browser.put(a=2)
    clock.advance(13 * DAY)
    assert browser.data() == {}


# -- keys -----------------------------------------------------------------------------

SEALED = pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "sqlite"])


@SEALED
def test_a_new_key_with_the_old_one_as_fallback(make_site: MakeSite) -> None:
    """A new secret takes over without a logout while the old one is a fallback (66)."""
    browser = make_site(SECRET_KEY=OLD).browser(a=1)
    site = make_site(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OLD])
    assert dict(site.open(browser)) == {"a": 1}


@SEALED
def test_a_key_from_a_file(make_site: MakeSite) -> None:
    """The line break at the end of a file is no part of a secret, now and as a fallback (66)."""
    browser = make_site(SECRET_KEY=f"{OLD}\n").browser(a=1)
    for fallbacks in (OLD, f"{NEWER},{OLD}\n", [f"{OLD}\n"]):
        site = make_site(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=fallbacks)
        assert dict(site.open(browser)) == {"a": 1}


@SEALED
def test_a_new_key_without_the_old_one(make_site: MakeSite) -> None:
    """Without the old secret there is no session and no error, and another can begin (62, 66)."""
    browser = make_site(SECRET_KEY=OLD).browser(a=1)
    site = make_site(SECRET_KEY=NEW)
    assert site.send(site.header(browser.cookie)).result == {}
    assert site.events.reasons == ["forged"]
    assert site.browser(b=2).data() == {"b": 2}


@pytest.mark.cookie_stores
def test_a_write_moves_a_session_to_the_new_key(make_site: MakeSite) -> None:
    """What was saved under the new secret lives on when the old one is taken away (66)."""
    browser = make_site(SECRET_KEY=OLD).browser(a=1)
    both = make_site(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OLD])
    session = both.open(browser)
    session["b"] = 2
    browser.take(both.manager.close(session))
    assert dict(make_site(SECRET_KEY=NEW).open(browser)) == {"a": 1, "b": 2}


@SEALED
def test_a_ring_of_three(make_site: MakeSite) -> None:
    """Each secret of the ring opens what it sealed; one that is removed ends its own alone (66)."""
    ring = {key: make_site(SECRET_KEY=key).browser(a=key) for key in (OLD, NEW, NEWER)}
    site = make_site(SECRET_KEY=NEWER, SECRET_KEY_FALLBACKS=[NEW, OLD])
    for key, browser in ring.items():
        assert dict(site.open(browser)) == {"a": key}
    site = make_site(SECRET_KEY=NEWER, SECRET_KEY_FALLBACKS=f"{NEW},")
    assert [bool(site.open(browser)) for browser in ring.values()] == [False, True, True]


@SEALED
def test_two_nodes_while_a_key_rolls_out(make_site: MakeSite) -> None:
    """Two nodes of which one seals with the new secret open each other's sessions (67)."""
    old_node = make_site(SECRET_KEY=OLD, SECRET_KEY_FALLBACKS=[NEW])
    new_node = make_site(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OLD])
    for one, other in [(old_node, new_node), (new_node, old_node)]:
        browser = one.browser(a=1)
        session = other.open(browser)
        session["b"] = 2
        browser.take(other.manager.close(session))
        assert dict(one.open(browser)) == {"a": 1, "b": 2}


@pytest.mark.cookie_stores
def test_encryption_is_switched_on(make_site: MakeSite) -> None:
    """Signed cookies are still read where new ones are encrypted, and the other way round."""
    for first, second in [(False, True), (True, False)]:
        browser = make_site(SESSION_COOKIE_ENCRYPT=first).browser(a=1)
        assert dict(make_site(SESSION_COOKIE_ENCRYPT=second).open(browser)) == {"a": 1}


def test_a_missing_secret() -> None:
    """Without a secret there is no start (lineage 82)."""
    with pytest.raises(ConfigurationError, match="SECRET_KEY is not set"):
        SessionMiddleware(lambda environ, start: [], {})


def test_secrets_do_not_show(make_site: MakeSite) -> None:
    """No repr and no pickle of what holds the secret shows it (security 88)."""
    site = make_site(SECRET_KEY=NEW)
    holders: list[Any] = [
        site.settings,
        site.manager,
        site.middleware,
        site.real_store,
        site.manager.open(None),
    ]
    for holder in holders:
        assert NEW not in repr(holder)
        assert "key number" not in repr(holder)
    for holder in (site.settings, site.manager, site.real_store):
        with pytest.raises(TypeError):
            pickle.dumps(holder)


# -- errors and logs ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_error_shows_no_data(site: Site) -> None:
    """The trace of a failed save has neither the token nor the key nor the data (77, 88)."""
    browser = site.browser(card="4111-1111")
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        connection.execute("DROP TABLE sessions")
    try:
        browser.put(a=1)
    except Exception as error:  # of whatever kind: it is the trace that counts
        text = "".join(traceback.format_exception(error))
        assert "no such table" in text
        assert browser.cookie not in text
        assert "4111-1111" not in text
    else:
        raise AssertionError("the store did not fail")


def test_a_log_line_is_one_line(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """What a visitor chose cannot begin a line of its own in the log (security 79)."""
    caplog.set_level("DEBUG", "tieredsession")
    site = make_site(observers=[LoggingObserver()], SESSION_MERGE_RULES={})
    browser = site.browser(a=1)
    for value in ("x\r\nINFO forged", "\x1b[2J", "\u2028"):
        one, two = site.open(browser), site.open(browser)
        one[value] = 1
        two[value] = 2
        for session in (one, two):
            browser.take(site.manager.close(session))
        site.send(site.header(value))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) > 6
    assert all(line.isprintable() and len(line.splitlines()) == 1 for line in lines)


def test_a_log_has_no_payload(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """The log of a whole life names no value of the session and no token (security 78)."""
    caplog.set_level("DEBUG", "tieredsession")
    site = make_site(observers=[LoggingObserver()])
    browser = site.browser(card="4111-1111")
    tokens = [browser.cookie]
    browser.visit(lambda session: session.bind("ann-smith"))
    tokens.append(browser.cookie)
    browser.visit(lambda session: session.destroy())
    site.send(site.header(tokens[0] + "x"))
    for text in ("4111-1111", "ann-smith", *tokens):
        assert text not in caplog.text
    assert "SessionEnded" in caplog.text
    assert "TokenRefused session=None reason=" in caplog.text


# -- cookies that others can send -----------------------------------------------------


@pytest.mark.any_store
def test_one_domain(make_site: MakeSite) -> None:
    """A cookie of one domain is not sent to another, whose visitor is new (lineage 76)."""
    site = make_site(SESSION_COOKIE_DOMAIN="example.org")
    browser = site.browser()

    def count(session: Session) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    hosts = ["www.example.org", "api.example.org", "example.org", "example.com"]
    counts = [browser.visit(count, base_url=f"https://{host}/").result for host in hosts]
    assert counts == [1, 2, 3, 1]


@pytest.mark.any_store
def test_a_plain_client_of_a_secure_cookie(site: Site) -> None:
    """A client that keeps to Secure never sends the cookie over plain http (lineage 65, 24)."""
    headers = Message()
    headers["Set-Cookie"] = site.browser().put(a=1).set_cookie
    jar = CookieJar()
    response = addinfourl(BytesIO(), headers, "https://localhost/")
    jar.extract_cookies(response, Request("https://localhost/"))  # type: ignore[arg-type]  # close enough
    for scheme, sent in [("https", True), ("http", False)]:
        request = Request(f"{scheme}://localhost/")
        jar.add_cookie_header(request)
        assert request.has_header("Cookie") is sent
