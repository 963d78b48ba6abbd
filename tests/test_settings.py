"""The settings: read from anywhere, checked at the start, refused in one sentence."""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import partial
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from tieredsession.errors import ConfigurationError
from tieredsession.merge import counter
from tieredsession.session import MAX_LIFETIME
from tieredsession.settings import ALIASES, SETTINGS, Settings

SECRET = "only for tests, only for tests, 1"
OLD = "only for tests, only for tests, 2"
SERVER = {"SECRET_KEY": SECRET, "SESSION_STORE": "tieredsession.stores.SQLiteSessionStore"}
STORES = "tieredsession.stores"

DEFAULTS: dict[str, Any] = {
    "SECRET_KEY_FALLBACKS": (),
    "SESSION_STORE": f"{STORES}.SecureCookieSessionStore",
    "SESSION_STORE_URL": None,
    "SESSION_CACHE_URL": None,
    "SESSION_CACHE_AGE": 600,
    "SESSION_STRICT_LOGOUT": False,
    "SESSION_PREFIX": "",
    "SESSION_COOKIE_NAME": "__Host-id",
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_HTTPONLY": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
    "SESSION_COOKIE_DOMAIN": None,
    "SESSION_COOKIE_PATH": "/",
    "SESSION_COOKIE_PARTITIONED": False,
    "SESSION_COOKIE_AGE": 1_209_600,
    "SESSION_ABSOLUTE_AGE": None,
    "SESSION_REFRESH": 0.25,
    "SESSION_EXPIRE_AT_BROWSER_CLOSE": True,
    "SESSION_COOKIE_ENCRYPT": False,
    "SESSION_COOKIE_COMPRESS": True,
    "SESSION_CACHE_CONTROL": "private",
    "SESSION_PICKLE": False,
    "SESSION_PRINCIPALS": False,
    "SESSION_PURGE_URL": "/sessions/purge_old_sessions",
    "SESSION_PURGE_BUDGET": 480,
    "SESSION_PURGE_GRACE": 600,
    "SESSION_PURGE_TOKEN": None,
    "SESSION_PURGE_ACCOUNT": None,
    "SESSION_PURGE_AUDIENCE": None,
    "SESSION_MERGE_RULES": {},
    "SESSION_IMPORT_FROM": (),
}


def make(**given: Any) -> Settings:
    return Settings({"SECRET_KEY": SECRET, **given})


def value_of(settings: Settings, name: str) -> Any:
    return getattr(settings, name.lower())


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables in an environment that has none of ours."""
    for name in os.environ:
        if name.startswith(("SESSION_", "SECRET_KEY", "COOKIE_")):
            monkeypatch.delenv(name)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def refusal(call: Callable[[], object]) -> str:
    """The one sentence with which *call* stops the start."""
    with pytest.raises(ConfigurationError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return message


# -- where they come from -----------------------------------------------------------------


GIVEN: dict[str, Any] = {
    "SECRET_KEY": SECRET,
    "SESSION_COOKIE_AGE": 60,
    "SESSION_COOKIE_NAME": "sid",
    "DEBUG": True,
    "session_cookie_age": 1,
    "OTHER_SESSION_NAME": "x",
}


LATER: dict[str, Any] = {**GIVEN, "SESSION_COOKIE_AGE": 5}
ODD: dict[Any, Any] = {**GIVEN, 1: 2, None: 3, ("SESSION_X",): 4}


class _Config:
    """A settings object as frameworks have them: some names are inherited, some computed."""

    SECRET_KEY = SECRET
    DEBUG = True
    session_cookie_age = 1


class _Production(_Config):
    SESSION_COOKIE_NAME = "sid"

    @property
    def SESSION_COOKIE_AGE(self) -> int:  # noqa: N802 - a setting's name
        return 60


SOURCES: dict[str, object] = {
    "dict": GIVEN,
    "mapping": MappingProxyType(GIVEN),
    "chain": ChainMap({"SESSION_COOKIE_AGE": 60}, LATER),
    "mapping with odd keys": ODD,
    "object": SimpleNamespace(**GIVEN),
    "instance": _Production(),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_mappings_and_objects(source: object) -> None:
    """Settings come from any mapping or object, and names that are not ours are left alone."""
    settings = Settings(source)
    assert settings.secret_key == SECRET
    assert settings.session_cookie_age == 60
    assert settings.session_cookie_name == "sid"
    assert settings.session_store == DEFAULTS["SESSION_STORE"]


def test_a_class_is_a_source() -> None:
    """A class works like an object of it."""

    class Config(_Config):
        SESSION_COOKIE_AGE = 60

    assert Settings(Config).session_cookie_age == 60


def test_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from a module or from the name of one, also inside a package."""
    module = ModuleType("a_site.settings")
    vars(module).update(GIVEN)
    monkeypatch.setitem(sys.modules, "a_site", ModuleType("a_site"))
    monkeypatch.setitem(sys.modules, "a_site.settings", module)
    for source in (module, "a_site.settings"):
        assert Settings(source).session_cookie_age == 60


