"""Moving in: a live session of another framework goes on as one of ours.

The cookies of Flask, Starlette and Django are made by those frameworks. What old versions
made (``OLD``) was made once by the packages named there, at the time of the fake clock.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import flask
import itsdangerous
import pytest
from django.core import signing
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from starlette.middleware.sessions import SessionMiddleware as StarletteSessions

from tieredsession import (
    ConfigurationError,
    MissingDependencyError,
    SessionManager,
    SessionTooLarge,
    Settings,
)
from tieredsession.errors import HeadersSentError
from tieredsession.events import ImportRefused, SessionImported
from tieredsession.registry import open_manager
from tieredsession.testing import FakeClock

if TYPE_CHECKING:
    from conftest import Browser, MakeSite, Site

    from tieredsession import Session

SECRET = "a long enough text, for tests alone: 0123456789"
KEY = "the key of the framework that was here before: 0123456789"
WEAK = "an old key"
DATA = {"user_id": 7, "name": "Zoë & co", "cart": [["tea", 2], {"a": None}], "deep": {"b": 1.5}}
DJANGO_SALT = "django.contrib.sessions.backends.signed_cookies"
DAY = 24 * 3600
UNTIL = "2031-01-31"

# -- what the frameworks make ---------------------------------------------------------


def flask_cookie(data: dict[str, Any], key: str | bytes = KEY, **config: Any) -> str:
    """The value that a Flask application sends for *data*."""
    app = flask.Flask("old")
    app.config.update(SECRET_KEY=key, **config)

    @app.get("/")
    def view() -> str:
        flask.session.update(data)
        return ""

    return value_of(app.test_client().get("/").headers["Set-Cookie"])


def starlette_cookie(data: dict[str, Any], key: str = KEY) -> str:
    """The value that Starlette's session middleware sends for *data*."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].update(data)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        middleware = StarletteSessions(app, secret_key=key)
        await middleware({"type": "http", "headers": []}, None, send)  # type: ignore[arg-type]  # nothing is received

    asyncio.run(run())
    return value_of(dict(sent[0]["headers"])[b"set-cookie"].decode())


def django_cookie(data: dict[str, Any], key: str | bytes = KEY, serializer: Any = None) -> str:
    """What Django signs for *data*, as its ``signed_cookies`` do but for asking settings."""
    signer = signing.TimestampSigner(key=key, salt=DJANGO_SALT, fallback_keys=[])
    value: str = signer.sign_object(
        data, serializer=serializer or signing.JSONSerializer, compress=True
    )
    return value


def werkzeug_cookie(data: dict[str, Any], key: str = KEY, dumps: Any = None) -> str:
    """What ``secure-cookie`` 0.2.0 makes of *data*; ``OLD`` holds this against the package."""
    items = []
    for name, value in sorted(data.items()):
        text = (dumps or (lambda v: json.dumps(v, separators=(",", ":")).encode()))(value)
        items.append(f"{name}=".encode() + base64.b64encode(text))
    mac = hmac.new(key.encode(), b"".join(b"|" + item for item in items), hashlib.sha1)
    return (base64.b64encode(mac.digest()) + b"?" + b"&".join(items)).decode()


def value_of(set_cookie: str) -> str:
    """The value of the cookie in a ``Set-Cookie`` line, as a browser sends it back."""
    return set_cookie.partition(";")[0].partition("=")[2]


MAKERS: dict[str, Callable[..., str]] = {
    "flask": flask_cookie,
    "starlette": starlette_cookie,
    "django": django_cookie,
    "werkzeug": werkzeug_cookie,
}
NAMES = {"django": "sessionid"}


def name_of(framework: str) -> str:
    """The name of its session cookie."""
    return NAMES.get(framework, "session")


def source(framework: str, **options: Any) -> dict[str, Any]:
    """An entry of the setting."""
    until = {"until": UNTIL} if framework == "werkzeug" else {}
    return {"kind": framework, "key": KEY, **until, **options}


# Cookies signed with WEAK at 1_799_996_400, an hour before the fake clock.
OLD: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "secure-cookie 0.2.0": (
        {"kind": "werkzeug", "until": UNTIL},
        "q3XZf0Fji+i8ctGHrz32cVCA/3M=?a%3Db%7Cc%26d=bnVsbA==&cart=W1sidGVhIiwyXV0="
        "&name=IlpvXHUwMGViICYgY28i&user_id=Nw==",
        {"a=b|c&d": None, "cart": [["tea", 2]], "name": "Zoë & co", "user_id": 7},
    ),
    "secure-cookie 0.2.0, quoted by werkzeug 1.0.1": (
        {"kind": "werkzeug", "until": UNTIL},
        '"o0hzniLjg9yhvJ9tTeEl9Z21SAc=?user_id=Nw=="',
        {"user_id": 7},
    ),
    "secure-cookie 0.2.0, with an expiry": (
        {"kind": "werkzeug", "until": UNTIL},
        "g00Xxdo5sX+AcF3tBoM7e0lM3go=?_expires=MTgwMDAwMzYwMA==&user_id=Nw==",
        {"user_id": 7},
    ),
    "secure-cookie 0.2.0, with SHA-256": (
        {"kind": "werkzeug", "until": UNTIL, "digest": "sha256"},
        "o/QkbkiXtfU/896hwAl3OG2gKxRVLiVXtGecdk9NRN4=?user_id=Nw==",
        {"user_id": 7},
    ),
    "werkzeug 0.16.1 with json": (
        {"kind": "werkzeug", "until": UNTIL},
        "ls1rmnN+k71iJFRCEAHwGSaqazs=?cart=W1sidGVhIiwgMl1d&user_id=Nw==",
        {"cart": [["tea", 2]], "user_id": 7},
    ),
    "flask 0.12.5, itsdangerous 0.24": (
        {"kind": "flask"},
        ".eJyrVkpSsqpWUgCSSo4BFrZKtTpKKWARIKnkVpSpo2BgpOCVmKdgZGBkpmBgbGVgYmVgquDuGwJSmgtWCiSV"
        "bJLsQAIlYAEgGW2oYxQLFCgFCwBJJQP8wBCkvbQ4tSg-E2i1eS0AK7ElBQ.HitVcA."
        "HGXMk6rvjWovhejZf25rQi0Fy6Q",
        {
            "user_id": 7,
            "t": (1, 2),
            "b": b"\x00\xff",
            "m": "<b>",
            "u": UUID(int=1),
            "d": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc),
        },
    ),
    "django 2.2.28": (
        {"kind": "django", "digest": "sha1"},
        "eyJfYXV0aF91c2VyX2lkIjoiNyJ9:1xobI0:F1Dc6bE-CtmO385JZMZ0iyemHOY",
        {"_auth_user_id": "7"},
    ),
}
PICKLED = {
    "django 2.2.28, PickleSerializer": (
        {"kind": "django", "digest": "sha1"},
        "gAWVGAAAAAAAAAB9lIwNX2F1dGhfdXNlcl9pZJSMATeUcy4:1xobI0:Do6BFgKEoify_0rwmLWnd-Ue-BA",
    ),
    "werkzeug 0.16.1": (
        {"kind": "werkzeug", "until": UNTIL},
        "6DHJPOCBORfTO9kRRG+QPbWLmtw=?user_id=gARLBy4=",
    ),
}


