"""The cookie: found in whatever arrives, written with its attributes once, and kept private."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredsession.contracts import Record
from tieredsession.cookies import MAX_AGE, CookieWriter, Reply, add_headers, cache_control, find
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.tokens import encode_base64

NAME = "__Host-id"
PAST = "Expires=Thu, 01 Jan 1970 00:00:00 GMT"


# -- finding ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "values"),
    [
        (None, []),
        ("", []),
        (";", []),
        ("other=1", []),
        (f"{NAME}=abc", ["abc"]),
        (f"a=1; {NAME}=abc; b=2", ["abc"]),
        (f"a=1;{NAME}=abc;b=2", ["abc"]),
        (f"  {NAME}=abc\t", ["abc"]),
        (f"{NAME}=a=b==", ["a=b=="]),
        (f'{NAME}="abc"', ['"abc"']),
        (f"{NAME}=", []),
        (f"{NAME}", []),
        (f"{NAME}=; {NAME}=abc", ["abc"]),
        # Two from different paths or domains: both, in their order (RFC 6265bis, 4.2.2).
        (f"{NAME}=abc; {NAME}=def", ["abc", "def"]),
        (f"{NAME}=def; a=1; {NAME}=abc", ["def", "abc"]),
        (f"{NAME}=abc; {NAME}=abc", ["abc"]),
        # Names are compared exactly (RFC 6265bis, 5.4).
        ("__host-id=abc", []),
        ("__HOST-ID=abc", []),
        (f"x{NAME}=abc", []),
        (f"{NAME}x=abc", []),
        (f"a={NAME}=abc", []),
        (f'a="{NAME}=abc"', []),
        ("illegal name=1; [bad]=2; =3; é=4; __Host-id=abc", ["abc"]),
        ("a=1;;; ; __Host-id=abc", ["abc"]),
    ],
    ids=repr,
)
def test_find(header: str | None, values: list[str]) -> None:
    """The different values of the cookie of exactly this name are found, in order."""
    assert find(header, NAME) == values


def test_split_headers_are_as_joined_ones() -> None:
    """Header lines that HTTP/2 splits and a server joins again hold the same cookies."""
    lines = ["a=1", f"{NAME}=abc", "b=2"]
    assert find("; ".join(lines), NAME) == find("; ".join(lines[::-1]), NAME) == ["abc"]


def test_a_flood_of_values_is_none() -> None:
    """Eight different values are looked at, and more count as none."""
    values = [f"v{number}" for number in range(9)]
    assert find("; ".join(f"{NAME}={value}" for value in values[:8]), NAME) == values[:8]
    assert find("; ".join(f"{NAME}={value}" for value in values), NAME) == []
    assert find("; ".join([f"{NAME}=same"] * 100), NAME) == ["same"]


class Flood(str):
    """A header with no end of values, which tells how many were looked at."""

    __slots__ = ("looked_at",)

    def split(self, *_: Any) -> Iterator[str]:  # type: ignore[override]
        for self.looked_at in range(1, 10_000):
            yield f"{NAME}=v{self.looked_at}"


def test_a_flood_of_values_costs_little() -> None:
    """A header full of values, each of which is compared with all before it, is soon left."""
    header = Flood(f"{NAME}=")
    assert find(header, NAME) == []
    assert header.looked_at == 9


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_header(text: str) -> None:
    """Any header has a list of values, none of them empty or repeated."""
    for header in (text, f"{NAME}={text}"):
        values = find(header, NAME)
        assert all(values)
        assert len(set(values)) == len(values)


# -- writing ------------------------------------------------------------------------------


def attributes(line: str) -> list[str]:
    return line.split("; ")[1:]


WRITERS = {
    "defaults": (CookieWriter(NAME), ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"]),
    "development": (
        CookieWriter("id", secure=False, httponly=False, samesite="Strict"),
        ["Path=/", "SameSite=Strict"],
    ),
    "a domain": (
        CookieWriter("__Secure-id", domain="example.org", path="/app"),
        ["Domain=example.org", "Path=/app", "Secure", "HttpOnly", "SameSite=Lax"],
    ),
    "a frame": (
        CookieWriter(NAME, samesite="None", partitioned=True),
        ["Path=/", "Secure", "HttpOnly", "SameSite=None", "Partitioned"],
    ),
}
every_writer = pytest.mark.parametrize(("writer", "expected"), WRITERS.values(), ids=WRITERS)


@every_writer
def test_attributes_are_written_once(writer: CookieWriter, expected: list[str]) -> None:
    """A line has exactly the attributes that were asked for, each once."""
    line = writer.write("token", None)
    assert line.startswith(f"{writer.name}=token; ")
    assert attributes(line) == expected


@every_writer
def test_a_deletion_has_the_same_attributes(writer: CookieWriter, expected: list[str]) -> None:
    """The line that deletes a cookie has no value, is long past, and matches it otherwise."""
    line = writer.expire()
    assert line.startswith(f"{writer.name}=; ")
    assert attributes(line) == [PAST, "Max-Age=0", *expected]


@pytest.mark.parametrize(
    ("age", "written"),
    [
        (3600, "Max-Age=3600"),
        (MAX_AGE, f"Max-Age={400 * 86400}"),
        (MAX_AGE + 1, f"Max-Age={400 * 86400}"),
        (0, "Max-Age=0"),
        (-5, "Max-Age=0"),
    ],
)
def test_max_age(age: int, written: str) -> None:
    """A persistent cookie has a Max-Age of at most 400 days, and a bounded one of at least 0."""
    lines = attributes(CookieWriter(NAME).write("token", age))
    assert [part for part in lines if part.startswith("Max-Age")] == [written]


def test_a_browser_session_has_no_age() -> None:
    """A cookie that ends with the browser has neither Max-Age nor Expires."""
    line = CookieWriter(NAME).write("token", None)
    assert "Max-Age" not in line
    assert "Expires" not in line


@pytest.mark.parametrize("encrypt", [False, True], ids=["signed", "encrypted"])
def test_values_need_no_quoting(encrypt: bool) -> None:
    """Tokens of random data consist of cookie octets (RFC 6265bis, 4.1.1) and are found again."""
    options = StoreOptions(Keyring("only for tests, only for tests, 1"), NAME, encrypt=encrypt)
    writer = CookieWriter(NAME)
    for size in range(120):
        sealed = options.cookie_envelope.seal(Record(os.urandom(size), 1.8e9, 1.7e9))
        for token in (encode_base64(sealed), options.ids.mint()[0]):
            pair = writer.write(token, 60).partition(";")[0]
            octets = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
            assert re.fullmatch(rf"{NAME}={octets}", pair)
            assert find(f"a=1; {pair}; b=2", NAME) == [token]


# -- the headers beside it ----------------------------------------------------------------


SET = Reply("id=token; Path=/", "private")
TOUCHED = Reply(None, "private")


def values(headers: list[tuple[str, str]], name: str) -> list[str]:
    return [value for key, value in headers if key.lower() == name.lower()]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["Cookie"]),
        (["Cookie"], ["Cookie"]),
        (["cookie"], ["cookie"]),
        (["*"], ["*"]),
        (["Accept, *"], ["Accept, *"]),
        ([""], ["Cookie"]),
        (["Accept"], ["Accept, Cookie"]),
        (["Accept,Accept-Encoding"], ["Accept, Accept-Encoding, Cookie"]),
        (["Accept, COOKIE"], ["Accept, COOKIE"]),
        (["Accept", "Cookie"], ["Accept, Cookie"]),
        (["Accept", "Accept-Encoding", "Origin"], ["Accept, Accept-Encoding, Origin, Cookie"]),
        (["X-Cookie"], ["X-Cookie, Cookie"]),
    ],
    ids=repr,
)
def test_vary(before: list[str], after: list[str]) -> None:
    """A response of a session varies on Cookie, once, beside what it varied on before."""
    for reply in (SET, TOUCHED):
        headers = [("vary", value) for value in before]
        add_headers(headers, reply)
        assert values(headers, "Vary") == after


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        ("", "private", "private"),
        ("", "no-store", "no-store"),
        ("private", "private", "private"),
        ("Private", "private", "Private"),
        ("private, max-age=60", "private", "private, max-age=60"),
        ("no-store", "private", "no-store"),
        ("No-Store, max-age=0", "private", "No-Store, max-age=0"),
        ("no-store, private", "no-store", "no-store, private"),
        ("private", "no-store", "no-store"),
        ("public, max-age=60", "no-store", "no-store"),
        ("max-age=60", "private", "max-age=60, private"),
        ("no-cache", "private", "no-cache, private"),
        ("public", "private", "private"),
        ("PUBLIC, max-age=60", "private", "max-age=60, private"),
        ("public, s-maxage=60, max-age=5", "private", "max-age=5, private"),
        ("s-maxage = 60", "private", "private"),
        ("public, private", "private", "private"),
        ("private, s-maxage=60, max-age=5", "private", "max-age=5, private"),
        # A private="field" lets a shared cache keep the rest (RFC 9111, 5.2.2.7).
        ('private="set-cookie"', "private", "private"),
        ('private="set-cookie, x-user", max-age=60', "private", "max-age=60, private"),
        (
            'no-cache="set-cookie, x", max-age=1',
            "private",
            'no-cache="set-cookie, x", max-age=1, private',
        ),
        (r'x="a\", private", max-age=1', "private", r'x="a\", private", max-age=1, private'),
        ('x="no-store, ", max-age=1', "private", 'x="no-store, ", max-age=1, private'),
        (" , max-age=60 ,, ", "private", "max-age=60, private"),
    ],
)
def test_cache_control(before: str, wanted: str, after: str) -> None:
    """A Cache-Control becomes as strict as wanted, or stays if it was, and keeps the rest."""
    assert cache_control(before, wanted) == after


def test_a_set_cookie_is_kept_out_of_shared_caches() -> None:
    """A response that sets the cookie has one Cache-Control, and what was there twice is merged."""
    headers = [("Cache-Control", "public"), ("X", "1"), ("cache-control", "max-age=60")]
    add_headers(headers, SET)
    assert headers == [
        ("Cache-Control", "max-age=60, private"),
        ("X", "1"),
        ("Vary", "Cookie"),
        ("Set-Cookie", "id=token; Path=/"),
    ]


def test_other_cookies_stay() -> None:
    """The application's own cookies stay, and the session's is added once."""
    headers = [("Set-Cookie", "a=1"), ("set-cookie", "b=2")]
    add_headers(headers, SET)
    assert values(headers, "Set-Cookie") == ["a=1", "b=2", "id=token; Path=/"]


def test_without_a_set_cookie_caching_is_the_views() -> None:
    """A response that sets no session cookie keeps its Cache-Control."""
    headers = [("Cache-Control", "public, max-age=60")]
    add_headers(headers, TOUCHED)
    assert headers == [("Cache-Control", "public, max-age=60"), ("Vary", "Cookie")]


def test_no_store_where_it_is_wanted() -> None:
    """With SESSION_CACHE_CONTROL = "no-store", nothing weaker goes beside a cookie."""
    headers = [("Cache-Control", "private, max-age=60")]
    add_headers(headers, Reply("id=token", "no-store"))
    assert values(headers, "Cache-Control") == ["no-store"]
