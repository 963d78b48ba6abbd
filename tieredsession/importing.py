"""``SESSION_IMPORT_FROM``: whose live sessions are taken over, and by which cookies."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tieredsession.cookies import MAX_LINE, CookieWriter, find
from tieredsession.errors import ConfigurationError
from tieredsession.foreign import (
    DERIVATIONS,
    DIGESTS,
    KINDS,
    Reader,
    Refused,
    SecureCookie,
    SignedCookie,
)
from tieredsession.keyring import check_secret
from tieredsession.session import MAX_LIFETIME

_log = logging.getLogger("tieredsession")

_NAME = "SESSION_IMPORT_FROM"
_OPTIONS = (
    *("kind", "key", "cookie", "path", "domain", "partitioned"),
    *("max_age", "until", "salt", "digest", "key_derivation"),
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # what a cookie's name is made of (RFC 6265)
_PATH = re.compile(r"/[ -+\--:<-~]{0,1000}")  # printable ASCII but for , and ;
_TEXT = re.compile(r"[^\ud800-\udfff]*")
_DOMAIN = re.compile(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class ImportFrom:
    """One entry of ``SESSION_IMPORT_FROM``, with the defaults of its framework.

    *keys* is empty for the site's own secrets. *until* is seconds since the epoch.
    """

    kind: str
    keys: tuple[bytes, ...] = field(repr=False)
    cookie: str
    path: str
    domain: str | None
    partitioned: bool
    max_age: int
    until: float | None
    salt: str
    digest: str
    key_derivation: str


def parse_imports(value: Any) -> tuple[ImportFrom, ...]:
    """The entries of the setting, from a mapping, a list of them, or the JSON text of either.

    Raises:
        ValueError: it is none of these.
        ConfigurationError: an option is unknown, missing or wrong. No message holds a key.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, Mapping) for i in items):
        raise ValueError('a mapping such as {"kind": "flask"}, a list of them, or JSON text of it')
    return tuple(map(_import_from, items))


def _import_from(given: Mapping[str, Any]) -> ImportFrom:
    for option in given:
        if option not in _OPTIONS:
            raise _wrong(f"{option!r} is not an option: use {', '.join(_OPTIONS)}")
    kind = _one_of("kind", given.get("kind"), tuple(KINDS))
    default = KINDS[kind]
    if kind == "werkzeug":
        for option in ("salt", "key_derivation", "max_age"):
            if option in given:
                raise _wrong(f"'{option}' means nothing to werkzeug, whose cookies have none")
        if given.get("until") is None:
            raise _wrong(
                "werkzeug needs an 'until', such as \"2031-01-31\": its cookies may hold no time, "
                "and would be good for ever"
            )
    entry = ImportFrom(
        kind=kind,
        keys=_keys(given["key"]) if "key" in given else (),
        cookie=_text("cookie", given.get("cookie", default.cookie), _TOKEN, "a cookie's name"),
        path=_text("path", given.get("path", "/"), _PATH, "a path such as /"),
        domain=_text("domain", given["domain"], _DOMAIN, "a name such as example.org")
        if given.get("domain")
        else None,
        partitioned=_flag("partitioned", given.get("partitioned", False)),
        max_age=_seconds(given.get("max_age", default.max_age), default.max_age),
        until=_moment(given.get("until")),
        salt=_text("salt", given.get("salt", default.salt), _TEXT, "text"),
        digest=_one_of("digest", given.get("digest", default.digest), DIGESTS),
        key_derivation=default.derivation
        and _one_of("key_derivation", given.get("key_derivation", default.derivation), DERIVATIONS),
    )
    if entry.keys and not all(map(_is_strong, entry.keys)):
        _log.warning(
            "%s: a key of %s is weak, and whoever guesses it can make up sessions while it is "
            "there%s",
            _NAME,
            kind,
            "" if entry.until is not None else ": give the import an 'until'",
        )
    return entry


def _wrong(text: str) -> ConfigurationError:
    return ConfigurationError(f"{_NAME}: {text}")


def _one_of(option: str, value: Any, options: tuple[str, ...]) -> str:
    if type(value) is not str or value not in options:
        raise _wrong(f"'{option}' must be one of {', '.join(options)}")
    return value


def _text(option: str, value: Any, pattern: re.Pattern[str], what: str) -> str:
    if type(value) is not str or not pattern.fullmatch(value):
        raise _wrong(f"'{option}' must be {what}")
    return value