OLD_NOW = 1_800_000_000.0


@pytest.fixture
def clock() -> FakeClock:
    """The sites' time: the frameworks here sign with the time of the machine."""
    return FakeClock(float(int(time.time())))


def moving(make_site: MakeSite, *sources: dict[str, Any], **settings: Any) -> Site:
    """A site that takes over from *sources*."""
    return make_site(SESSION_IMPORT_FROM=list(sources), **settings)


def arrive(site: Site, framework: str, value: str) -> Browser:
    """A browser that comes with the cookie *value* of *framework*."""
    browser = site.browser()
    browser.client.set_cookie(name_of(framework), value)
    return browser


def has(browser: Browser, framework: str) -> bool:
    """Whether the browser still has that framework's cookie."""
    return browser.client.get_cookie(name_of(framework)) is not None


def refusals(site: Site) -> list[str]:
    """Why foreign cookies were refused, in order."""
    return [event.reason for event in site.events.of(ImportRefused)]


# -- moving in ------------------------------------------------------------------------


@pytest.mark.parametrize("framework", MAKERS)
def test_a_live_session_moves_in(make_site: MakeSite, framework: str) -> None:
    """A page that only reads finds the data, saves it with one call, and swaps the cookies once."""
    site = moving(make_site, source(framework))
    browser = arrive(site, framework, MAKERS[framework](DATA))
    visit = browser.visit(dict)
    assert visit.result == DATA
    assert site.calls == ["create"]
    ours, theirs = visit.set_cookies
    assert ours.startswith(f"{site.cookie_name}=")
    assert theirs.startswith(
        f"{name_of(framework)}=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age"
    )
    assert visit.response.headers["Cache-Control"] == "private"
    assert not has(browser, framework)
    again = browser.visit(dict)
    assert again.result == DATA
    assert again.set_cookies == []
    assert site.calls == ["create", "load"]
    assert site.events.names == ["SessionCreated", "SessionImported"]


@pytest.mark.one_of_each
@pytest.mark.parametrize("framework", MAKERS)
def test_a_change_at_once_is_part_of_it(make_site: MakeSite, framework: str) -> None:
    """What the first page changes is saved together with what was imported."""
    site = moving(make_site, source(framework))
    browser = arrive(site, framework, MAKERS[framework](DATA))
    browser.put(user_id=8, more=[1])
    assert browser.data() == {**DATA, "user_id": 8, "more": [1]}
    assert site.calls == ["create", "load"]


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
def test_an_untouched_request_leaves_all_alone(make_site: MakeSite, framework: str) -> None:
    """A request that does not touch its session costs nothing and leaves the foreign cookie."""
    site = moving(make_site, source(framework))
    browser = arrive(site, framework, MAKERS[framework](DATA))
    visit = browser.visit(lambda session: session.accessed)
    assert visit.set_cookies == []
    assert "Vary" not in visit.response.headers
    assert (site.calls, site.events) == ([], [])
    assert has(browser, framework)


@pytest.mark.any_store
def test_what_is_imported_is_new(make_site: MakeSite, clock: FakeClock) -> None:
    """An imported session is new, begins now, and is nobody's until the application binds it."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))

    def view(session: Session) -> Any:
        before = (session.new, session.created, session.principal, session.modified)
        session.bind(str(session["user_id"]))
        return before

    visit = browser.visit(view)
    assert visit.result == (True, None, None, True)
    assert browser.visit(lambda s: (s.new, s.created, s.principal, dict(s))).result == (
        False,
        clock.now,
        "7",
        DATA,
    )
    assert site.calls == ["create", "load"]


@pytest.mark.any_store
def test_large_cookies_are_compressed(make_site: MakeSite) -> None:
    """What Flask and Django compressed is read as what is short."""
    data = {"words": ["the same words"] * 100}
    site = moving(make_site, source("flask"), source("django"))
    for framework in ("flask", "django"):
        value = MAKERS[framework](data)
        assert value.startswith(".")
        assert arrive(site, framework, value).data() == data


@pytest.mark.one_of_each
def test_the_types_of_flask_come_back(make_site: MakeSite) -> None:
    """Flask's tags become their types, and markup its text, which nothing takes for safe."""
    data = {
        "tuple": (1, ("a", [(2,)])),
        "bytes": b"\x00\xff",
        "uuid": UUID(int=5),
        "when": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc),
        "looks like a tag": {" t": [1], "more": {" t": 1}},
        "is one": {" t": 1},
    }
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie({**data, "html": Markup("<b>")}))
    for _ in range(2):
        found = browser.data()
        assert type(found["html"]) is str
        assert found == {**data, "html": "<b>"}


@pytest.mark.any_store
def test_a_session_of_one_tag(make_site: MakeSite) -> None:
    """A session whose only key is one of Flask's tags is that session."""
    site = moving(make_site, source("flask"))
    assert arrive(site, "flask", flask_cookie({" t": 1})).data() == {" t": 1}


@pytest.mark.any_store
@pytest.mark.parametrize("name", OLD)
def test_old_cookies_are_read(make_site: MakeSite, clock: FakeClock, name: str) -> None:
    """What old versions of the packages made is read as they meant it."""
    entry, value, data = OLD[name]
    clock.now = OLD_NOW
    site = moving(make_site, {**entry, "key": WEAK})
    visit = site.send(f"{name_of(entry['kind'])}={value}")
    assert visit.result == data


