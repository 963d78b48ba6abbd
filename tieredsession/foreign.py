"""Session cookies that other frameworks signed: verified with their own key, then read.

Flask, Starlette and Django's ``signed_cookies`` sign a text and a time in the way of
``itsdangerous``, which checks all three here. Werkzeug's ``SecureCookie`` (of
``werkzeug.contrib`` once, of the package ``secure-cookie`` now) has an HMAC over its items.

What they hold is read as JSON, after the signature has been verified, and in no other way:
pickled data is refused, whoever signed it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import zlib
from base64 import b64decode, b64encode, urlsafe_b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_plus
from uuid import UUID

from tieredsession.contracts import CLOCK_SKEW
from tieredsession.errors import MissingDependencyError

MAX_JSON = 1 << 18
"""Bytes that a compressed cookie may grow to: more than sixty times what a browser keeps."""

_DAY = 24 * 3600
_BASE62 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_EPOCH_2011 = 1293840000  # itsdangerous counted from here before its version 1.0


class Kind(NamedTuple):
    """What a framework does if nobody tells it otherwise.

    *salt* and *derivation* are empty where there is no such thing, and *max_age* (seconds)
    is 0 where the cookies have no time in them.
    """

    cookie: str
    salt: str
    digest: str
    derivation: str
    max_age: int


KINDS = {
    "flask": Kind("session", "cookie-session", "sha1", "hmac", 31 * _DAY),
    "django": Kind(
        "sessionid",
        "django.contrib.sessions.backends.signed_cookies",
        "sha256",
        "django-concat",
        14 * _DAY,
    ),
    "starlette": Kind("session", "itsdangerous.Signer", "sha1", "django-concat", 14 * _DAY),
    "werkzeug": Kind("session", "", "sha1", "", 0),
}
DIGESTS = ("sha1", "sha224", "sha256", "sha384", "sha512")
DERIVATIONS = ("hmac", "django-concat", "concat", "none")


class Refused(Exception):
    """A cookie that is not believed; *reason* is one of ``events.ImportRefused``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reader(Protocol):
    """Reads the cookies of one framework."""

    def read(self, value: bytes, now: float) -> dict[str, Any]:
        """The session in *value*. Raise :class:`Refused` if there is none to be believed."""
        ...


class SignedCookie:
    """The cookies of Flask, Django and Starlette: payload, time and signature in base64.

    Args:
        kind: one of those three.
        keys: any of them may have signed.
        salt: what the framework calls so.
        digest: the name of a hash function.
        derivation: how a key is made of the salt and a secret, in the words of itsdangerous.
        max_age: seconds after which a cookie is too old.

    Raises:
        MissingDependencyError: itsdangerous is not installed.
    """

    def __init__(
        self,
        kind: str,
        keys: Sequence[bytes],
        *,
        salt: str,
        digest: str,
        derivation: str,
        max_age: int,
    ) -> None:
        try:
            from itsdangerous import Signer
        except ImportError:
            raise MissingDependencyError("itsdangerous", "import") from None
        self._sep = b":" if kind == "django" else b"."
        self._signers = [
            Signer(
                key,
                salt=salt,
                sep=self._sep,
                key_derivation=derivation,
                digest_method=getattr(hashlib, digest),
            )
            for key in keys
        ]
        self._max_age = max_age
        self._time = _base62 if kind == "django" else _base256
        self._load = _LOADERS[kind]

    def read(self, value: bytes, now: float) -> dict[str, Any]:
        signed, _, signature = value.rpartition(self._sep)
        payload, _, stamp = signed.rpartition(self._sep)
        if not payload or not stamp:
            raise Refused("malformed")
        # As text: base64 has several spellings for the same bytes.
        if not any(
            hmac.compare_digest(signer.get_signature(signed), signature) for signer in self._signers
        ):
            raise Refused("forged")
        with _decoding():
            issued = self._time(stamp)
        if issued > now + CLOCK_SKEW:
            raise Refused("future")
        if now - issued > self._max_age:
            raise Refused("expired")
        with _decoding():
            return _session(self._load(payload))