def test_the_environment(environment: Callable[..., None]) -> None:
    """Without a source, settings come from the environment, where every value is text."""
    one, other = OLD.replace(",", ";"), OLD.replace(",", ".")
    environment(
        SECRET_KEY=SECRET,
        SECRET_KEY_FALLBACKS=f" {one} , {other},",
        SESSION_STORE=f"{STORES}.SQLiteSessionStore",
        SESSION_STORE_URL="sqlite:///x?timeout=1",
        SESSION_COOKIE_AGE="3600",
        SESSION_ABSOLUTE_AGE="7200",
        SESSION_REFRESH="0.5",
        SESSION_COOKIE_SECURE="False",
        SESSION_COOKIE_HTTPONLY="0",
        SESSION_COOKIE_SAMESITE="strict",
        SESSION_COOKIE_ENCRYPT="yes",
        SESSION_EXPIRE_AT_BROWSER_CLOSE="off",
        SESSION_PICKLE="on",
        SESSION_CACHE_CONTROL="No-Store",
        UNRELATED="1",
    )
    settings = Settings()
    assert settings.secret_key_fallbacks == (one, other)
    assert settings.session_store_url == "sqlite:///x?timeout=1"
    assert (settings.session_cookie_age, settings.session_absolute_age) == (3600, 7200)
    assert settings.session_refresh == 0.5
    assert settings.session_cookie_secure is False
    assert settings.session_cookie_httponly is False
    assert settings.session_cookie_samesite == "Strict"
    assert settings.session_cookie_encrypt is True
    assert settings.session_expire_at_browser_close is False
    assert settings.session_pickle is True
    assert settings.session_cache_control == "no-store"
    assert settings.session_cookie_name == "id"


def test_empty_variables_are_not_set(environment: Callable[..., None]) -> None:
    """An optional setting that is empty in the environment is not set."""
    optional = [setting.name for setting in SETTINGS if setting.default is None]
    environment(**dict.fromkeys(optional, ""), SECRET_KEY_FALLBACKS="", SESSION_PREFIX="")
    environment(SECRET_KEY=SECRET)
    settings = Settings()
    assert {name: value_of(settings, name) for name in DEFAULTS} == DEFAULTS


def test_the_x11_session_manager_is_not_ours(environment: Callable[..., None]) -> None:
    """The variable that every desktop sets for the X11 session protocol is left alone."""
    environment(SECRET_KEY=SECRET, SESSION_MANAGER="local/host:@/ICE-unix/1,unix/host:/ICE-unix/1")
    Settings()
    Settings({"SECRET_KEY": SECRET, "SESSION_MANAGER": object()})


def test_overrides_go_first(environment: Callable[..., None]) -> None:
    """Keyword arguments go before the source, under Kay's names too."""
    environment(SECRET_KEY=OLD, SESSION_COOKIE_AGE="3600")
    assert Settings(SESSION_COOKIE_AGE=60).session_cookie_age == 60
    assert Settings(COOKIE_AGE=60).session_cookie_age == 60
    assert (
        Settings({"COOKIE_AGE": 5}, SECRET_KEY=SECRET, SESSION_COOKIE_AGE=60).secret_key == SECRET
    )
    assert Settings({"COOKIE_AGE": 5, **SERVER}, SESSION_COOKIE_AGE=6).session_cookie_age == 6


