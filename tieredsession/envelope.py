"""A record as sealed bytes: the body of a cookie, and a record at rest in every tier.

Format 1. A signed envelope::

    byte 0      0x1f: version 1, and the flags f
    bytes 1-4   expiry, seconds UTC, big-endian
    [varint]    seconds from creation to expiry, unless that is 14 days (flag 1)
    [varint, n] principal, UTF-8, if there is one (flag 2)
    ...         payload, raw deflate with the dictionary below if that is shorter (flag 4)
    16 bytes    HMAC-SHA256, cut to 128 bits, over the context and all of the above

An encrypted envelope keeps the times, too, from the reader::

    byte 0      0x20
    12 bytes    nonce
    ...         AES-256-GCM of: byte 0 with flags, expiry ... payload, 0x80, zeros to a
                multiple of 32 bytes; the context and byte 0 are authenticated with it

The *context* is the storage key of a record at rest, so that a writer to a cache can
neither forge a session nor put one in the place of another. What is sealed follows it
without a mark: of two contexts under one purpose, neither may begin with the other.
Nothing is parsed, decompressed or decoded before the tag has been verified, and the version
chooses the key and the algorithm together: there is no envelope without one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable

from tieredsession.contracts import Record
from tieredsession.errors import MissingDependencyError
from tieredsession.keyring import Cipher, Keyring

_SIGNED = 0x10
_ENCRYPTED = 0x20
_VERSION = 0xF0
_HAS_SPAN = 1
_HAS_PRINCIPAL = 2
_DEFLATED = 4

_HEAD = struct.Struct(">BI")  # flags and expiry
_TAG = 16
_PAD = 32
_WINDOW = 12  # bits: deflate looks 4096 bytes back
_USUAL_SPAN = 14 * 24 * 3600
_COMPRESS_FROM = 256  # bytes; below, deflate gains a few bytes for most of the time
_MAX_INFLATED = 1 << 18
_MAX_SHIFT = 35

# Part of format 1: it is never changed, only joined by another under another flag. What
# sessions are made of, the most frequent last, where deflate reaches it best: parts of
# messages, then keys as msgpack writes them, each behind the byte that tells its length.
_DICTIONARY = (
    b"Your Please Welcome back, have been saved. has been updated successfully. logged in out. "
    b"Login successful. Password changed expired invalid not found "
) + b"".join(
    bytes((0xA0 + len(word),)) + word
    for word in (
        b"last_seen created_at updated_at expires access_token refresh_token state nonce next "
        b"language timezone theme currency category total order email username roles permissions "
        b"is_admin authenticated _auth_user_id _auth_user_backend _auth_user_hash _permanent "
        b"_fresh danger info error warning message success items product_id quantity title url "
        b"en_US en_GB en-US de fr locale cart id sku qty price name user token csrf_token user_id "
        b"_csrf _flash"
    ).split()
)


class Refused(Exception):
    """Why an envelope was not opened; *reason* is a code of ``TokenRefused``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Envelope:
    """Seals records for one purpose, and opens them.

    Args:
        keyring: the secrets of the site.
        purpose: what the bytes are for; bytes sealed for another purpose are refused.
        encrypt: seal so that nobody can read; what was sealed either way is opened.
        compress: deflate a payload of 256 bytes or more when that makes it shorter. Leave
            it off beside ``encrypt``: length tells what attacker text repeats a secret.
        random: where nonces come from.
    """

    def __init__(
        self,
        keyring: Keyring,
        purpose: str,
        *,
        encrypt: bool = False,
        compress: bool = False,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._keyring = keyring
        self._purpose = purpose
        self._authenticator = keyring.authenticator(purpose, _TAG)
        self._sealing: Cipher | None = keyring.cipher(purpose) if encrypt else None
        self._opening = self._sealing
        self._random = random
        # Copies of a compressor that has read the dictionary.
        self._deflater = (
            zlib.compressobj(6, zlib.DEFLATED, -_WINDOW, 4, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
            if compress
            else None
        )

    def seal(self, record: Record, context: bytes = b"") -> bytes:
        """The sealed bytes of *record*; its version is not part of them."""
        body = self._write(record)
        if self._sealing is None:
            return body + self._authenticator.tag(context + body)
        head = bytes((_ENCRYPTED,))
        body += b"\x80"
        body += bytes(-len(body) % _PAD)
        nonce = self._random(Cipher.NONCE)
        return head + nonce + self._sealing.encrypt(nonce, body, context + head)

    def open(self, sealed: bytes, context: bytes = b"", version: int | None = None) -> Record:
        """The record in *sealed*, with *version* put into it, or its expiry for want of one.

        Raises:
            Refused: ``malformed`` or ``forged``. Whether the record is still alive is for
                the caller to ask.
        """
        found = self.examine(sealed, context, version)
        if isinstance(found, str):
            raise Refused(found)
        return found

    def examine(
        self, sealed: bytes, context: bytes = b"", version: int | None = None
    ) -> Record | str:
        """As :meth:`open`, with the reason as the answer: to raise costs more than to refuse."""
        kind = sealed[0] & _VERSION if sealed else 0
        if kind == _SIGNED:
            body, tag = sealed[:-_TAG], sealed[-_TAG:]
            if not self._authenticator.verify(context + body, tag):
                return "forged"
        elif kind == _ENCRYPTED:
            decrypted = self._decrypt(sealed, context)
            if isinstance(decrypted, str):
                return decrypted
            body = decrypted
        else:
            return "malformed"
        try:
            return self._read(body, version)
        except (IndexError, ValueError, struct.error, zlib.error):
            return "malformed"

    def _decrypt(self, sealed: bytes, context: bytes) -> bytes | str:
        if self._opening is None:
            # Another server of the site may encrypt already; read what it wrote.
            try:
                self._opening = self._keyring.cipher(self._purpose)
            except MissingDependencyError:
                return "malformed"
        nonce = sealed[1 : 1 + Cipher.NONCE]
        if len(sealed) < 1 + Cipher.NONCE + _TAG:
            return "malformed"
        body = self._opening.decrypt(nonce, sealed[1 + Cipher.NONCE :], context + sealed[:1])
        if body is None:
            return "forged"
        return body.rstrip(b"\0")[:-1]

    def _write(self, record: Record) -> bytes:
        payload = record.payload
        flags = _SIGNED
        extra = b""
        expires = int(record.expires)
        span = max(0, expires - int(record.created))
        if span != _USUAL_SPAN:
            flags |= _HAS_SPAN
            extra = _varint(span)
        if record.principal is not None:
            name = record.principal.encode()
            flags |= _HAS_PRINCIPAL
            extra += _varint(len(name)) + name
        if self._deflater is not None and _COMPRESS_FROM <= len(payload) <= _MAX_INFLATED:
            deflater = self._deflater.copy()
            deflated = deflater.compress(payload) + deflater.flush()
            if len(deflated) < len(payload):
                flags |= _DEFLATED
                payload = deflated
        return _HEAD.pack(flags, expires) + extra + payload

    def _read(self, body: bytes, version: int | None) -> Record:
        flags, expires = _HEAD.unpack_from(body)
        start = _HEAD.size
        span = _USUAL_SPAN
        principal = None
        if flags & _HAS_SPAN:
            span, start = _read_varint(body, start)
        if flags & _HAS_PRINCIPAL:
            size, start = _read_varint(body, start)
            principal = body[start : start + size].decode()
            start += size
        payload = body[start:]
        if flags & _DEFLATED:
            inflater = zlib.decompressobj(-_WINDOW, zdict=_DICTIONARY)
            payload = inflater.decompress(payload, _MAX_INFLATED)
            if not inflater.eof:
                raise ValueError("more than a session may inflate to")
        kept = expires if version is None else version
        return Record(payload, float(expires), float(expires - span), principal, kept)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, the high bit while more follow (LEB128)."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[start]
        start += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, start
        shift += 7
        if shift > _MAX_SHIFT:
            raise ValueError("a number beyond all time")
