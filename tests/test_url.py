"""URLs of stores and caches: one strict reading, and a password that never shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredsession.errors import ConfigurationError
from tieredsession.url import URL, parse_bool

Host = tuple[str, int | None]


def parse(text: str) -> URL:
    return URL(text, "SESSION_STORE_URL")


def told(text: str) -> str:
    """All that is told of the URL *text*: how it is printed, and what is wrong with it."""
    try:
        url = parse(text)
        url.finish()
    except ConfigurationError as error:
        return str(error)
    return repr(url)


GOOD: list[tuple[str, str, list[Host], str, str | None, str | None]] = [
    ("memory://", "memory", [], "", None, None),
    ("MEMORY://", "memory", [], "", None, None),
    ("sqlite:///sessions.sqlite3", "sqlite", [], "/sessions.sqlite3", None, None),
    ("sqlite:////var/lib/a%20b%3F", "sqlite", [], "//var/lib/a b?", None, None),
    ("memcached://h", "memcached", [("h", None)], "", None, None),
    ("memcached://h:11211", "memcached", [("h", 11211)], "", None, None),
    ("memcached://h:", "memcached", [("h", None)], "", None, None),
    (
        "memcached://a:1,b,c:65535",
        "memcached",
        [("a", 1), ("b", None), ("c", 65535)],
        "",
        None,
        None,
    ),
    ("memcached+unix:///run/m.sock", "memcached+unix", [], "/run/m.sock", None, None),
    ("redis://h:6379/0", "redis", [("h", 6379)], "/0", None, None),
    ("redis://[::1]", "redis", [("::1", None)], "", None, None),
    ("redis://[fe80::1]:6380,h/2", "redis", [("fe80::1", 6380), ("h", None)], "/2", None, None),
    ("redis://user@h", "redis", [("h", None)], "", "user", None),
    ("redis://user:pass@h", "redis", [("h", None)], "", "user", "pass"),
    ("redis://:pass@h", "redis", [("h", None)], "", None, "pass"),
    ("redis://u%40x:p%3A%2F%3F%23%40@h", "redis", [("h", None)], "", "u@x", "p:/?#@"),
    ("redis://user:p:a@s@h:1", "redis", [("h", 1)], "", "user", "p:a@s"),
    ("redis://user:@h", "redis", [("h", None)], "", "user", ""),
    ("redis+unix://:pass@/run/r.sock", "redis+unix", [], "/run/r.sock", None, "pass"),
]


@pytest.mark.parametrize(
    ("text", "scheme", "hosts", "path", "username", "password"), GOOD, ids=[row[0] for row in GOOD]
)
def test_good_urls(
    text: str,
    scheme: str,
    hosts: list[Host],
    path: str,
    username: str | None,
    password: str | None,
) -> None:
    """Each part of a URL is where it belongs, percent-decoded."""
    url = parse(text)
    assert (url.scheme, url.hosts, url.path) == (scheme, hosts, path)
    assert (url.username, url.password) == (username, password)
    url.finish()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no scheme"),
        ("h:11211", "has no scheme"),
        ("/var/lib/x", "has no scheme"),
        ("sqlite:/x", "has no scheme"),
        ("://h", "has no scheme"),
        ("+://h", "has no scheme"),
        ("a b://h", "has no scheme"),
        ("redis://,", "has an empty host"),
        ("redis://h,", "has an empty host"),
        ("redis://,h", "has an empty host"),
        ("redis://:6379", "has an empty host"),
        ("redis://user:pass@:6379", "has an empty host"),
        ("redis://[]", "has an empty host"),
        ("redis://[::1", "has a malformed host"),
        ("redis://[::1]6379", "has a malformed host"),
        ("redis://h:port", "has a port that is not a number"),
        ("redis://h:0", "has a port that is not a number"),
        ("redis://h:65536", "has a port that is not a number"),
        ("redis://h:-1", "has a port that is not a number"),
        ("redis://h:6 379", "has a port that is not a number"),
        ("redis://h:" + "9" * 5000, "has a port that is not a number"),
        ("redis://fe80::1:6379", "has a port that is not a number"),
        ("memory://?a=1&a=2", "names an option twice"),
        ("memory://?a&a", "names an option twice"),
        ("memory://?a=1", "has an unknown option: a"),
        ("memory://?b=1&a=", "has an unknown option: a, b"),
        ("memory://?a", "has an unknown option: a"),
    ],
    ids=lambda value: value[:40],
)
def test_bad_urls(text: str, problem: str) -> None:
    """What is wrong is said in one sentence that begins with the setting."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text).finish()
    assert str(caught.value).startswith(f"SESSION_STORE_URL {problem}")
    assert "\n" not in str(caught.value)


@given(st.text(st.characters(codec="ascii"), max_size=30))
@settings(deadline=None)
def test_any_text(text: str) -> None:
    """Any text is a URL or a ConfigurationError, never another exception."""
    assert told(text)
    assert told("redis://" + text)