def test_settings_are_a_source() -> None:
    """Checked settings can be changed in one respect and keep the others."""
    first = Settings({**SERVER, "SESSION_COOKIE_AGE": 60, "SESSION_COOKIE_DOMAIN": "example.org"})
    second = Settings(first, SESSION_COOKIE_AGE=90)
    assert second.session_cookie_age == 90
    for name in DEFAULTS:
        if name != "SESSION_COOKIE_AGE":
            assert value_of(second, name) == value_of(first, name)


# -- what they are ------------------------------------------------------------------------


def test_defaults() -> None:
    """A secret is enough, and what is not set has the value that the list of settings shows."""
    settings = make()
    assert {name: value_of(settings, name) for name in DEFAULTS} == DEFAULTS
    assert {setting.name for setting in SETTINGS} == {*DEFAULTS, "SECRET_KEY"}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_list_of_settings(setting: Any) -> None:
    """Every setting has a sentence for its documentation and a default that it would take."""
    assert setting.text.rstrip("`").endswith((".", "`"))
    assert len(setting.text) > 20
    if setting.default is not None:
        assert (setting.parse(setting.default) or setting.default) == setting.default
    assert getattr(Settings(SERVER), setting.name.lower(), "unset") != "unset"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("SECRET_KEY", SECRET.encode(), SECRET.encode()),
        ("SECRET_KEY_FALLBACKS", [OLD, OLD.encode()], (OLD, OLD.encode())),
        ("SECRET_KEY_FALLBACKS", (), ()),
        ("SECRET_KEY_FALLBACKS", "", ()),
        ("SESSION_COOKIE_AGE", dt.timedelta(days=1), 86400),
        ("SESSION_COOKIE_AGE", 1, 1),
        ("SESSION_COOKIE_AGE", 60.0, 60),
        ("SESSION_COOKIE_AGE", MAX_LIFETIME, MAX_LIFETIME),
        ("SESSION_ABSOLUTE_AGE", dt.timedelta(days=14), 1_209_600),
        ("SESSION_REFRESH", 0, 0.0),
        ("SESSION_REFRESH", "0.99", 0.99),
        ("SESSION_COOKIE_SECURE", 1, True),
        ("SESSION_COOKIE_HTTPONLY", "no", False),
        ("SESSION_COOKIE_HTTPONLY", 0, False),
        ("SESSION_COOKIE_SAMESITE", "NONE", "None"),
        ("SESSION_COOKIE_SAMESITE", "lax", "Lax"),
        ("SESSION_COOKIE_COMPRESS", False, False),
        ("SESSION_COOKIE_DOMAIN", ".example.org", ".example.org"),
        ("SESSION_COOKIE_DOMAIN", "", None),
        ("SESSION_COOKIE_PATH", "/app/", "/app/"),
        ("SESSION_PREFIX", "app:", "app:"),
        ("SESSION_PREFIX", None, ""),
        ("SESSION_COOKIE_NAME", "KAY_SESSION", "KAY_SESSION"),
        ("SESSION_COOKIE_NAME", "__Secure-sid", "__Secure-sid"),
        ("SESSION_MERGE_RULES", {"hits": counter}, {"hits": counter}),
        ("SESSION_CACHE_CONTROL", "NO-STORE", "no-store"),
    ],
    ids=repr,
)
def test_values(name: str, given: object, value: object) -> None:
    """A value may be given in the ways that its kind is usually written."""
    settings = Settings({**SERVER, name: given})
    assert value_of(settings, name) == value
    assert type(value_of(settings, name)) is type(value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "__Host-id"),
        ({"SESSION_COOKIE_DOMAIN": "example.org"}, "__Secure-id"),
        ({"SESSION_COOKIE_PATH": "/app"}, "__Secure-id"),
        ({"SESSION_COOKIE_SECURE": False}, "id"),
        ({"SESSION_COOKIE_SECURE": False, "SESSION_COOKIE_PATH": "/app"}, "id"),
        ({"SESSION_COOKIE_NAME": "sid"}, "sid"),
        ({"SESSION_COOKIE_NAME": ""}, "__Host-id"),
        ({"SESSION_COOKIE_NAME": "__Secure-x", "SESSION_COOKIE_DOMAIN": "a.org"}, "__Secure-x"),
    ],
    ids=repr,
)
def test_the_cookie_has_the_strongest_name_it_can(given: dict[str, Any], name: str) -> None:
    """Without a name of its own, the cookie has the strongest prefix that browsers would take."""
    assert make(**given).session_cookie_name == name


