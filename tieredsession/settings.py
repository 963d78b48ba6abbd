"""``SESSION_*`` from a module, a mapping, an object or the environment, checked at start.

:data:`SETTINGS` is the one list of what can be set; the documentation shows the same list.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from tieredsession.cookies import MAX_AGE
from tieredsession.errors import ConfigurationError
from tieredsession.keyring import check_secret
from tieredsession.merge import MergeRule
from tieredsession.session import MAX_LIFETIME
from tieredsession.url import parse_bool

if TYPE_CHECKING:
    from tieredsession.importing import ImportFrom

_log = logging.getLogger("tieredsession")

_NAME_CHARACTERS = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_ATTRIBUTE_LIMIT = 1024  # bytes of one cookie attribute that browsers keep (RFC 6265bis, 5.6)

_PREFIX = re.compile(r"[!-~]{0,100}")  # printable ASCII without the space
_DOMAIN = re.compile(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Setting:
    """One setting: its *default*, how it is read, and one sentence for the documentation."""

    name: str
    default: Any
    parse: Callable[[Any], Any]
    text: str


def _string(value: Any) -> str:
    if type(value) is not str or not value:
        raise ValueError("a non-empty string")
    return value


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def parse_optional(value: Any) -> Any:
        return None if value is None or value == "" else parse(value)

    return parse_optional


def _flag(value: Any) -> bool:
    return value if type(value) is bool else parse_bool(str(value))


def _seconds(value: Any) -> int:
    if hasattr(value, "total_seconds"):
        value = value.total_seconds()
    try:
        seconds = int(value)
    except (TypeError, ValueError, OverflowError):
        seconds = 0
    if type(value) is bool or not 0 < seconds <= MAX_LIFETIME:
        raise ValueError(f"a number of seconds from 1 to {MAX_LIFETIME}, or a timedelta")
    return seconds


def _duration(value: Any) -> int:
    """As :func:`_seconds`, and 0."""
    if value in (0, "0") and type(value) is not bool:
        return 0
    try:
        return _seconds(value)
    except ValueError as error:
        raise ValueError(f"0, or {error}") from None


def _share(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError("a number from 0 to less than 1")
    return share


def _choice(*options: str) -> Callable[[Any], str]:
    by_lower = {option.lower(): option for option in options}

    def parse(value: Any) -> str:
        if type(value) is not str or value.lower() not in by_lower:
            raise ValueError("one of " + ", ".join(map(repr, options)))
        return by_lower[value.lower()]

    return parse


def _secret(value: Any) -> str | bytes:
    if type(value) not in (str, bytes):
        raise ValueError("a str or bytes")
    # Files end with a line break: with it a secret would be another one, and fit no header.
    secret: str | bytes = value.strip() if type(value) is str else value
    return secret


def _secrets(value: Any) -> tuple[str | bytes, ...]:
    if type(value) is str:
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or any(type(v) not in (str, bytes) for v in value):
        raise ValueError("a list of secrets, each a str or bytes")
    return tuple(map(_secret, value))


def _rules(value: Any) -> dict[str, MergeRule]:
    if not isinstance(value, Mapping) or not all(callable(rule) for rule in value.values()):
        raise ValueError("a mapping of session keys to functions rule(base, mine, theirs)")
    return dict(value)


def _imports(value: Any) -> tuple[ImportFrom, ...]:
    # Only who moves in pays for what reads other frameworks' cookies.
    from tieredsession.importing import parse_imports

    return parse_imports(value)


_STORES = "tieredsession.stores"
COOKIE_STORE = f"{_STORES}.SecureCookieSessionStore"
HYBRID_STORE = f"{_STORES}.HybridSessionStore"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "SECRET_KEY", None, _optional(_secret), "At least 32 random bytes. Seals every session."
    ),
    Setting(
        "SECRET_KEY_FALLBACKS",
        (),
        _secrets,
        "Earlier secrets, which still open what they sealed. From the environment: with commas.",
    ),
    Setting(
        "SESSION_STORE", COOKIE_STORE, _string, "Where sessions live: the dotted path of a store."
    ),
    Setting(
        "SESSION_STORE_URL",
        None,
        _optional(_string),
        "Where that store is, such as ``sqlite:////var/lib/app/sessions.sqlite3``.",
    ),
    Setting(
        "SESSION_CACHE_URL",
        None,
        _optional(_string),
        "A cache in front of that store, such as ``memcached://10.0.0.2:11211``.",
    ),
    Setting(
        "SESSION_CACHE_AGE",
        600,
        _seconds,
        "Seconds that a session stays in the cache: the bound on staleness if it misbehaves.",
    ),
    Setting(
        "SESSION_STRICT_LOGOUT",
        False,
        _flag,
        "``True`` makes ending a session fail while the cache cannot be told of it.",
    ),
    Setting(
        "SESSION_PREFIX",
        "",
        _optional(_string),
        "Goes before every storage key and into every seal: applications can share store and "
        "secret.",
    ),
    Setting(
        "SESSION_COOKIE_NAME",
        None,
        _optional(_string),
        "The cookie's name: ``__Host-id`` where the browser allows that prefix (Secure, the "
        "path ``/`` and no domain), else ``__Secure-id``, or ``id`` without Secure.",
    ),
    Setting(
        "SESSION_COOKIE_SECURE",
        True,
        _flag,
        "``False`` lets the cookie travel over plain http: for development only.",
    ),
    Setting("SESSION_COOKIE_HTTPONLY", True, _flag, "Hide the cookie from scripts."),
    Setting(
        "SESSION_COOKIE_SAMESITE",
        "Lax",
        _choice("Lax", "Strict", "None"),
        "``Lax``, ``Strict`` or ``None``.",
    ),
    Setting("SESSION_COOKIE_DOMAIN", None, _optional(_string), "A domain to share the cookie in."),
    Setting("SESSION_COOKIE_PATH", "/", _string, "The path below which the cookie is sent."),
    Setting(
        "SESSION_COOKIE_PARTITIONED",
        False,
        _flag,
        "Keep one cookie per embedding site (CHIPS), for use in a frame.",
    ),
    Setting(
        "SESSION_COOKIE_AGE",
        14 * 24 * 3600,
        _seconds,
        "Seconds of idleness that end a session.",
    ),
    Setting(
        "SESSION_ABSOLUTE_AGE",
        None,
        _optional(_seconds),
        "Seconds after its creation (or login) that end a session in any case.",
    ),
    Setting(
        "SESSION_REFRESH",
        0.25,
        _share,
        "The share of the lifetime that passes before a use is written down.",
    ),
    Setting(
        "SESSION_EXPIRE_AT_BROWSER_CLOSE",
        True,
        _flag,
        "``False`` makes cookies persistent: they outlive the browser.",
    ),
    Setting(
        "SESSION_COOKIE_ENCRYPT",
        False,
        _flag,
        "Encrypt what travels or rests, with AES-256-GCM. Needs the extra ``encrypt``.",
    ),
    Setting(
        "SESSION_COOKIE_COMPRESS",
        None,
        _optional(_flag),
        "Shorten large cookies. On, unless they are encrypted: length gives text away.",
    ),
    Setting(
        "SESSION_CACHE_CONTROL",
        "private",
        _choice("private", "no-store"),
        "The ``Cache-Control`` beside a ``Set-Cookie``: ``private`` or ``no-store``.",
    ),
    Setting(
        "SESSION_PICKLE",
        False,
        _flag,
        "Also keep values that only pickle can keep. Not with a store that keeps data in cookies.",
    ),
    Setting(
        "SESSION_PRINCIPALS",
        False,
        _flag,
        "Keep an index from users to their sessions, to list them and to end them.",
    ),
    Setting(
        "SESSION_PURGE_URL",
        "/sessions/purge_old_sessions",
        _optional(_string),
        "The path at which cron may call the purge. Empty: none.",
    ),
    Setting(
        "SESSION_PURGE_BUDGET",
        480,
        _seconds,
        "Seconds after which a run of the purge stops, to go on at the next call.",
    ),
    Setting(
        "SESSION_PURGE_GRACE",
        600,
        _duration,
        "Seconds after its end for which a session is not yet purged.",
    ),
    Setting(
        "SESSION_PURGE_TOKEN",
        None,
        _optional(_secret),
        "A secret of at least 32 bytes: whoever sends it as ``Authorization: Bearer`` may call "
        "the purge.",
    ),
    Setting(
        "SESSION_PURGE_ACCOUNT",
        None,
        _optional(_string),
        "The service account as which Cloud Scheduler may call the purge, with an OIDC token. "
        "Needs the extra ``oidc``.",
    ),
    Setting(
        "SESSION_PURGE_AUDIENCE",
        None,
        _optional(_string),
        "The audience that such a token must be for: the URL that the scheduler calls.",
    ),
    Setting(
        "SESSION_MERGE_RULES",
        {},
        _rules,
        "Key to a function that decides when two requests changed it, as in "
        "``{'hits': tieredsession.merge.counter}``.",
    ),
    Setting(
        "SESSION_IMPORT_FROM",
        (),
        _imports,
        "Take over live sessions of Flask, Django, Starlette or Werkzeug: ``docs/moving-in.rst``.",
    ),
)

ALIASES = {
    "COOKIE_NAME": "SESSION_COOKIE_NAME",
    "COOKIE_AGE": "SESSION_COOKIE_AGE",
    "COOKIE_SECURE": "SESSION_COOKIE_SECURE",
    "SESSION_MEMCACHE_AGE": "SESSION_CACHE_AGE",
}
"""Kay's names for what has another name here. Kay's ``SESSION_PREFIX`` kept its own."""

STORE_ALIASES = {
    "kay.sessions.sessionstore.SecureCookieSessionStore": COOKIE_STORE,
    "kay.sessions.sessionstore.GAESessionStore": f"{_STORES}.GAESessionStore",
}

# What begins so is meant for us. A misspelled name of the old secrets would show at their rotation.
_OURS = ("SESSION_", "SECRET_KEY_FALLBACK")
_NOT_OURS = frozenset({"SESSION_MANAGER"})  # of the X11 session protocol, in every desktop's shell

_BY_NAME = {setting.name: setting for setting in SETTINGS}


class Settings:
    """The checked settings of one site, as attributes in lower case (``session_store``).

    Args:
        source: the name of a module, a module, a mapping, any object with upper-case
            attributes, other settings, or ``None`` for the environment.
        overrides: settings that go before those of *source*.

    Raises:
        ConfigurationError: a setting is missing, unknown, weak or contradicts another.
    """

    secret_key: str | bytes
    secret_key_fallbacks: tuple[str | bytes, ...]
    session_store: str
    session_store_url: str | None
    session_cache_url: str | None
    session_cache_age: int
    session_strict_logout: bool
    session_prefix: str
    session_cookie_name: str
    session_cookie_secure: bool
    session_cookie_httponly: bool
    session_cookie_samesite: str
    session_cookie_domain: str | None
    session_cookie_path: str
    session_cookie_partitioned: bool
    session_cookie_age: int
    session_absolute_age: int | None
    session_refresh: float
    session_expire_at_browser_close: bool
    session_cookie_encrypt: bool
    session_cookie_compress: bool
    session_cache_control: str
    session_pickle: bool
    session_principals: bool
    session_purge_url: str | None
    session_purge_budget: int
    session_purge_grace: int
    session_purge_token: str | bytes | None
    session_purge_account: str | None
    session_purge_audience: str | None
    session_merge_rules: dict[str, MergeRule]
    session_import_from: tuple[ImportFrom, ...]

    def __init__(self, source: object = None, **overrides: Any) -> None:
        given = self._given = {**_collect(source), **_rename(overrides)}
        for setting in SETTINGS:
            value = setting.default
            if setting.name in given:
                try:
                    value = setting.parse(given[setting.name])
                except ValueError as error:
                    raise ConfigurationError(f"{setting.name} must be {error}") from None
            setattr(self, setting.name.lower(), value)
        self._complete()
        self._check()

    def _complete(self) -> None:
        """Defaults that depend on other settings."""
        self.session_prefix = self.session_prefix or ""
        self.session_merge_rules = dict(self.session_merge_rules)
        self.session_store = STORE_ALIASES.get(self.session_store, self.session_store)
        if self.session_cookie_compress is None:
            self.session_cookie_compress = not self.session_cookie_encrypt
        if not self.session_cookie_name:
            prefix = ""
            if self.session_cookie_secure:
                shared = self.session_cookie_domain or self.session_cookie_path != "/"
                prefix = "__Secure-" if shared else "__Host-"
            self.session_cookie_name = prefix + "id"

    def _check(self) -> None:
        if self.secret_key is None:
            raise ConfigurationError(
                "SECRET_KEY is not set: make one with  "
                'python3 -c "import secrets; print(secrets.token_hex(32))"'
            )
        check_secret(self.secret_key, "SECRET_KEY")
        for secret in self.secret_key_fallbacks:
            check_secret(secret, "SECRET_KEY_FALLBACKS")
        self._check_cookie()
        self._check_purge()
        if self.session_store in (COOKIE_STORE, HYBRID_STORE):
            hybrid = self.session_store == HYBRID_STORE
            for name, value in (
                ("SESSION_PICKLE", self.session_pickle),
                ("SESSION_PRINCIPALS", self.session_principals),
                ("SESSION_CACHE_URL", self.session_cache_url and not hybrid),
            ):
                if value:
                    raise ConfigurationError(
                        f"{name} is for stores that keep the data on the server: "
                        f"set SESSION_STORE to one, or remove {name}"
                    )
        if not _PREFIX.fullmatch(self.session_prefix):
            raise ConfigurationError(
                "SESSION_PREFIX must be at most 100 printable ASCII characters without spaces"
            )
        absolute = self.session_absolute_age
        if absolute is not None and absolute < self.session_cookie_age:
            raise ConfigurationError(
                f"SESSION_ABSOLUTE_AGE ({absolute}) is below SESSION_COOKIE_AGE "
                f"({self.session_cookie_age}): no session could ever be idle that long"
            )
        if self.session_cookie_age > MAX_AGE and not self.session_expire_at_browser_close:
            _log.warning("SESSION_COOKIE_AGE: browsers cut a persistent cookie to 400 days")

    def _check_purge(self) -> None:
        if self.session_purge_token is not None:
            check_secret(self.session_purge_token, "SESSION_PURGE_TOKEN")
            if self.session_purge_token in (self.secret_key, *self.secret_key_fallbacks):
                raise ConfigurationError(
                    "SESSION_PURGE_TOKEN is sent around, and seals every session as SECRET_KEY: "
                    "make another"
                )
        if (self.session_purge_account is None) != (self.session_purge_audience is None):
            raise ConfigurationError(
                "SESSION_PURGE_ACCOUNT and SESSION_PURGE_AUDIENCE go together: set both, or neither"
            )
        url = self.session_purge_url
        if url is not None and not url.startswith("/"):
            raise ConfigurationError("SESSION_PURGE_URL must begin with '/', or be empty")

    def _check_cookie(self) -> None:
        name = self.session_cookie_name
        if not set(name) <= _NAME_CHARACTERS:
            raise ConfigurationError(
                f"SESSION_COOKIE_NAME {name!r} has characters that a cookie's name cannot have"
            )
        lower = name.lower()
        if lower.startswith(("__host-", "__secure-")):
            if not name.startswith(("__Host-", "__Secure-")):
                raise ConfigurationError(
                    f"SESSION_COOKIE_NAME {name!r} has its prefix in another case than browsers "
                    "look for: write __Host- or __Secure-"
                )
            if not self.session_cookie_secure:
                raise ConfigurationError(
                    f"SESSION_COOKIE_NAME {name!r} needs SESSION_COOKIE_SECURE = True: "
                    "browsers refuse the prefix on any other cookie"
                )
        if name.startswith("__Host-") and self.session_cookie_domain:
            raise ConfigurationError(
                f"SESSION_COOKIE_NAME {name!r} cannot have SESSION_COOKIE_DOMAIN: "
                "use the prefix __Secure-, or remove the domain"
            )
        if name.startswith("__Host-") and self.session_cookie_path != "/":
            raise ConfigurationError(
                f"SESSION_COOKIE_NAME {name!r} needs SESSION_COOKIE_PATH = '/': "
                "use the prefix __Secure-, or remove the path"
            )
        if not self.session_cookie_secure:
            for setting, value in (
                ("SESSION_COOKIE_SAMESITE = 'None'", self.session_cookie_samesite == "None"),
                ("SESSION_COOKIE_PARTITIONED = True", self.session_cookie_partitioned),
            ):
                if value:
                    raise ConfigurationError(f"{setting} needs SESSION_COOKIE_SECURE = True")
        for setting, text in (
            ("SESSION_COOKIE_PATH", self.session_cookie_path),
            ("SESSION_COOKIE_DOMAIN", self.session_cookie_domain or ""),
        ):
            if not text.isascii() or not text.isprintable() or ";" in text or "," in text:
                raise ConfigurationError(f"{setting} has characters that a cookie cannot carry")
            if len(text) > _ATTRIBUTE_LIMIT:
                raise ConfigurationError(f"{setting} is longer than {_ATTRIBUTE_LIMIT} bytes")
        domain = self.session_cookie_domain
        if domain is not None and not _DOMAIN.fullmatch(domain):
            raise ConfigurationError(
                "SESSION_COOKIE_DOMAIN must be a name such as example.org, without scheme or port"
            )
        if not self.session_cookie_path.startswith("/"):
            raise ConfigurationError("SESSION_COOKIE_PATH must begin with '/'")

    def __reduce__(self) -> NoReturn:
        raise TypeError("settings hold a secret and are not pickled")

    def __repr__(self) -> str:
        return f"<Settings, store {self.session_store}>"


def _collect(source: object) -> dict[str, Any]:
    """The settings in *source*, under their names of today."""
    if isinstance(source, Settings):
        return dict(source._given)
    if isinstance(source, str):
        try:
            source = import_module(source)
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigurationError(f"the settings module {source!r}: {error}") from None
    if source is None:
        found = {name: os.environ[name] for name in os.environ if _concerns(name)}
    elif isinstance(source, Mapping):
        found = {name: source[name] for name in source if type(name) is str and _concerns(name)}
    else:
        names = vars(source) if isinstance(source, ModuleType) else dir(source)
        found = {name: getattr(source, name) for name in names if _concerns(name)}
    return _rename(found)


def _concerns(name: str) -> bool:
    known = name in _BY_NAME or name in ALIASES
    return known or (name.startswith(_OURS) and name not in _NOT_OURS)


def _rename(found: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in found.items():
        real = ALIASES.get(name, name)
        if real not in _BY_NAME:
            raise ConfigurationError(_unknown(name))
        if real != name and real in found and found[real] != value:
            raise ConfigurationError(f"{name} and {real} say different things: keep one of them")
        given[real] = value
    return given


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name.upper(), [*_BY_NAME, *ALIASES], 1)
    hint = f"did you mean {close[0]}?" if close else "see the list of settings in the README"
    return f"{name} is not a setting: {hint}"
