"""Cookies that are not as we sent them: one answer, no exception, one event each."""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tieredsession import Record
from tieredsession.codec import MsgpackCodec
from tieredsession.cookies import find
from tieredsession.envelope import Envelope
from tieredsession.events import TokenRefused
from tieredsession.keyring import Keyring

if TYPE_CHECKING:
    from conftest import MakeSite, Site

    from tieredsession.testing import FakeClock

SECRET = "a long enough text, for tests alone: 0123456789"
OTHER = "another secret, which has as many characters: 42"


def decode(token: str) -> bytes:
    """The bytes behind a token."""
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def encode(data: bytes) -> str:
    """The token of some bytes."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class CountingCodec(MsgpackCodec):
    """The codec, with a count of what it decoded."""

    decoded = 0

    def decode(self, payload: bytes) -> dict[str, Any]:
        self.decoded += 1
        return super().decode(payload)


# -- a changed cookie -----------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[str], str], str]] = {
    "reversed": (lambda token: token[::-1], ""),
    "a plain word": (lambda token: "hello", "malformed"),
    "too few parts": (lambda token: token[:3], ""),
    "cut": (lambda token: token[:-4], ""),
    "longer": (lambda token: token + "AAAA", ""),
    "twice": (lambda token: token + token, ""),
    "not base64": (lambda token: token[:5] + "!" + token[6:], "malformed"),
    "padded": (lambda token: token + "=", "malformed"),
    "quoted": (lambda token: f'"{token}"', "malformed"),
    "other alphabet": (lambda token: "+/" + token[2:], "malformed"),
    "with spaces": (lambda token: token[:8] + " " + token[8:], "malformed"),
    "all zero": (lambda token: "A" * len(token), ""),
    "random": (lambda token: encode(os.urandom(len(decode(token)))), ""),
    "non-ascii": (lambda token: token[:-1] + "é", "malformed"),
    "a unicode digit": (lambda token: token[:-1] + "\u00b2", "malformed"),
    "a nul": (lambda token: token[:4] + "\x00" + token[4:], "malformed"),
    "a path": (lambda token: "../../etc/passwd", "malformed"),
    "a cache command": (lambda token: "get\tx", "malformed"),
    "a wildcard": (lambda token: "*", "malformed"),
    "251 bytes": (lambda token: "a" * 251, ""),
    "5000 bytes": (lambda token: "a" * 5000, "oversized"),
    "a megabyte": (lambda token: "é" * 2**19, "oversized"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_cookie_is_no_session(site: Site, name: str) -> None:
    """A changed or invented cookie is an empty session, once told and once deleted (50-55, 9)."""
    change, reason = CHANGES[name]
    good = site.browser(a=1).cookie
    codec = site.manager.codec = CountingCodec()
    visit = site.send(site.header(change(good)), lambda s: (s.get("a"), s.new, dict(s)))
    assert visit.response.status_code == 200
    assert visit.result == (None, True, {})
    assert visit.deletes_cookie
    assert codec.decoded == 0
    (event,) = site.events
    assert isinstance(event, TokenRefused)
    assert event.session is None
    assert event.reason in ([reason] if reason else ["malformed", "forged"])
    assert site.send(site.header(good)).result == {"a": 1}


def test_a_bad_cookie_is_expired_once(site: Site) -> None:
    """The first reply deletes a bad cookie, and the second has nothing to say (lineage R15)."""
    browser = site.browser()
    browser.cookie = "nonsense"
    assert browser.visit(dict).deletes_cookie
    site.events.clear()
    assert browser.visit(dict).set_cookies == []
    assert site.events == []


def test_a_bad_cookie_that_nobody_looks_at(site: Site) -> None:
    """A bad cookie is left alone by a request that does not touch the session."""
    browser = site.browser()
    browser.cookie = "nonsense"
    assert browser.visit(lambda session: None).set_cookies == []
    assert site.events == []


def test_a_new_session_replaces_a_bad_cookie(site: Site) -> None:
    """A write in the request of a bad cookie begins a session, under an id of ours (8)."""
    browser = site.browser()
    browser.cookie = "A" * 32
    visit = browser.put(a=1)
    assert not visit.deletes_cookie
    assert visit.token != "A" * 32
    assert browser.data() == {"a": 1}


def test_every_bit_counts(site: Site) -> None:
    """A cookie with any one bit changed is refused, and nothing of it is decoded (security 58)."""
    good = decode(site.browser(a=1).cookie)
    codec = site.manager.codec = CountingCodec()
    for bit in range(len(good) * 8):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        assert dict(site.manager.open(site.header(encode(bytes(changed))))) == {}
    assert codec.decoded == 0
    assert len(site.events) == len(good) * 8
    assert set(site.events.reasons) <= {"forged", "malformed"}


def test_every_length_is_refused(site: Site) -> None:
    """A cookie cut at any length, or less than a tag, is refused without an exception (59)."""
    good = site.browser(a=1).cookie
    raw = decode(good)
    cuts = [good[:length] for length in range(1, len(good))]
    cuts += [encode(raw[:length]) for length in range(1, len(raw))]
    cuts += [encode(raw[-length:]) for length in (1, 8, 15, 16, 17, 28, 29)]
    for cut in set(cuts) - {good}:
        assert dict(site.manager.open(site.header(cut))) == {}
    assert set(site.events.reasons) <= {"forged", "malformed"}


@pytest.mark.cookie_stores
def test_no_other_version(site: Site) -> None:
    """There is no version, flag or algorithm that lets a cookie pass without its tag (61)."""
    good = decode(site.browser(a=1).cookie)
    for version in set(range(256)) - {good[0]}:
        changed = bytes([version]) + good[1:]
        assert dict(site.manager.open(site.header(encode(changed)))) == {}
    assert len(site.events.reasons) == 255


@pytest.mark.cookie_stores
def test_nobody_extends_a_session(site: Site, clock: FakeClock) -> None:
    """A client who edits the times in a cookie has no session (security 41)."""
    good = decode(site.browser(a=1).cookie)
    clock.advance(15 * 24 * 3600)
    for late in (b"\xff\xff\xff\xff", int(clock.now + 1000).to_bytes(4, "big")):
        changed = good[:1] + late + good[5:]
        assert dict(site.manager.open(site.header(encode(changed)))) == {}
    assert site.events.reasons == ["forged", "forged"]


@pytest.mark.parametrize("kind", ["cookie-signed"])
def test_a_valid_seal_over_nonsense(site: Site, clock: FakeClock) -> None:
    """An authentic cookie whose data cannot be decoded is no session, and goes (lineage 56)."""
    envelope = Envelope(Keyring(SECRET), f"cookie:{site.cookie_name}")
    for payload in (b"", b"\xc1", b"no msgpack", b"\x93\x01\x02\x03", b"\x81\x01\x02"):
        record = Record(payload, clock.now + 60, clock.now)
        visit = site.send(site.header(encode(envelope.seal(record))))
        assert visit.result == {}
        assert visit.deletes_cookie
    assert site.events.reasons == ["undecodable"] * 5


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "sqlite"])
def test_the_wrong_secret(make_site: MakeSite) -> None:
    """Under another secret a cookie is no session, and one can begin (lineage 57, 60)."""
    browser = make_site().browser(count=7)
    site = make_site(SECRET_KEY=OTHER)
    visit = site.send(site.header(browser.cookie), lambda s: (s.new, s.modified, dict(s)))
    assert visit.result == (True, False, {})
    assert site.events.reasons == ["forged"]
    assert site.send(site.header(browser.cookie), lambda s: s.update(count=1)).token


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "sqlite"])
def test_a_cookie_of_another_name(make_site: MakeSite) -> None:
    """What was sealed for one cookie is refused under another name (lineage 75, security 63)."""
    token = make_site(SESSION_COOKIE_NAME="__Host-shop").browser(a=1).cookie
    site = make_site(SESSION_COOKIE_NAME="__Host-admin")
    assert site.send(f"__Host-admin={token}").result == {}
    assert site.events.reasons == ["forged"]


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "sqlite"])
def test_a_cookie_of_another_application(make_site: MakeSite) -> None:
    """Applications of different prefixes, with all else in common, share no cookie (63, 90)."""
    token = make_site(SESSION_PREFIX="shop:").browser(a=1).cookie
    for prefix in ("", "blog:"):
        site = make_site(SESSION_PREFIX=prefix)
        assert site.send(site.header(token)).result == {}
        assert site.events.reasons == ["forged"]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_cookie_of_another_kind(make_site: MakeSite) -> None:
    """What one store sealed is refused by the others, and costs no call (R25, security 63)."""
    cookie_store = "tieredsession.stores.SecureCookieSessionStore"
    server = make_site()
    cookie = make_site(SESSION_STORE=cookie_store, SESSION_STORE_URL="")
    id_token, data_token = server.browser(a=1).cookie, cookie.browser(a=1).cookie
    server.events.clear()
    assert cookie.send(cookie.header(id_token)).result == {}
    assert server.send(server.header(data_token)).result == {}
    assert len(cookie.events) == len(server.events) == 1
    assert {*cookie.events.reasons, *server.events.reasons} <= {"malformed", "forged"}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_an_id_of_no_session(make_site: MakeSite, kind: str) -> None:
    """An authentic id that stands for nothing here is told, and is not taken over (security 8)."""
    elsewhere = "sqlite:///{folder}/elsewhere.sqlite3"
    other = make_site(**({} if kind == "memory" else {"SESSION_STORE_URL": elsewhere}))
    site, browser = make_site(), other.browser(a=1)
    visit = site.send(site.header(browser.cookie))
    assert visit.result == {}
    assert visit.deletes_cookie
    assert site.events.reasons == ["unknown"]
    assert len(site.events.labels[0] or "") == 12
    visit = site.send(site.header(browser.cookie), lambda session: session.update(a=1))
    assert visit.token not in ("", browser.cookie)


# -- several cookies of our name ------------------------------------------------------


@pytest.mark.parametrize("turn", [1, -1], ids=["first", "last"])
def test_one_of_two_cookies_is_valid(site: Site, turn: int) -> None:
    """Of two cookies of our name the valid one is used, in either order (security 32)."""
    good = site.browser(a=1).cookie
    pair = [site.header(good), site.header("nonsense")][::turn]
    visit = site.send("; ".join(pair), lambda s: (dict(s), s.update(b=2)))
    assert visit.result[0] == {"a": 1}
    assert site.events.reasons == ["malformed"]


@pytest.mark.parametrize("turn", [1, -1], ids=["first", "last"])
def test_two_valid_cookies(site: Site, turn: int) -> None:
    """Two valid and different cookies of our name are no session, in either order (32)."""
    pair = [site.header(site.browser(a=n).cookie) for n in range(2)][::turn]
    visit = site.send("; ".join(pair))
    assert visit.result == {}
    assert site.events.reasons == ["ambiguous"]


def test_the_same_cookie_twice(site: Site) -> None:
    """One cookie that is sent twice is one cookie."""
    header = site.header(site.browser(a=1).cookie)
    assert site.send(f"{header}; {header}").result == {"a": 1}
    assert site.calls == ["load"]


@pytest.mark.any_store
def test_eight_cookies_and_nine(site: Site) -> None:
    """Up to eight different cookies of our name are looked at, and of nine none (security 32)."""
    good = site.header(site.browser(a=1).cookie)
    junk = [site.header(f"junk{number}") for number in range(8)]
    assert site.send("; ".join([*junk[:7], good])).result == {"a": 1}
    assert len(site.events) == 7
    site.events.clear()
    site.chaos.calls.clear()
    assert site.send("; ".join([good, *junk])).result == {}
    assert site.chaos.calls == []


@pytest.mark.any_store
def test_names_are_compared_exactly(site: Site) -> None:
    """A cookie whose name is in another case, or longer, is another cookie (security 34)."""
    good = site.browser(a=1).cookie
    for name in ("__host-id", "__HOST-ID", "__Host-id2", "x__Host-id", "__Host-id ", "%5F_Host-id"):
        assert site.send(f"{name}={good}").result == {}
    assert site.calls == []


@pytest.mark.any_store
@pytest.mark.parametrize("joint", ["; ", ";", " ; ", ";\t", ";;", "; a=1; "])
def test_split_cookie_headers(site: Site, joint: str) -> None:
    """However a server joins the cookie headers of HTTP/2, our cookie is found (security 33)."""
    good = site.header(site.browser(a=1).cookie)
    assert site.send(f"x=1{joint}{good}{joint}y=2").result == {"a": 1}


@pytest.mark.parametrize(
    ("header", "values"),
    [
        (None, []),
        ("", []),
        ("id", []),
        ("id=", []),
        ("id=1", ["1"]),
        (" id=1 ; id=2", ["1", "2"]),
        ("id=1; id=1", ["1"]),
        ("ID=1; id=2; Id=3", ["2"]),
        ("id=a=b", ["a=b"]),
        ("other=id", []),
        ('x="; id=1; y="', ["1"]),
    ],
)
def test_finding_a_cookie(header: str | None, values: list[str]) -> None:
    """The values of a cookie come in their order, each once, and without guessing."""
    assert find(header, "id") == values


# -- ids from elsewhere ---------------------------------------------------------------


@pytest.mark.any_store
def test_only_the_cookie_carries_an_id(site: Site) -> None:
    """An id in the address, a form, a header or another cookie is ignored (security 10)."""
    name, token = site.cookie_name, site.browser(a=1).cookie
    stranger = site.browser()
    requests: list[dict[str, Any]] = [
        {"query_string": {name: token, "id": token, "session": token}},
        {"path": f"/;{name}={token}"},
        {"method": "POST", "data": {name: token}},
        {"environ_base": {"HTTP_X_SESSION": token, "HTTP_AUTHORIZATION": f"Bearer {token}"}},
        {"environ_base": {"HTTP_COOKIE": f"id={token}; session={token}"}},
    ]
    for request in requests:
        assert stranger.visit(dict, **request).result == {}
    assert site.calls == []


# -- damage at rest -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_record_that_was_damaged(make_site: MakeSite) -> None:
    """A row that was changed, or put in another's place, is no session and no error (61)."""
    site = make_site()
    one, two = site.browser(a=1), site.browser(a=2)
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        rows = connection.execute("SELECT key, data FROM sessions ORDER BY key").fetchall()
        (first, data), (second, other) = rows
        connection.execute("UPDATE sessions SET data = ? WHERE key = ?", (other, first))
        connection.execute("UPDATE sessions SET data = ? WHERE key = ?", (data[:-1] + b"?", second))
        connection.commit()
    assert one.data() == {}
    assert two.data() == {}
    assert site.events.reasons == ["forged", "forged"]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("data", "'text'"),
        ("data", "7"),
        ("data", "CAST(x'ff' AS TEXT)"),
        ("version", "'one'"),
        ("version", "1.5"),
    ],
)
def test_a_row_of_other_types(make_site: MakeSite, column: str, value: str) -> None:
    """A row with values of other types than ours is no session and no error."""
    site = make_site()
    browser = site.browser(a=1)
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        connection.execute(f"UPDATE sessions SET {column} = {value}")
        connection.commit()
    visit = browser.visit(lambda session: session.update(b=2))
    assert visit.response.status_code == 200
    assert site.events.reasons == ["malformed"]
    assert browser.data() == {"b": 2}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_row_under_another_owner(make_site: MakeSite) -> None:
    """A row that was put under another user in the index is not listed, or ended, as his."""
    site = make_site(SESSION_PRINCIPALS=True)
    ann, eve = site.browser(), site.browser()
    eve.visit(lambda session: session.bind("eve"))
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        ((owner,),) = connection.execute("SELECT owner FROM sessions").fetchall()
        ann.visit(lambda session: session.bind("ann"))
        connection.execute("UPDATE sessions SET owner = ?", (owner,))
        connection.commit()
    assert len(site.manager.sessions_of("eve")) == 1
    assert site.manager.end_all("eve") == 1
    assert site.open(ann).principal == "ann"