def test_the_maker_here_is_the_packages() -> None:
    """The cookies of ``secure-cookie`` that these tests make are the package's, to the byte."""
    plain = OLD["secure-cookie 0.2.0, quoted by werkzeug 1.0.1"][1]
    dated = OLD["secure-cookie 0.2.0, with an expiry"][1]
    assert f'"{werkzeug_cookie({"user_id": 7}, WEAK)}"' == plain
    assert werkzeug_cookie({"user_id": 7, "_expires": 1_800_003_600}, WEAK) == dated


@pytest.mark.any_store
def test_django_itself_made_this(make_site: MakeSite, clock: FakeClock) -> None:
    """A cookie of Django's own session store, under its own settings, is taken over."""
    script = (
        "import sys; from django.conf import settings; settings.configure(SECRET_KEY=sys.argv[1])\n"
        "from django.contrib.sessions.backends.signed_cookies import SessionStore\n"
        "s = SessionStore(); s.update({'_auth_user_id': '7', 'x': ['y'] * 50}); s.save()\n"
        "print(s.session_key)"
    )
    command = [sys.executable, "-c", script, KEY]
    value = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    site = moving(make_site, source("django"))
    browser = arrive(site, "django", value)
    assert browser.data() == {"_auth_user_id": "7", "x": ["y"] * 50}


# -- keys -----------------------------------------------------------------------------


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
def test_every_key_of_a_list_opens(make_site: MakeSite, framework: str) -> None:
    """With several keys, what any of them signed is taken over."""
    older = "an even older key: 0123456789 abcdef"
    site = moving(make_site, source(framework, key=[KEY, older]))
    for key in (KEY, older):
        assert arrive(site, framework, MAKERS[framework](DATA, key)).data() == DATA
    assert arrive(site, framework, MAKERS[framework](DATA, WEAK)).data() == {}
    assert refusals(site) == ["forged"]


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
def test_without_a_key_it_is_the_sites_own(make_site: MakeSite, framework: str) -> None:
    """An application that keeps its SECRET_KEY and its fallbacks names no key."""
    older = "the secret before this one: 0123456789 abc"
    entry = source(framework)
    del entry["key"]
    site = moving(make_site, entry, SECRET_KEY_FALLBACKS=[older])
    for key in (SECRET, older):
        assert arrive(site, framework, MAKERS[framework](DATA, key)).data() == DATA
    assert arrive(site, framework, MAKERS[framework](DATA, KEY)).data() == {}


@pytest.mark.any_store
def test_flask_rotated_its_keys(make_site: MakeSite) -> None:
    """What Flask signs beside SECRET_KEY_FALLBACKS is under its first key, and is taken over."""
    value = flask_cookie(DATA, KEY, SECRET_KEY_FALLBACKS=["older, older, older, older, older: 123"])
    assert arrive(moving(make_site, source("flask")), "flask", value).data() == DATA


@pytest.mark.any_store
@pytest.mark.parametrize("framework", ["flask", "django"])
def test_a_key_of_bytes(make_site: MakeSite, framework: str) -> None:
    """A key may be bytes that are no text."""
    key = bytes(range(128, 192))
    site = moving(make_site, source(framework, key=key))
    assert arrive(site, framework, MAKERS[framework](DATA, key)).data() == DATA


@pytest.mark.any_store
@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("derivation", ["hmac", "concat", "django-concat", "none"])
def test_salt_digest_and_derivation(make_site: MakeSite, digest: str, derivation: str) -> None:
    """A Flask application that signs in its own way is understood when it is told."""
    signer = itsdangerous.URLSafeTimedSerializer(
        KEY,
        salt="salt",
        signer_kwargs={"key_derivation": derivation, "digest_method": getattr(hashlib, digest)},
    )
    value = str(signer.dumps(DATA))
    entry = source("flask", salt="salt", digest=digest, key_derivation=derivation)
    assert arrive(moving(make_site, entry), "flask", value).data() == DATA
    assert arrive(moving(make_site, source("flask")), "flask", value).data() == {}


@pytest.mark.any_store
def test_one_frameworks_cookie_is_not_anothers(make_site: MakeSite) -> None:
    """A cookie that the same key signed for another framework is forged here."""
    site = moving(make_site, source("flask"))
    assert arrive(site, "flask", starlette_cookie(DATA)).data() == {}
    assert refusals(site) == ["forged"]


# -- what is refused ------------------------------------------------------------------


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
def test_no_changed_cookie_is_imported(make_site: MakeSite, framework: str) -> None:
    """A foreign cookie with any bit flipped, cut anywhere or longer imports nothing."""
    site = moving(make_site, source(framework))
    name, value = name_of(framework), MAKERS[framework]({"user_id": 7, "x": "y"})
    assert dict(site.manager.open(f"{name}={value}")) != {}
    changed = [
        value[:place] + chr(ord(value[place]) ^ 1 << bit) + value[place + 1 :]
        for place in range(len(value))
        for bit in range(8)
    ]
    changed += [value[:length] for length in range(len(value))]
    changed += [value[start:] for start in range(1, len(value))]
    changed += [value + more for more in ("A", "=", ".", ":", "?", "&", "&x=MQ==", value)]
    for other in changed:
        session = site.manager.open(f"{name}={other}")
        assert dict(session) == {}, other
        site.manager.close(session)
    assert site.calls == []


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
def test_nothing_a_stranger_sends_raises(make_site: MakeSite, framework: str) -> None:
    """Whatever text stands in a foreign cookie, it is ignored without an error."""
    site = moving(make_site, source(framework))
    mixed = st.text(alphabet='.:?&=|%"\\-_ Aeyz0\x00\xe9\U0001f600', max_size=60)

    @settings(max_examples=200, deadline=None)
    @given(st.one_of(st.text(max_size=60), mixed))
    def check(text: str) -> None:
        assert dict(site.manager.open(f"{name_of(framework)}={text}")) == {}

    check()


def signed(framework: str, payload: bytes, mark: str = "") -> str:
    """A cookie in which *framework* signed *payload*, which may be no session at all."""
    text = mark + base64.urlsafe_b64encode(payload).decode().rstrip("=")
    if framework == "django":
        value: str = signing.TimestampSigner(key=KEY, salt=DJANGO_SALT, fallback_keys=[]).sign(text)
        return value
    if framework == "starlette":
        return itsdangerous.TimestampSigner(KEY).sign(base64.b64encode(payload)).decode()
    signer = itsdangerous.TimestampSigner(KEY, salt="cookie-session", key_derivation="hmac")
    return signer.sign(text).decode()