@pytest.mark.parametrize(
    ("given", "compress"),
    [
        ({}, True),
        ({"SESSION_COOKIE_ENCRYPT": True}, False),
        ({"SESSION_COOKIE_ENCRYPT": True, "SESSION_COOKIE_COMPRESS": True}, True),
        ({"SESSION_COOKIE_COMPRESS": "no"}, False),
    ],
    ids=repr,
)
def test_compression_is_off_beside_encryption(given: dict[str, Any], compress: bool) -> None:
    """Cookies are compressed unless they are encrypted, and as wished if one wishes."""
    assert make(**given).session_cookie_compress is compress


def test_sites_do_not_share_their_rules() -> None:
    """What is put into one site's settings is not in another's."""
    rules = {"hits": counter}
    one = make(SESSION_MERGE_RULES=rules)
    rules.clear()
    assert one.session_merge_rules == {"hits": counter}
    make().session_merge_rules["hits"] = counter
    assert make().session_merge_rules == {}


# -- Kay ----------------------------------------------------------------------------------


def test_a_kay_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A settings module of Kay works as it is."""
    module = ModuleType("kay_settings")
    vars(module).update(
        APP_NAME="kay_main",
        DEFAULT_TIMEZONE="Asia/Tokyo",
        DEBUG=True,
        PROFILE=False,
        SECRET_KEY=SECRET,
        SESSION_PREFIX="gaesess:",
        COOKIE_AGE=1209600,
        COOKIE_NAME="KAY_SESSION",
        COOKIE_SECURE=True,
        SESSION_MEMCACHE_AGE=3600,
        SESSION_STORE="kay.sessions.sessionstore.SecureCookieSessionStore",
        ADD_APP_PREFIX_TO_KIND=True,
        ADMINS=(),
        TEMPLATE_DIRS=("templates",),
        USE_I18N=False,
        INSTALLED_APPS=("kay.sessions",),
        MIDDLEWARE_CLASSES=("kay.sessions.middleware.SessionMiddleware",),
        AUTH_USER_BACKEND="kay.auth.backends.googleaccount.GoogleBackend",
    )
    monkeypatch.setitem(sys.modules, "kay_settings", module)
    settings = Settings("kay_settings")
    assert settings.session_prefix == "gaesess:"
    assert settings.session_cookie_age == 1209600
    assert settings.session_cookie_name == "KAY_SESSION"
    assert settings.session_cookie_secure is True
    assert settings.session_cache_age == 3600
    assert settings.session_store == f"{STORES}.SecureCookieSessionStore"


def test_kays_stores() -> None:
    """Both stores of Kay have their successor here."""
    kay = "kay.sessions.sessionstore"
    for name in ("SecureCookieSessionStore", "GAESessionStore"):
        assert make(SESSION_STORE=f"{kay}.{name}").session_store == f"{STORES}.{name}"


def test_kays_defaults_over_plain_http() -> None:
    """Kay's insecure cookie is taken as what it says, without the prefix that needs https."""
    settings = make(COOKIE_SECURE=False)
    assert settings.session_cookie_secure is False
    assert settings.session_cookie_name == "id"


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_and_its_name(alias: str) -> None:
    """A setting under both names is taken if they agree and refused if they do not."""
    name = ALIASES[alias]
    one, other = {int: (60, 61), bool: (True, False)}.get(type(DEFAULTS[name]), ("a", "b"))
    assert value_of(Settings({**SERVER, alias: one}), name) == one
    assert value_of(Settings({**SERVER, alias: one, name: one}), name) == one
    for given in ({alias: one, name: other}, {name: other, alias: one}):
        message = refusal(partial(Settings, {**SERVER, **given}))
        assert message.startswith(f"{alias} and {name} say different things")