# -- options ------------------------------------------------------------------------------


def test_options_are_taken_once() -> None:
    """An option is read by its parser, a missing one is its default, and then all are read."""
    url = parse("memory://?size=12&name=a%20b&empty=")
    with pytest.raises(ConfigurationError, match=r"unknown option: empty, name, size$"):
        url.finish()
    assert url.option("size", 0, int) == 12
    assert url.option("size", 0, int) == 0
    assert url.option("name", "", str) == "a b"
    assert url.option("empty", "default", str) == ""
    assert url.option("missing", None, int) is None
    url.finish()


def test_an_option_that_does_not_parse() -> None:
    """A value that its parser refuses is named with the option and what it should be."""

    def even(text: str) -> int:
        if int(text) % 2:
            raise ValueError("an even number")
        return int(text)

    with pytest.raises(ConfigurationError) as caught:
        parse("memory://?n=3").option("n", 0, even)
    assert str(caught.value) == "SESSION_STORE_URL has n='3', which is not an even number"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(("text", "seconds"), [("1", 1.0), ("0.25", 0.25), ("1e-3", 0.001)])
def test_seconds(text: str, seconds: float) -> None:
    """A number of seconds may have a fraction."""
    assert parse(f"memory://?timeout={text}").seconds("timeout", 9.0) == seconds
    assert parse("memory://").seconds("timeout", 9.0) == 9.0


@pytest.mark.parametrize("text", ["0", "-1", "", "nan", "inf", "1s", "1,5", "0x10"])
def test_bad_seconds(text: str) -> None:
    """A number of seconds is finite and above 0."""
    url = parse(f"memory://?timeout={text}")
    with pytest.raises(ConfigurationError, match=r"timeout=.* not a positive number of seconds$"):
        url.seconds("timeout", 1.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, True) for text in ("1", "true", "True", "YES", "on", " on\n")],
        *[(text, False) for text in ("0", "false", "FALSE", "no", "Off", "\toff ")],
    ],
    ids=repr,
)
def test_booleans(text: str, value: bool) -> None:
    """Yes and no may be written in the usual ways."""
    assert parse_bool(text) is value


@pytest.mark.parametrize("text", ["", "2", "y", "truely", "none", "-1", "t rue"], ids=repr)
def test_bad_booleans(text: str) -> None:
    """What is neither yes nor no is neither."""
    with pytest.raises(ValueError, match=r"^true or false$"):
        parse_bool(text)


# -- the password -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://h:6379/0?timeout=1", "redis://h:6379/0"),
        ("redis://user@h", "redis://***@h"),
        ("redis://user:hunter2@h:1,i/0", "redis://***@h:1,i/0"),
        ("redis://:hunter2@h", "redis://***@h"),
        ("redis+unix://:hunter2@/run/r.sock", "redis+unix://***@/run/r.sock"),
        ("redis://h?password=hunter2", "redis://h"),
    ],
)
def test_what_is_shown_of_a_url(text: str, shown: str) -> None:
    """Printing a URL shows where it leads, and neither password nor options."""
    url = parse(text)
    assert repr(url) == str(url) == f"{url}" == shown


@pytest.mark.parametrize(
    "text",
    [
        "redis://user:hunter2@h:port",
        "redis://user:hunter2@",
        "redis://user:hunter2@[::1",
        "redis://user:hunter2@h:1,",
        "redis://user:hunter2@h:1,i:99999",
        "redis://user:hunter2@h?x=1&x=2",
        "redis://user:hunter2@h?x=1",
        "user:hunter2@h",
        "red is://user:hunter2@h",
        # A password whose special characters were not percent-encoded:
        "redis://user:hunter2/x@h",
        "redis://user:x/hunter2@h",
        "redis://user:12/hunter2@h",
        "redis://user:hunter2?x@h",
        "redis://user:12?hunter2@h",
        "redis://user:12?x=hunter2@h",
        "redis://user:hunter2,x/@h",
        "redis://user:[hunter2/@h",
        "redis://[hunter2/@h",
    ],
)
def test_a_password_never_shows(text: str) -> None:
    """No error and no printed URL shows a password, not even one that was written wrongly."""
    assert "hunter2" not in told(text)


def test_an_error_of_the_caller_does_not_quote_the_url() -> None:
    """An error that a store makes about its URL names the setting, and not the URL."""
    error = parse("redis://user:hunter2@h").error("is not for this store")
    assert isinstance(error, ConfigurationError)
    assert str(error) == "SESSION_STORE_URL is not for this store"


def test_an_at_sign_after_the_host() -> None:
    """A path or an option may hold an at sign in the form of %40, or where there is no host."""
    url = parse("redis://h/a%40b?name=c%40d")
    assert (url.path, url.option("name", "", str)) == ("/a@b", "c@d")
    assert parse("sqlite:////home/ann@example/x").path == "//home/ann@example/x"
    with pytest.raises(ConfigurationError, match=r"%40"):
        parse("redis://h/a@b")
