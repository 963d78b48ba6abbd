"""Derived keys: tag, encrypt, rotate.

Every purpose gets a key of its own from each secret by HKDF-SHA256 (RFC 5869), so that a
token made for one purpose, cookie name or application is worthless for another. The first
secret seals; all of them open.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

from tieredsession.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from hashlib import _Hash

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIN_SECRET_BYTES = 32
_SALT = b"tieredsession 1"
_BLOCK = 64  # SHA-256 works on blocks of 64 bytes (RFC 2104)
_IPAD = bytes(byte ^ 0x36 for byte in range(256))
_OPAD = bytes(byte ^ 0x5C for byte in range(256))

# What samples, tutorials and generators put where a secret belongs.
_SAMPLES = (
    *("replaceit", "please set", "changeme", "change-me", "change me"),
    *("insecure", "django-insecure", "secret"),
)


def check_secret(secret: str | bytes, name: str) -> bytes:
    """The bytes of *secret*, or a ``ConfigurationError`` that names the setting *name*.

    At least 32 bytes (the strength of the SHA-256 key it becomes), not a sample text, and
    not one pattern over and over.
    """
    raw = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else bytes(secret)
    fix = 'make one with  python3 -c "import secrets; print(secrets.token_hex(32))"'
    if len(raw) < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"{name} has {len(raw)} bytes and needs at least {MIN_SECRET_BYTES}: {fix}"
        )
    if len(set(raw)) < 8 or raw in (raw + raw)[1:-1]:
        raise ConfigurationError(f"{name} repeats itself and can be guessed: {fix}")
    text = raw.lower().decode("utf-8", "replace")
    if any(text.startswith(sample) for sample in _SAMPLES):
        raise ConfigurationError(f"{name} looks like a sample text: {fix}")
    return raw


def _derive(secret: bytes, purpose: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) to one block of output, which is all that is needed here."""
    pseudorandom = hmac.digest(_SALT, secret, "sha256")
    return hmac.digest(pseudorandom, purpose.encode() + b"\x01", "sha256")


class _Hidden:
    """Holds key material: it has no repr that shows it and cannot be pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds keys and is not pickled")


class HmacAuthenticator(_Hidden):
    """HMAC-SHA256 (RFC 2104), cut to *size* bytes, under the first key; all keys verify.

    The hash states after the padded keys are kept and copied: setting up a key costs more
    than the hash of a session.
    """

    __slots__ = ("_size", "_states")

    def __init__(self, keys: Sequence[bytes], size: int = 16) -> None:
        short = [key if len(key) <= _BLOCK else sha256(key).digest() for key in keys]
        padded = [key.ljust(_BLOCK, b"\0") for key in short]
        self._states = [(sha256(p.translate(_IPAD)), sha256(p.translate(_OPAD))) for p in padded]
        self._size = size

    def tag(self, message: bytes) -> bytes:
        return self._mac(self._states[0], message)

    def tags(self, message: bytes) -> list[bytes]:
        """The tags under all keys: what was tagged before a rotation is among them."""
        return [self._mac(states, message) for states in self._states]

    def verify(self, message: bytes, tag: bytes) -> bool:
        for states in self._states:  # noqa: SIM110 - a generator costs more than the hash
            if hmac.compare_digest(self._mac(states, message), tag):
                return True
        return False

    def _mac(self, states: tuple[_Hash, _Hash], message: bytes) -> bytes:
        inner = states[0].copy()
        inner.update(message)
        outer = states[1].copy()
        outer.update(inner.digest())
        return outer.digest()[: self._size]


class Cipher(_Hidden):
    """AES-256-GCM (NIST SP 800-38D) under the first key; all keys decrypt.

    Nonces are 96 random bits: replace a secret well before 2**32 seals under it.
    """

    __slots__ = ("_ciphers",)

    NONCE = 12

    def __init__(self, keys: Sequence[bytes]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingDependencyError("encryption (cryptography)", "encrypt") from None
        self._ciphers: list[AESGCM] = [AESGCM(key) for key in keys]

    def encrypt(self, nonce: bytes, plain: bytes, context: bytes) -> bytes:
        return self._ciphers[0].encrypt(nonce, plain, context)

    def decrypt(self, nonce: bytes, sealed: bytes, context: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag

        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, sealed, context)
            except InvalidTag:
                continue
        return None


class Keyring(_Hidden):
    """The secrets of a site; hands out what works under keys derived from them.

    Args:
        secret: ``SECRET_KEY``, which seals and opens.
        fallbacks: ``SECRET_KEY_FALLBACKS``, which only open. What one of them opened is
            sealed under *secret* at the next save.

    Raises:
        ConfigurationError: a secret is too short, a sample, or a repetition.
    """

    __slots__ = ("_secrets",)

    def __init__(self, secret: str | bytes, fallbacks: Sequence[str | bytes] = ()) -> None:
        self._secrets = [check_secret(secret, "SECRET_KEY")]
        self._secrets += [check_secret(old, "SECRET_KEY_FALLBACKS") for old in fallbacks]

    def authenticator(self, purpose: str, size: int = 16) -> HmacAuthenticator:
        """A MAC of *size* bytes for one *purpose*."""
        return HmacAuthenticator([_derive(s, "mac:" + purpose) for s in self._secrets], size)

    def cipher(self, purpose: str) -> Cipher:
        """Encryption for one *purpose*, under other keys than its MAC."""
        return Cipher([_derive(s, "aead:" + purpose) for s in self._secrets])