# -- what stops the start -----------------------------------------------------------------


BAD: list[tuple[str, object]] = [
    ("SECRET_KEY", 32),
    ("SECRET_KEY", ["x" * 40]),
    ("SECRET_KEY", ""),
    ("SECRET_KEY", "too short"),
    ("SECRET_KEY", b"\0" * 64),
    ("SECRET_KEY", "secret" * 10),
    ("SECRET_KEY", "please set your own secret key, with 32 bytes"),
    ("SECRET_KEY", "django-insecure-1a2b3c4d5e6f7g8h9i0jklmnopqrstuv"),
    ("SECRET_KEY_FALLBACKS", ["too short"]),
    ("SECRET_KEY_FALLBACKS", f"{OLD},too short"),
    ("SECRET_KEY_FALLBACKS", OLD.encode()),
    ("SECRET_KEY_FALLBACKS", [None]),
    ("SECRET_KEY_FALLBACKS", None),
    ("SECRET_KEY_FALLBACKS", {OLD}),
    ("SESSION_STORE", ""),
    ("SESSION_STORE", None),
    ("SESSION_STORE", Settings),
    ("SESSION_STORE_URL", 1),
    ("SESSION_CACHE_URL", 1),
    ("SESSION_CACHE_AGE", 0),
    ("SESSION_STRICT_LOGOUT", "perhaps"),
    ("SESSION_PREFIX", 1),
    ("SESSION_PREFIX", "with space"),
    ("SESSION_PREFIX", "ü"),
    ("SESSION_PREFIX", "line\n"),
    ("SESSION_PREFIX", "x" * 101),
    ("SESSION_COOKIE_NAME", 1),
    ("SESSION_COOKIE_NAME", "a b"),
    ("SESSION_COOKIE_NAME", "a=b"),
    ("SESSION_COOKIE_NAME", "a;b"),
    ("SESSION_COOKIE_NAME", "a\r\nSet-Cookie: b"),
    ("SESSION_COOKIE_NAME", "é"),
    ("SESSION_COOKIE_NAME", '"a"'),
    ("SESSION_COOKIE_NAME", "__host-id"),
    ("SESSION_COOKIE_NAME", "__HOST-id"),
    ("SESSION_COOKIE_NAME", "__secure-id"),
    ("SESSION_COOKIE_SECURE", "maybe"),
    ("SESSION_COOKIE_SECURE", None),
    ("SESSION_COOKIE_HTTPONLY", 2),
    ("SESSION_COOKIE_SAMESITE", "loose"),
    ("SESSION_COOKIE_SAMESITE", None),
    ("SESSION_COOKIE_SAMESITE", ""),
    ("SESSION_COOKIE_SAMESITE", False),
    ("SESSION_COOKIE_DOMAIN", "a;b"),
    ("SESSION_COOKIE_DOMAIN", "a,b"),
    ("SESSION_COOKIE_DOMAIN", "ü.example"),
    ("SESSION_COOKIE_DOMAIN", "a\nb"),
    ("SESSION_COOKIE_DOMAIN", "exam ple.org"),
    ("SESSION_COOKIE_DOMAIN", "example.org:8000"),
    ("SESSION_COOKIE_DOMAIN", "https://example.org"),
    ("SESSION_COOKIE_DOMAIN", "x" * 1025),
    ("SESSION_COOKIE_DOMAIN", ["example.org"]),
    ("SESSION_COOKIE_PATH", ""),
    ("SESSION_COOKIE_PATH", None),
    ("SESSION_COOKIE_PATH", "app"),
    ("SESSION_COOKIE_PATH", "/a;b"),
    ("SESSION_COOKIE_PATH", "/a\x00"),
    ("SESSION_COOKIE_PATH", "/" + "x" * 1024),
    ("SESSION_COOKIE_PARTITIONED", "x"),
    ("SESSION_COOKIE_AGE", 0),
    ("SESSION_COOKIE_AGE", -1),
    ("SESSION_COOKIE_AGE", 0.5),
    ("SESSION_COOKIE_AGE", True),
    ("SESSION_COOKIE_AGE", None),
    ("SESSION_COOKIE_AGE", "soon"),
    ("SESSION_COOKIE_AGE", "1.5"),
    ("SESSION_COOKIE_AGE", [60]),
    ("SESSION_COOKIE_AGE", float("inf")),
    ("SESSION_COOKIE_AGE", float("nan")),
    ("SESSION_COOKIE_AGE", MAX_LIFETIME + 1),
    ("SESSION_COOKIE_AGE", dt.timedelta(0)),
    ("SESSION_COOKIE_AGE", dt.timedelta.max),
    ("SESSION_ABSOLUTE_AGE", 0),
    ("SESSION_ABSOLUTE_AGE", 60),
    ("SESSION_REFRESH", 1),
    ("SESSION_REFRESH", -0.1),
    ("SESSION_REFRESH", "a quarter"),
    ("SESSION_REFRESH", float("nan")),
    ("SESSION_REFRESH", None),
    ("SESSION_EXPIRE_AT_BROWSER_CLOSE", "x"),
    ("SESSION_COOKIE_ENCRYPT", "x"),
    ("SESSION_COOKIE_COMPRESS", "x"),
    ("SESSION_CACHE_CONTROL", "public"),
    ("SESSION_CACHE_CONTROL", None),
    ("SESSION_PICKLE", "x"),
    ("SESSION_PRINCIPALS", "x"),
    ("SESSION_MERGE_RULES", "hits=counter"),
    ("SESSION_MERGE_RULES", {"hits": "counter"}),
    ("SESSION_MERGE_RULES", [counter]),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_values_stop_the_start(name: str, value: object) -> None:
    """A value that is weak or of no use is refused in one sentence that begins with its name."""
    message = refusal(lambda: Settings({**SERVER, name: value}))
    assert message.startswith(name + " ")


SHORT = {"SESSION_COOKIE_SECURE": False}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"SESSION_COOKIE_NAME": "__Host-id", **SHORT}, "SESSION_COOKIE_SECURE = True"),
    ({"SESSION_COOKIE_NAME": "__Secure-id", **SHORT}, "SESSION_COOKIE_SECURE = True"),
    (
        {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_DOMAIN": "example.org"},
        "SESSION_COOKIE_DOMAIN",
    ),
    (
        {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_PATH": "/app"},
        "SESSION_COOKIE_PATH",
    ),
    ({"SESSION_COOKIE_SAMESITE": "None", **SHORT}, "SESSION_COOKIE_SECURE = True"),
    ({"SESSION_COOKIE_PARTITIONED": True, **SHORT}, "SESSION_COOKIE_SECURE = True"),
    ({"SESSION_ABSOLUTE_AGE": 60, "SESSION_COOKIE_AGE": 61}, "SESSION_COOKIE_AGE"),
    ({"SESSION_PICKLE": True, "SESSION_STORE": DEFAULTS["SESSION_STORE"]}, "SESSION_STORE"),
    ({"SESSION_PICKLE": True, "SESSION_STORE": f"{STORES}.HybridSessionStore"}, "SESSION_STORE"),
    ({"SESSION_PRINCIPALS": True, "SESSION_STORE": DEFAULTS["SESSION_STORE"]}, "SESSION_STORE"),
    (
        {"SESSION_CACHE_URL": "memory://", "SESSION_STORE": DEFAULTS["SESSION_STORE"]},
        "SESSION_STORE",
    ),
    (
        {
            "SESSION_PICKLE": True,
            "SESSION_STORE": "kay.sessions.sessionstore.SecureCookieSessionStore",
        },
        "SESSION_STORE",
    ),
]


@pytest.mark.parametrize(("given", "other"), CONTRADICTIONS, ids=repr)
def test_contradictions_stop_the_start(given: dict[str, Any], other: str) -> None:
    """Two settings that cannot both hold are refused in one sentence that names them both."""
    message = refusal(lambda: Settings({**SERVER, **given}))
    assert message.startswith(next(iter(given)) + " ")
    assert other in message.replace(next(iter(given)), "", 1)


def test_a_missing_secret(environment: Callable[..., None]) -> None:
    """Without a secret there is no start, and the command that makes one is shown."""
    environment()
    sources: tuple[object, ...] = (None, {}, SimpleNamespace())
    for source in (*sources, {"SECRET_KEY": None}, {"SECRET_KEY": ""}):
        message = refusal(partial(Settings, source))
        assert message.startswith("SECRET_KEY is not set: make one with  python3 -c ")


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("SECRET_KEY_FALLBACKS", [OLD, None], "a list of secrets, each a str or bytes"),
        ("SESSION_COOKIE_SAMESITE", None, "one of 'Lax', 'Strict', 'None'"),
        ("SESSION_PURGE_GRACE", -1, "0, or a number of seconds from 1 to"),
    ],
)
def test_a_refusal_says_what_is_taken(name: str, value: object, fix: str) -> None:
    """A refusal says what the setting takes, to whoever gave what looks much like it."""
    message = refusal(lambda: Settings({**SERVER, name: value}))
    assert message.startswith(f"{name} must be {fix}")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SESSION_COOKIE_AGES", "did you mean SESSION_COOKIE_AGE?"),
        ("SESSION_SAMESITE", "did you mean SESSION_COOKIE_SAMESITE?"),
        ("SECRET_KEY_FALLBACK", "did you mean SECRET_KEY_FALLBACKS?"),
        ("SESSION_TTL_OF_ALL_THINGS_BRIGHT", "see the list of settings in the README"),
    ],
)
def test_unknown_names_stop_the_start(
    name: str, hint: str, environment: Callable[..., None]
) -> None:
    """A name like ours that is no setting is refused, with the nearest one there is."""
    message = refusal(lambda: Settings({**SERVER, name: 1}))
    assert message == f"{name} is not a setting: {hint}"
    environment(SECRET_KEY=SECRET, **{name: "1"})
    assert refusal(Settings) == message