UNDECODABLE = {
    "not JSON": b"hello",
    "not text": b"\xff\xfe",
    "a list": b"[1]",
    "a word": b'"x"',
    "null": b"null",
}


@pytest.mark.any_store
@pytest.mark.parametrize("framework", ["flask", "starlette", "django"])
@pytest.mark.parametrize("name", UNDECODABLE)
def test_authentic_nonsense_is_ignored(make_site: MakeSite, framework: str, name: str) -> None:
    """What the right key signed and is no session is no session, and no error."""
    site = moving(make_site, source(framework))
    browser = arrive(site, framework, signed(framework, UNDECODABLE[name]))
    assert browser.data() == {}
    assert refusals(site) == ["undecodable"]


@pytest.mark.any_store
@pytest.mark.parametrize("framework", ["flask", "starlette", "django"])
def test_authentic_depths_are_ignored(make_site: MakeSite, framework: str) -> None:
    """What is nested too deeply to be kept, and on some Pythons can be read, comes to nothing."""
    site = moving(make_site, source(framework))
    deep = b'{"a":' + b"[" * 1400 + b"]" * 1400 + b"}"
    assert arrive(site, framework, signed(framework, deep)).data() == {}


@pytest.mark.any_store
def test_an_authentic_time_of_nonsense(make_site: MakeSite) -> None:
    """A time that is none makes no session of what the right key signed, and no error."""
    value = signing.Signer(key=KEY, salt=DJANGO_SALT, fallback_keys=[]).sign("e30:!!")
    site = moving(make_site, source("django"))
    assert arrive(site, "django", value).data() == {}
    assert refusals(site) == ["undecodable"]


@pytest.mark.any_store
@pytest.mark.parametrize("tag", ["u", "b", "d", "t", " di"])
def test_authentic_tags_of_nonsense(make_site: MakeSite, tag: str) -> None:
    """A tag of Flask around what cannot be its content is no session, and no error."""
    site = moving(make_site, source("flask"))
    tag = f" {tag.strip()}"
    browser = arrive(site, "flask", signed("flask", json.dumps({"a": {tag: 5}}).encode()))
    assert browser.data() == {}
    assert refusals(site) == ["undecodable"]


@pytest.mark.any_store
@pytest.mark.parametrize("name", PICKLED)
def test_pickles_of_old_versions(make_site: MakeSite, clock: FakeClock, name: str) -> None:
    """What the old packages pickled is refused, and an observer is told that it was a pickle."""
    entry, value = PICKLED[name]
    clock.now = OLD_NOW
    site = moving(make_site, {**entry, "key": WEAK})
    assert site.send(f"{name_of(entry['kind'])}={value}").result == {}
    assert refusals(site) == ["pickled"]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_unpickled(
    make_site: MakeSite, tmp_path: Path, framework: str, protocol: int
) -> None:
    """A pickle that the right key signed is never loaded, in no protocol."""
    path = tmp_path / "unpickled"
    dumped = pickle.dumps(Bomb(path), protocol)
    if framework == "werkzeug":
        value = werkzeug_cookie({"a": 1}, dumps=lambda _: dumped)
    else:
        value = signed(framework, dumped)
    site = moving(make_site, source(framework), SESSION_PICKLE=True)
    assert arrive(site, framework, value).data() == {}
    assert refusals(site) == ["pickled" if protocol > 1 else "undecodable"]
    assert not path.exists()
    pickle.loads(dumped)
    assert path.exists()


@pytest.mark.any_store
@pytest.mark.parametrize("framework", ["flask", "django"])
def test_a_bomb_is_not_blown_up(make_site: MakeSite, framework: str) -> None:
    """What a compressed cookie may grow to is bounded, even if the right key signed it."""
    site = moving(make_site, source(framework))
    for size, expected in ((200_000, []), (2_000_000, ["oversized"])):
        site.events.clear()
        value = MAKERS[framework]({"a": " " * size})
        assert len(value) < 4096
        assert len(arrive(site, framework, value).data()) == (0 if expected else 1)
        assert refusals(site) == expected