def _flag(option: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(f"'{option}' must be true or false")
    return value


def _seconds(value: Any, default: int) -> int:
    if isinstance(value, dt.timedelta):
        value = int(value.total_seconds())
    if type(value) is not int or (value != default and not 0 < value <= MAX_LIFETIME):
        raise _wrong(f"'max_age' must be a number of seconds from 1 to {MAX_LIFETIME}")
    return value


def _moment(value: Any) -> float | None:
    """Seconds since the epoch; a day means its first moment, and a time without a zone UTC."""
    if value is None:
        return None
    try:
        if not isinstance(value, (str, dt.date)):
            raise ValueError
        moment = dt.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise _wrong("'until' must be a date or time such as 2031-01-31") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.timezone.utc)
    return moment.timestamp()


def _keys(value: Any) -> tuple[bytes, ...]:
    """The keys, of which no message says more than that they are wrong."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(type(key) in (str, bytes) and key for key in values):
        raise _wrong("'key' must be a non-empty str or bytes, or a list of them")
    return tuple(map(_bytes, values))


def _bytes(key: str | bytes) -> bytes:
    return key.encode("utf-8", "surrogatepass") if isinstance(key, str) else bytes(key)


def _is_strong(key: bytes) -> bool:
    try:
        check_secret(key, _NAME)
    except ConfigurationError:
        return False
    return True


class Foreign(NamedTuple):
    """A session that another framework's cookie holds, and the line that deletes that cookie.

    *expire* is ``None`` where our own ``Set-Cookie`` replaces it.
    """

    kind: str
    data: dict[str, Any]
    expire: str | None


class Refusal(NamedTuple):
    """Why a cookie was not believed."""

    kind: str
    reason: str


class Importer:
    """Finds the sessions of other frameworks in a ``Cookie`` header.

    Args:
        sources: the entries of the setting, the first of which goes first.
        secrets: the site's own, for an entry without a key.
        cookie: the site's own, whose rules hold for the lines that delete others.

    Raises:
        MissingDependencyError: itsdangerous is not installed.
    """

    def __init__(
        self,
        sources: Sequence[ImportFrom],
        secrets: Sequence[str | bytes],
        *,
        cookie: CookieWriter,
        secure: bool = True,
        samesite: str = "Lax",
    ) -> None:
        self._sources: list[tuple[ImportFrom, Reader, str | None]] = []
        for source in sources:
            writer = CookieWriter(
                source.cookie,
                domain=source.domain,
                path=source.path,
                secure=secure,
                samesite=samesite,
                partitioned=source.partitioned,
            )
            expire = None if writer.place == cookie.place else writer.expire()
            self._sources.append((source, _reader(source, secrets), expire))

    def read(self, header: str | None, now: float) -> tuple[list[Foreign], list[Refusal]]:
        """The sessions in the cookies of *header*, one for each source at most.

        Several cookies of one name that are valid and different count as none.
        """
        found: list[Foreign] = []
        refused: list[Refusal] = []
        for source, reader, expire in self._sources:
            values = find(header, source.cookie)
            if not values or (source.until is not None and now >= source.until):
                continue
            sessions = []
            for value in values:
                try:
                    sessions.append(reader.read(_unquoted(value), now))
                except Refused as error:
                    refused.append(Refusal(source.kind, error.reason))
            if len(sessions) == 1:
                found.append(Foreign(source.kind, sessions[0], expire))
            elif sessions:
                refused.append(Refusal(source.kind, "ambiguous"))
        return found, refused


def _unquoted(value: str) -> bytes:
    if len(value) > MAX_LINE:
        raise Refused("oversized")
    if not value.isascii():
        raise Refused("malformed")
    if value[0] == value[-1] == '"':  # older frameworks quote what has = or ? in it
        value = value[1:-1]
    return value.encode()


def _reader(source: ImportFrom, secrets: Sequence[str | bytes]) -> Reader:
    keys = source.keys or tuple(map(_bytes, secrets))
    if source.kind == "werkzeug":
        return SecureCookie(keys, digest=source.digest)
    return SignedCookie(
        source.kind,
        keys,
        salt=source.salt,
        digest=source.digest,
        derivation=source.key_derivation,
        max_age=source.max_age,
    )