@pytest.mark.parametrize("name", ["DEBUG", "session_cookie_age", "COOKIE_NAMES"])
def test_unknown_overrides_stop_the_start(name: str) -> None:
    """A keyword argument is always meant for us, so any unknown one is refused."""
    assert refusal(lambda: Settings(SERVER, **{name: 1})).startswith(f"{name} is not a setting")


def test_a_keyword_in_lower_case() -> None:
    """A setting in lower case is not taken, and the refusal has it as it is written."""
    message = refusal(lambda: Settings(SERVER, session_cookie_age=60))
    assert message == "session_cookie_age is not a setting: did you mean SESSION_COOKIE_AGE?"


@pytest.mark.parametrize("source", ["no_such_module", "os.no_such_module", "", ".relative", "a..b"])
def test_modules_that_cannot_be_imported(source: str) -> None:
    """A settings module that is not there is named."""
    assert refusal(lambda: Settings(source)).startswith(f"the settings module {source!r}: ")


def test_long_persistent_cookies_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A persistent cookie of more than 400 days starts with a warning, another one without."""
    year = 366 * 86400
    make(SESSION_COOKIE_AGE=2 * year)
    make(SESSION_COOKIE_AGE=year, SESSION_EXPIRE_AT_BROWSER_CLOSE=False)
    assert caplog.records == []
    make(SESSION_COOKIE_AGE=2 * year, SESSION_EXPIRE_AT_BROWSER_CLOSE=False)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "400 days" in record.getMessage()


def test_what_is_shown_of_settings() -> None:
    """Printing the settings shows the store, and neither secrets nor URLs."""
    settings = Settings({**SERVER, "SESSION_STORE_URL": "sqlite:///secret"})
    assert repr(settings) == f"<Settings, store {STORES}.SQLiteSessionStore>"
