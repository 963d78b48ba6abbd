"""Session ids: minting, checking, hashing for storage.

An id token is 16 random bytes and an 8-byte MAC over them, 32 characters of base64url.
128 random bits is what OWASP ASVS 5.0 (7.2.3) asks for; the MAC lets a forged id be
refused without asking any tier, so guessing costs the guesser and nobody else. What a
store sees is the SHA-256 of the random part: neither a dump of the database nor of the
cache opens a session.
"""

from __future__ import annotations

import os
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from typing import Protocol

_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
# What only plain base64 has becomes what no base64 has.
_FROM_URLSAFE = bytes.maketrans(b"-_+/=", b"+/!!!")
# The last characters whose unused bits are 0, by the length of the text modulo 4.
_LAST = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
    "",
    "AQgw",
    "AEIMQUYcgkosw048",
)

TOKEN_LENGTH = 32
KEY_DIGITS = 64
_RANDOM = 16
MAC_BYTES = 8

_REMEMBERED = 64  # tokens; a thread asks for the one of its request several times


class Authenticator(Protocol):
    """Tags bytes under a key, and recognises its own tags."""

    def tag(self, message: bytes) -> bytes: ...

    def tags(self, message: bytes) -> list[bytes]: ...

    def verify(self, message: bytes, tag: bytes) -> bool: ...


def encode_base64(data: bytes) -> str:
    """base64url (RFC 4648, section 5) without padding."""
    return b2a_base64(data, newline=False).translate(_TO_URLSAFE).rstrip(b"=").decode("ascii")


def decode_base64(text: str) -> bytes | None:
    """The bytes that :func:`encode_base64` would write as *text*, or ``None``."""
    try:
        data = a2b_base64(text.encode("ascii").translate(_FROM_URLSAFE) + b"==")
    except (Base64Error, UnicodeEncodeError):
        return None
    # The decoder skips foreign characters and ignores unused bits; no token has two spellings.
    size = len(text)
    whole = len(data) == size * 3 // 4 and text[-1:] in _LAST[size % 4]
    return data if whole else None


class _Refused(Exception):
    pass


class SessionIds:
    """Mints id tokens and turns them into storage keys.

    *authenticator* tags with 8 bytes; *prefix* goes before every storage key, so
    that several applications can share one database and one cache.

    A request asks for the key of its token in every layer that it passes, and the answer
    never changes: the last few are remembered. They are found by a hash that nobody outside
    can compute, so the time that it takes tells a guesser nothing.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        prefix: str = "",
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._authenticator = authenticator
        self._prefix = prefix
        self._random = random
        # What raises is not remembered: forged tokens push no others out.
        self._know = lru_cache(_REMEMBERED)(self._authenticate)

    @property
    def prefix(self) -> str:
        """What every storage key begins with; ``KEY_DIGITS`` hex digits follow."""
        return self._prefix

    def mint(self) -> tuple[str, str]:
        """A new token, from the operating system's random source, and its storage key."""
        secret = self._random(_RANDOM)
        token = encode_base64(secret + self._authenticator.tag(secret))
        return token, self._hash(secret)

    def key(self, token: str) -> str | None:
        """The storage key of an authentic *token*, or ``None`` for any other text."""
        try:
            return self._know(token)[0]
        except _Refused:
            return None

    def current(self, token: str) -> str:
        """An authentic *token* under the first key: the same id, and the same storage key.

        So an id that was minted before a rotation of keys outlives the fallback key.
        """
        return self._know(token)[1]

    def refusal(self, token: str) -> str:
        """Why :meth:`key` refuses *token*: a reason code of ``TokenRefused``."""
        proper = len(token) == TOKEN_LENGTH and decode_base64(token) is not None
        return "forged" if proper else "malformed"

    def label(self, token: str) -> str | None:
        """Twelve hex digits of the storage key, for logs: they open nothing."""
        key = self.key(token)
        return None if key is None else self.label_of(key)

    def label_of(self, key: str) -> str:
        """The same, of a storage key."""
        start = len(self._prefix)
        return key[start : start + 12]

    def _authenticate(self, token: str) -> tuple[str, str]:
        """What an authentic *token* stands for: its storage key, and itself under the first key."""
        raw = decode_base64(token) if len(token) == TOKEN_LENGTH else None
        if raw is None:
            raise _Refused
        secret, tag = raw[:_RANDOM], raw[_RANDOM:]
        current = self._authenticator.tag(secret)
        if compare_digest(current, tag):
            return self._hash(secret), token
        if not self._authenticator.verify(secret, tag):
            raise _Refused
        return self._hash(secret), encode_base64(secret + current)

    def _hash(self, secret: bytes) -> str:
        return self._prefix + sha256(secret).hexdigest()


class Owners:
    """Names principals by keyed hashes, so that an index tells nobody who they are."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def name(self, principal: str | None) -> str | None:
        """The name under which a session of *principal* is indexed."""
        return None if principal is None else self._authenticator.tag(principal.encode()).hex()

    def names(self, principal: str) -> list[str]:
        """The names that it may be indexed under, also from before a rotation of keys."""
        return [tag.hex() for tag in self._authenticator.tags(principal.encode())]