class SecureCookie:
    """The cookies of Werkzeug's ``SecureCookie`` with JSON in them: an HMAC and quoted items.

    Args:
        keys: any of them may have signed.
        digest: the name of a hash function.
    """

    def __init__(self, keys: Sequence[bytes], *, digest: str) -> None:
        self._keys = keys
        self._digest = digest

    def read(self, value: bytes, now: float) -> dict[str, Any]:
        tag, found, text = value.partition(b"?")
        # Their HMAC has a "|" before each item: one that is in an item could stand for two.
        if not found or b"|" in text:
            raise Refused("malformed")
        message = b"|" + text.replace(b"&", b"|")
        if not any(
            hmac.compare_digest(b64encode(hmac.digest(key, message, self._digest)), tag)
            for key in self._keys
        ):
            raise Refused("forged")
        with _decoding():
            data = dict(map(_item, text.split(b"&")))
            if now > float(data.pop("_expires", now)):
                raise Refused("expired")
        return data


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever goes wrong with authentic data is one answer."""
    try:
        yield
    except Refused:
        raise
    except Exception:
        # ValueError, TypeError, RecursionError, zlib.error, or what a type's constructor raises.
        raise Refused("undecodable") from None


def _base256(stamp: bytes) -> int:
    issued = int.from_bytes(_unpad(stamp), "big")
    return issued if issued >= _EPOCH_2011 else issued + _EPOCH_2011


def _base62(stamp: bytes) -> int:
    issued = 0
    for digit in stamp:
        issued = issued * 62 + _BASE62.index(digit)
    return issued


def _unpad(text: bytes) -> bytes:
    return urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def _inflated(payload: bytes) -> bytes:
    """The bytes behind base64, which a dot in front says are compressed."""
    if payload[:1] != b".":
        return _unpad(payload)
    inflate = zlib.decompressobj()
    data = inflate.decompress(_unpad(payload[1:]), MAX_JSON)
    if not inflate.eof:
        raise Refused("oversized" if len(data) == MAX_JSON else "undecodable")
    return data


def _json(data: bytes) -> Any:
    if data[:1] == b"\x80":  # no JSON begins with it, and every pickle since 2003 does
        raise Refused("pickled")
    return json.loads(data.decode())


def _session(data: Any) -> dict[str, Any]:
    if type(data) is not dict:
        raise Refused("undecodable")
    return data


def _item(item: bytes) -> tuple[str, Any]:
    key, _, value = item.partition(b"=")
    return unquote_plus(key.decode("ascii")), _json(b64decode(value))


# -- Flask's tagged JSON --------------------------------------------------------------


def _untag(value: Any) -> Any:
    """*value* with the types that Flask writes as a dict of one tag."""
    if type(value) is list:
        return [_untag(item) for item in value]
    if type(value) is not dict:
        return value
    plain = {key: _untag(item) for key, item in value.items()}
    if len(plain) == 1:
        ((tag, content),) = plain.items()
        if tag in _TAGS:
            return _TAGS[tag](content)
    return plain


def _untag_dict(value: dict[str, Any]) -> dict[str, Any]:
    ((key, content),) = value.items()
    return {key[:-2]: content}


_TAGS: dict[str, Callable[[Any], Any]] = {
    " di": _untag_dict,
    " t": tuple,
    " b": b64decode,
    " m": str,  # markup comes as its text: whatever shows it will escape it, the safe mistake
    " u": UUID,
    " d": parsedate_to_datetime,
}

_LOADERS: dict[str, Callable[[bytes], Any]] = {
    "flask": lambda payload: _untag(_json(_inflated(payload))),
    "django": lambda payload: _json(_inflated(payload)),
    "starlette": lambda payload: _json(b64decode(payload)),
}