PACKED = {
    "torn": zlib.compress(b'{"a": "' + b" " * 99 + b'"}')[:-6],
    "not compressed": b'{"a": 1}',
    "a number without end": zlib.compress(b'{"a": ' + b"9" * 5000 + b"}"),
    "too deep": zlib.compress(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
}


@pytest.mark.any_store
@pytest.mark.parametrize("framework", ["flask", "django"])
@pytest.mark.parametrize("name", PACKED)
def test_compressed_nonsense_is_ignored(make_site: MakeSite, framework: str, name: str) -> None:
    """What the right key signed as compressed and is no session is no session, and no error."""
    site = moving(make_site, source(framework))
    browser = arrive(site, framework, signed(framework, PACKED[name], "."))
    assert browser.data() == {}
    assert refusals(site) == ["undecodable"]


@pytest.mark.any_store
def test_an_item_is_not_two(make_site: MakeSite) -> None:
    """Werkzeug's HMAC tells "&" from "|" by its place alone, and a swap of them is refused."""
    value = werkzeug_cookie({"a": 1, "b": 2})
    site = moving(make_site, source("werkzeug"))
    assert arrive(site, "werkzeug", value.replace("&", "|")).data() == {}
    assert refusals(site) == ["malformed"]


@pytest.mark.any_store
@pytest.mark.parametrize(
    ("framework", "age"), [("flask", 31 * DAY), ("starlette", 14 * DAY), ("django", 14 * DAY)]
)
def test_an_old_cookie_is_expired(
    make_site: MakeSite, clock: FakeClock, framework: str, age: int
) -> None:
    """A foreign cookie is good for as long as its framework says, or for max_age."""
    value = MAKERS[framework](DATA)
    for entry, limit in ((source(framework), age), (source(framework, max_age=60), 60)):
        site = moving(make_site, entry)
        start = clock.now
        clock.advance(limit - 10)
        assert arrive(site, framework, value).data() == DATA
        clock.advance(20)
        browser = arrive(site, framework, value)
        assert browser.data() == {}
        assert refusals(site) == ["expired"]
        assert has(browser, framework)
        clock.now = start


@pytest.mark.any_store
def test_an_expiry_inside_is_kept_to(make_site: MakeSite, clock: FakeClock) -> None:
    """The expiry in a cookie of Werkzeug ends it, and is no part of the session."""
    value = werkzeug_cookie({"a": 1, "_expires": int(clock.now) + 60})
    site = moving(make_site, source("werkzeug"))
    assert arrive(site, "werkzeug", value).data() == {"a": 1}
    clock.advance(61)
    assert arrive(site, "werkzeug", value).data() == {}
    assert refusals(site) == ["expired"]


@pytest.mark.any_store
@pytest.mark.parametrize("framework", ["flask", "starlette", "django"])
def test_a_cookie_from_the_future(make_site: MakeSite, clock: FakeClock, framework: str) -> None:
    """A signature from later than two clocks can differ is refused."""
    value = MAKERS[framework](DATA)
    site = moving(make_site, source(framework))
    clock.advance(-290)
    assert arrive(site, framework, value).data() == DATA
    clock.advance(-30)
    assert arrive(site, framework, value).data() == {}
    assert refusals(site) == ["future"]


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
@pytest.mark.parametrize(
    "until",
    [
        "2031-01-31",
        "2031-01-31T00:00:00Z",
        "2031-01-31T02:00:00+02:00",
        dt.date(2031, 1, 31),
        dt.datetime(2031, 1, 31),
    ],
    ids=["day", "utc", "zone", "date", "datetime"],
)
def test_until_ends_the_import(
    make_site: MakeSite, clock: FakeClock, framework: str, until: Any
) -> None:
    """From the moment *until*, nothing is imported, and no cookie is looked at."""
    end = dt.datetime(2031, 1, 31, tzinfo=dt.timezone.utc).timestamp()
    old = {"max_age": 3000 * DAY} if framework != "werkzeug" else {}
    site = moving(make_site, source(framework, **old, until=until))
    value = MAKERS[framework](DATA)
    clock.now = end - 1
    assert arrive(site, framework, value).data() == DATA
    clock.now = end
    site.events.clear()
    browser = arrive(site, framework, value)
    assert browser.data() == {}
    assert has(browser, framework)
    assert site.events == []


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that is nine hours ahead of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.any_store
@pytest.mark.usefixtures("tokyo")
def test_until_is_utc_wherever_the_server_is(make_site: MakeSite, clock: FakeClock) -> None:
    """A day without a zone ends the import at its first moment in UTC."""
    clock.now = dt.datetime(2031, 1, 30, 23, 59, tzinfo=dt.timezone.utc).timestamp()
    site = moving(make_site, source("werkzeug", until="2031-01-31"))
    assert arrive(site, "werkzeug", werkzeug_cookie(DATA)).data() == DATA


@pytest.mark.any_store
@pytest.mark.parametrize("framework", MAKERS)
def test_a_foreign_cookie_that_is_refused_stays(make_site: MakeSite, framework: str) -> None:
    """A cookie that cannot be verified may be another application's, and is left alone."""
    site = moving(make_site, source(framework))
    browser = arrive(site, framework, MAKERS[framework](DATA, WEAK))
    assert browser.put(a=1).set_cookie.startswith(site.cookie_name)
    assert has(browser, framework)
    assert browser.visit(lambda session: session.destroy()).set_cookie.startswith(site.cookie_name)
    assert has(browser, framework)


@pytest.mark.any_store
@pytest.mark.parametrize(
    ("value", "reason"), [("x" * 5000, "oversized"), ("\xe9.x.y", "malformed"), ("x", "malformed")]
)
def test_what_is_no_cookie_of_theirs(make_site: MakeSite, value: str, reason: str) -> None:
    """What is too long for a browser, not ASCII or has no parts is refused by its look."""
    site = moving(make_site, source("flask"))
    assert dict(site.manager.open(f"session={value}")) == {}
    assert refusals(site) == [reason]


@pytest.mark.any_store
def test_a_refusal_that_nobody_watches() -> None:
    """Nobody has to observe a site for a foreign cookie to be refused."""
    site = Settings({"SECRET_KEY": KEY, "SESSION_IMPORT_FROM": [source("flask")]})
    assert dict(open_manager(site).open("session=nonsense")) == {}


def test_two_different_ones_are_none(make_site: MakeSite) -> None:
    """Of two valid and different cookies of one name, none is taken over, whatever their order."""
    one, two = (flask_cookie({"user_id": number}) for number in (1, 2))
    forged = flask_cookie({"user_id": 3}, WEAK)
    site = moving(make_site, source("flask"))
    for pair in ((one, two), (two, one)):
        assert site.send("; ".join(f"session={value}" for value in pair)).result == {}
    assert refusals(site) == ["ambiguous", "ambiguous"]
    for pair in ((one, forged), (forged, one), (one, one)):
        header = "; ".join(f"session={value}" for value in pair)
        assert site.send(header).result == {"user_id": 1}


# -- beside a session of ours ---------------------------------------------------------


@pytest.mark.one_of_each
def test_a_session_of_ours_goes_first(make_site: MakeSite) -> None:
    """A foreign cookie never comes before a valid one of ours, and an observer is told of it."""
    site = moving(make_site, source("flask"))
    browser = site.browser(user_id=1)
    browser.client.set_cookie("session", flask_cookie(DATA))
    visit = browser.visit(dict)
    assert visit.result == {"user_id": 1}
    assert visit.set_cookies == []
    assert site.calls == ["load"]
    assert refusals(site) == ["superseded"]


@pytest.mark.any_store
def test_a_late_change_beside_a_foreign_cookie(make_site: MakeSite) -> None:
    """What changes in our session after the headers is saved, whatever cookie came along."""
    site = moving(make_site, source("flask"))
    browser = site.browser(list=[])
    header = f"{site.header(browser.cookie)}; session={flask_cookie(DATA)}"
    session = site.manager.open(header)
    changing = session["list"]
    site.manager.close(session)
    changing.append(1)
    site.manager.finish(session)
    assert browser.data() == {"list": [1]}


@pytest.mark.one_of_each
@pytest.mark.parametrize("end", ["destroy", "clear"])
def test_logging_out_deletes_both(make_site: MakeSite, end: str) -> None:
    """A logout also deletes a foreign cookie that could bring the session back."""
    site = moving(make_site, source("flask"))
    browser = site.browser(user_id=1)
    browser.client.set_cookie("session", flask_cookie(DATA))
    visit = browser.visit(lambda session: getattr(session, end)())
    assert [line.partition("=")[0] for line in visit.set_cookies] == [site.cookie_name, "session"]
    assert visit.deletes_cookie
    assert not has(browser, "flask")
    assert browser.data() == {}


@pytest.mark.one_of_each
@pytest.mark.parametrize("end", ["destroy", "clear"])
def test_logging_out_at_once(make_site: MakeSite, end: str) -> None:
    """A first page that is the logout deletes the foreign cookie and saves nothing."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))
    visit = browser.visit(lambda session: getattr(session, end)())
    assert visit.set_cookie.startswith("session=; ")
    assert (site.calls, site.events) == ([], [])
    assert not has(browser, "flask")
    assert browser.data() == {}


@pytest.mark.any_store
def test_logging_out_and_in_at_once(make_site: MakeSite) -> None:
    """What begins after a logout in the first request has nothing of what was imported."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))
    browser.visit(lambda session: session.destroy(), lambda session: session.update(user_id=9))
    assert not has(browser, "flask")
    assert browser.data() == {"user_id": 9}
    assert site.events.of(SessionImported) == []


@pytest.mark.server_stores
def test_a_dead_session_of_ours_is_none(make_site: MakeSite, clock: FakeClock) -> None:
    """Beside a cookie of ours that stands for nothing, a foreign one is taken over."""
    site = moving(make_site, source("flask"))
    browser = site.browser(user_id=1)
    clock.advance(15 * DAY)
    browser.client.set_cookie("session", flask_cookie(DATA))
    assert browser.data() == DATA
    assert browser.data() == DATA
    assert site.rows >= 1


@pytest.mark.one_of_each
@pytest.mark.parametrize("foreign", [None, "nonsense"])
def test_a_dead_session_of_ours_and_nothing_to_import(
    make_site: MakeSite, clock: FakeClock, foreign: str | None
) -> None:
    """A dead cookie of ours is deleted, too, where another framework's is looked for in vain."""
    site = moving(make_site, source("flask"))
    browser = site.browser(user_id=1)
    clock.advance(15 * DAY)
    if foreign is not None:
        browser.client.set_cookie("session", foreign)
    visit = browser.visit(dict)
    assert visit.result == {}
    assert visit.set_cookie.startswith(f"{site.cookie_name}=;")


@pytest.mark.any_store
def test_two_sessions_of_ours_import_nothing(make_site: MakeSite) -> None:
    """While two sessions of ours contend, a foreign cookie does not decide."""
    site = moving(make_site, source("flask"))
    one, two = site.browser(a=1), site.browser(a=2)
    header = f"{site.header(one.cookie)}; {site.header(two.cookie)}; session={flask_cookie(DATA)}"
    assert site.send(header).result == {}
    assert (site.events.reasons, refusals(site)) == (["ambiguous"], [])


@pytest.mark.server_stores
def test_a_store_that_is_down_imports_nothing(make_site: MakeSite) -> None:
    """While a session of ours is unknown, no foreign one takes its place."""
    site = moving(make_site, source("flask"))
    browser = site.browser(user_id=1)
    browser.client.set_cookie("session", flask_cookie(DATA))
    site.chaos.fail("load")
    visit = browser.visit(dict)
    assert visit.response.status_code == 503
    assert has(browser, "flask")
    assert browser.data() == {"user_id": 1}


@pytest.mark.server_stores
def test_two_tabs_at_once(make_site: MakeSite) -> None:
    """Two requests that import one cookie at once make two sessions, and each is whole."""
    site = moving(make_site, source("flask"))
    header = f"session={flask_cookie(DATA)}"
    tabs = [site.manager.open(header) for _ in range(2)]
    assert [dict(tab) for tab in tabs] == [DATA, DATA]
    tokens = []
    for tab in tabs:
        reply = site.manager.close(tab)
        assert reply is not None
        assert len(reply.set_cookies) == 2
        tokens.append(value_of(reply.set_cookies[0]))
    assert len(set(tokens)) == 2
    assert site.rows == 2
    for token in tokens:
        assert site.send(site.header(token)).result == DATA


@pytest.mark.any_store
def test_a_copy_is_good_until_it_is_too_old(make_site: MakeSite, clock: FakeClock) -> None:
    """A copied foreign cookie outlives a logout for its max_age, which nothing can prevent."""
    value = flask_cookie(DATA)
    site = moving(make_site, source("flask", max_age=3600))
    browser = arrive(site, "flask", value)
    browser.visit(dict)
    browser.visit(lambda session: session.destroy())
    assert browser.data() == {}
    assert arrive(site, "flask", value).data() == DATA
    clock.advance(3610)
    assert arrive(site, "flask", value).data() == {}


# -- saving what was imported ---------------------------------------------------------


@pytest.mark.any_store
def test_a_failed_page_takes_nothing_over(make_site: MakeSite) -> None:
    """A response of 5xx saves nothing and leaves the foreign cookie for the next page."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))
    visit = browser.visit(dict, status="500 Internal Server Error")
    assert visit.result == DATA
    assert visit.set_cookies == []
    assert site.calls == []
    assert browser.data() == DATA
    assert not has(browser, "flask")


@pytest.mark.server_stores
def test_a_store_that_cannot_save_takes_nothing_over(make_site: MakeSite) -> None:
    """If the session cannot be saved, the foreign cookie stays for the next page."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))
    site.chaos.fail("create")
    assert browser.visit(dict).response.status_code == 503
    assert has(browser, "flask")
    assert browser.data() == DATA


@pytest.mark.one_of_each
def test_revert_goes_back_to_what_came(make_site: MakeSite) -> None:
    """To forget the changes of a request leaves what was imported, and it is still taken over."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))

    def view(session: Session) -> Any:
        session["cart"].append("more")
        session["user_id"] = 9
        session.revert()
        return dict(session)

    visit = browser.visit(view)
    assert visit.result == DATA
    assert not has(browser, "flask")
    assert browser.data() == DATA


@pytest.mark.one_of_each
def test_saving_early_takes_over_once(make_site: MakeSite) -> None:
    """A session that was saved before the response, or reverted after that, is imported once."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))
    visit = browser.visit(dict, lambda session: session.save(), lambda session: session.revert())
    assert len(visit.set_cookies) == 2
    assert site.calls == ["create"]
    assert len(site.events.of(SessionImported)) == 1
    assert browser.data() == DATA


@pytest.mark.one_of_each
def test_what_was_ended_is_not_reverted_to(make_site: MakeSite) -> None:
    """To forget what came after a logout that was saved does not bring back what was imported."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", flask_cookie(DATA))
    visit = browser.visit(
        lambda session: session.destroy(),
        lambda session: session.save(),
        lambda session: session.revert(),
        dict,
    )
    assert visit.result == {}
    assert not has(browser, "flask")


@pytest.mark.one_of_each
def test_reading_while_the_body_is_sent(make_site: MakeSite) -> None:
    """A session that is first read after the headers shows the data and is imported later."""
    site = moving(make_site, source("flask"))
    session = site.manager.open(f"session={flask_cookie(DATA)}")
    site.manager.close(session)
    assert dict(session) == DATA
    site.manager.finish(session)
    session["cart"].append("more")
    with pytest.raises(HeadersSentError):
        site.manager.finish(session)
    with pytest.raises(HeadersSentError):
        session["a"] = 1
    assert site.calls == []


def _force(session: Session) -> None:
    session.modified = True


CHANGES: list[Callable[[Session], Any]] = [
    lambda session: session.update(b=1),
    lambda session: session.bind("7"),
    lambda session: session.renew(),
    _force,
]


@pytest.mark.parametrize("kind", ["cookie-signed"])
@pytest.mark.parametrize("name", ["__Host-id", "session"])
def test_what_does_not_fit_is_still_read(make_site: MakeSite, name: str) -> None:
    """A foreign session too large for our cookie is read from theirs, and a change says why."""
    letters = random.Random(1)
    text = "".join(chr(letters.randrange(35, 92)) for _ in range(3900))
    while len(value := flask_cookie({"a": text})) < 4035:
        text += "".join(chr(letters.randrange(35, 92)) for _ in range(16))
    assert len(value) < 4097
    site = moving(make_site, source("flask"), SESSION_COOKIE_NAME=name)
    browser = arrive(site, "flask", value)
    for _ in range(2):
        visit = browser.visit(lambda session: session["a"] == text)
        assert visit.result is True
        assert visit.set_cookies == []
        assert has(browser, "flask")
    assert refusals(site) == ["oversized", "oversized"]
    for change in CHANGES:
        with pytest.raises(SessionTooLarge):
            browser.visit(change)


@pytest.mark.one_of_each
def test_what_cannot_be_kept_is_dropped(make_site: MakeSite) -> None:
    """What no session can hold, and keys with a meaning here, are left out by name."""
    ours = {"_flash": {}, "_csrf": "x", "_lifetime": 1e9, "_persistent": True, "_device": "x"}
    data = {"a": 1, "half": "\ud800", "\ud801": 1, "deep": ["\ud802"], **ours}
    site = moving(make_site, source("starlette"))
    browser = arrive(site, "starlette", starlette_cookie(data))
    assert browser.data() == {"a": 1}
    assert browser.data() == {"a": 1}
    (event,) = site.events.of(SessionImported)
    assert event.kind == "starlette"
    assert sorted(event.dropped) == sorted(data.keys() - {"a"})


@pytest.mark.any_store
def test_an_empty_session_is_nothing_to_save(make_site: MakeSite) -> None:
    """A foreign session without data is not saved, and its cookie is deleted."""
    site = moving(make_site, source("flask"))
    browser = arrive(site, "flask", signed("flask", b"{}"))
    assert browser.visit(dict).set_cookie.startswith("session=; ")
    assert (site.calls, site.events) == ([], [])


@pytest.mark.one_of_each
def test_the_import_is_reported(make_site: MakeSite) -> None:
    """The event of an import has the label of the new session, and nothing of its data."""
    site = moving(make_site, source("flask"))
    arrive(site, "flask", flask_cookie(DATA)).visit(dict)
    assert site.events.names == ["SessionCreated", "SessionImported"]
    label = site.events.labels[0]
    assert site.events.of(SessionImported) == [SessionImported("flask", (), session=label)]


# -- several, and their cookies -------------------------------------------------------


@pytest.mark.one_of_each
def test_the_first_of_a_list_goes_first(make_site: MakeSite) -> None:
    """Of several frameworks' cookies, the first source's is taken over and all are deleted."""
    site = moving(make_site, source("django"), source("flask"))
    browser = arrive(site, "flask", flask_cookie({"from": "flask"}))
    browser.client.set_cookie("sessionid", django_cookie({"from": "django"}))
    visit = browser.visit(dict)
    assert visit.result == {"from": "django"}
    names = [line.partition("=")[0] for line in visit.set_cookies]
    assert names == [site.cookie_name, "sessionid", "session"]
    assert not has(browser, "flask")
    assert not has(browser, "django")
    assert refusals(site) == []


@pytest.mark.any_store
def test_two_sources_of_one_name(make_site: MakeSite) -> None:
    """Two ways to sign cookies of one name can be named, and each finds its own."""
    site = moving(make_site, source("flask", digest="sha512"), source("starlette"), source("flask"))
    assert arrive(site, "flask", flask_cookie(DATA)).data() == DATA
    assert arrive(site, "starlette", starlette_cookie(DATA)).data() == DATA
    assert refusals(site) == []


@pytest.mark.any_store
def test_the_deletion_has_the_cookies_place(make_site: MakeSite) -> None:
    """The foreign cookie is deleted with its own name, path, domain and partition."""
    place = {"cookie": "old", "path": "/app", "domain": "example.org", "partitioned": True}
    site = moving(make_site, source("flask", **place), SESSION_COOKIE_SAMESITE="None")
    visit = site.send(f"old={flask_cookie(DATA)}")
    assert visit.set_cookies[1] == (
        "old=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Domain=example.org; Path=/app; "
        "Secure; HttpOnly; SameSite=None; Partitioned"
    )


@pytest.mark.one_of_each
def test_their_name_may_be_ours(make_site: MakeSite) -> None:
    """If both cookies have one name and place, ours replaces theirs, and a logout is final."""
    site = moving(make_site, source("flask"), SESSION_COOKIE_NAME="session")
    browser = arrive(site, "flask", flask_cookie(DATA))
    visit = browser.visit(dict)
    assert visit.result == DATA
    assert visit.token
    assert browser.data() == DATA
    browser = arrive(site, "flask", flask_cookie(DATA))
    assert browser.visit(lambda session: session.destroy()).deletes_cookie
    assert not has(browser, "flask")


@pytest.mark.one_of_each
def test_one_name_in_two_places(make_site: MakeSite) -> None:
    """If theirs has our name but another path, it is deleted there beside our own."""
    site = moving(make_site, source("flask", path="/app"), SESSION_COOKIE_NAME="session")
    ours, theirs = site.send(f"session={flask_cookie(DATA)}").set_cookies
    assert "Path=/;" in ours
    assert theirs.startswith("session=; ")
    assert "Path=/app;" in theirs


# -- the setting ----------------------------------------------------------------------


def check(value: Any, **more: Any) -> Settings:
    """Settings with that import."""
    return Settings({"SECRET_KEY": SECRET, "SESSION_IMPORT_FROM": value, **more})


WRONG: dict[str, tuple[Any, str]] = {
    "no mapping": (5, "must be a mapping"),
    "no JSON": ("flask:" + KEY, "must be a mapping"),
    "JSON of a word": ('"flask"', "must be a mapping"),
    "a list of words": (["flask"], "must be a mapping"),
    "no kind": ({"key": KEY}, "'kind' must be one of flask, django, starlette, werkzeug"),
    "an unknown kind": ({"kind": "pylons"}, "'kind' must be one of"),
    "an unknown option": ({"kind": "flask", "secret": KEY}, "'secret' is not an option"),
    "no text for a key": ({"kind": "flask", "key": None}, "'key' must be a non-empty str"),
    "an empty key": ({"kind": "flask", "key": ""}, "'key' must be a non-empty str"),
    "an empty key in a list": ({"kind": "flask", "key": [KEY, ""]}, "'key' must be"),
    "no keys": ({"kind": "flask", "key": []}, "'key' must be a non-empty str"),
    "no cookie name": ({"kind": "flask", "cookie": ""}, "'cookie' must be a cookie's name"),
    "a bad cookie name": ({"kind": "flask", "cookie": "a b"}, "'cookie' must be a cookie's name"),
    "a bad path": ({"kind": "flask", "path": "app"}, "'path' must be a path"),
    "a path that goes on": ({"kind": "flask", "path": "/;x"}, "'path' must be a path"),
    "a bad domain": ({"kind": "flask", "domain": "https://x"}, "'domain' must be a name"),
    "no flag": ({"kind": "flask", "partitioned": "yes"}, "'partitioned' must be true or false"),
    "no age": ({"kind": "flask", "max_age": 0}, "'max_age' must be a number of seconds"),
    "true for an age": ({"kind": "flask", "max_age": True}, "'max_age' must be a number"),
    "a negative age": ({"kind": "flask", "max_age": dt.timedelta(-1)}, "'max_age' must be"),
    "no date": ({"kind": "flask", "until": "soon"}, "'until' must be a date or time"),
    "a number for a date": ({"kind": "flask", "until": 20310131}, "'until' must be a date"),
    "an unknown digest": ({"kind": "flask", "digest": "md5"}, "'digest' must be one of sha1"),
    "an unknown derivation": ({"kind": "flask", "key_derivation": "x"}, "'key_derivation' must"),
    "a salt of no text": ({"kind": "flask", "salt": "\udc80"}, "'salt' must be text"),
    "a salt that is none": ({"kind": "flask", "salt": 5}, "'salt' must be text"),
    "werkzeug without an end": ({"kind": "werkzeug"}, "werkzeug needs an 'until'"),
    "werkzeug with an age": (
        {"kind": "werkzeug", "until": UNTIL, "max_age": 60},
        "'max_age' means nothing to werkzeug",
    ),
    "werkzeug with a salt": (
        {"kind": "werkzeug", "until": UNTIL, "salt": "x"},
        "'salt' means nothing to werkzeug",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_stops_the_start(name: str) -> None:
    """What cannot be right is refused at the start, by a sentence that shows no key."""
    value, sentence = WRONG[name]
    with pytest.raises(ConfigurationError) as caught:
        check(value)
    assert str(caught.value).startswith("SESSION_IMPORT_FROM")
    assert sentence in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("nothing", [None, "", [], ()])
def test_nothing_to_import_from(nothing: Any) -> None:
    """The setting can be there and name nothing."""
    assert check(nothing).session_import_from == ()


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """The environment has it as JSON text: one source, or a list of them."""
    entry = {"kind": "flask", "key": KEY, "until": UNTIL, "max_age": 3600}
    monkeypatch.setenv("SECRET_KEY", SECRET)
    for value in (entry, [entry]):
        monkeypatch.setenv("SESSION_IMPORT_FROM", json.dumps(value))
        manager = open_manager(Settings(), clock=clock)
        assert dict(manager.open(f"session={flask_cookie(DATA)}")) == DATA


def test_no_key_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """No key shows in what settings and managers say about themselves, or in the log."""
    checked = check([source(kind, key=WEAK) for kind in MAKERS])
    manager = open_manager(checked)
    shown = [checked, checked.session_import_from, manager, vars(manager), caplog.text]
    assert WEAK not in repr(shown)
    assert "ImportFrom(kind='flask'" in repr(shown)


def test_a_weak_key_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A weak old key is what it is: the start goes on, and the log says what it means."""
    with caplog.at_level(logging.WARNING, "tieredsession"):
        check(source("flask"))
        assert caplog.messages == []
        check(source("flask", key=WEAK))
        check(source("flask", key=[KEY, WEAK], until=UNTIL))
    without, bounded = caplog.messages
    assert without.startswith("SESSION_IMPORT_FROM: a key of flask is weak")
    assert without.endswith(": give the import an 'until'")
    assert bounded == without.removesuffix(": give the import an 'until'")


@pytest.mark.parametrize("framework", ["flask", "starlette", "django"])
def test_what_is_missing_stops_the_start(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    """Without itsdangerous, the start names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    with pytest.raises(MissingDependencyError, match=r'"tieredsession\[import\]"'):
        open_manager(check(source(framework)))
    assert isinstance(open_manager(check(source("werkzeug"))), SessionManager)
