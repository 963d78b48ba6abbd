"""Google's OIDC tokens: who is calling, as Google has signed it.

Cloud Scheduler and other Google services put one into ``Authorization: Bearer`` (OpenID
Connect Core 1.0, section 2). Signature, issuer, audience and time are for google-auth to check.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from tieredsession.errors import MissingDependencyError

try:
    from google.auth.exceptions import TransportError
    from google.oauth2 import id_token
except ImportError:
    raise MissingDependencyError("google-auth", "oidc") from None

_KEYS_KEPT = 3600.0  # seconds; Google changes its keys about once a day
_FAILURE_KEPT = 30.0
_OK, _UNAVAILABLE = 200, 503
_SKEW = 30
_TIMEOUT = 10


class _Response(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def data(self) -> bytes: ...


class Transport(Protocol):
    """Makes an HTTP request, as ``google.auth.transport.Request`` does."""

    def __call__(self, url: str, method: str = "GET", **options: Any) -> _Response: ...


class KeysUnavailable(Exception):
    """Google's public keys cannot be had, so nobody can be told from anybody."""


class CallerVerifier:
    """Tells whether a token says that *account* calls *audience*.

    Args:
        account: the e-mail address of a service account.
        audience: what the token must have been made for.
        transport: fetches Google's public keys; by ``requests`` for want of another.
        clock: monotonic seconds: how long the keys are kept.
    """

    def __init__(
        self,
        account: str,
        audience: str,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._audience = audience
        self._fetch = _KeptKeys(transport or _over_requests(), clock)

    def refusal(self, token: str) -> str | None:
        """Why *token* is not accepted, or ``None`` if it is.

        Raises:
            KeysUnavailable: it may be right, and cannot be verified now.
        """
        # First what costs nothing, so that strangers cannot make this server fetch keys.
        claimed = _claims(token)
        if claimed is None:
            return "not an OIDC token"
        if claimed.get("aud") != self._audience:
            return "for another audience"
        if claimed.get("email") != self._account:
            return "of another account"
        try:
            verify: Callable[..., Mapping[str, Any]] = id_token.verify_oauth2_token
            verified = verify(token, self._fetch, self._audience, clock_skew_in_seconds=_SKEW)
        except TransportError:
            raise KeysUnavailable from None
        except Exception:
            # GoogleAuthError, ValueError, or what a strange token does to a decoder.
            return "not signed by Google, or out of date"
        if verified.get("email") != self._account or verified.get("email_verified") is not True:
            return "of another account"
        return None


class _Kept(NamedTuple):
    status: int
    data: bytes


class _KeptKeys:
    """A transport that asks for the same URL once an hour, or twice a minute if it fails.

    A stranger can claim to be the right account: while Google is out of reach, his requests must
    not keep a worker waiting each. Nor need others wait for the one who asks.
    """

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._clock = clock
        self._kept: dict[str, tuple[float, _Kept]] = {}

    def __call__(self, url: str, method: str = "GET", **options: Any) -> _Response:
        until, kept = self._kept.get(url, (float("-inf"), _Kept(_UNAVAILABLE, b"")))
        if self._clock() >= until:
            self._kept[url] = (self._clock() + _FAILURE_KEPT, kept)  # for whoever comes meanwhile
            kept = self._ask(url, method, options)
            good = kept.status == _OK
            self._kept[url] = (self._clock() + (_KEYS_KEPT if good else _FAILURE_KEPT), kept)
        return kept

    def _ask(self, url: str, method: str, options: Mapping[str, Any]) -> _Kept:
        try:
            response = self._transport(url, method, timeout=_TIMEOUT, **options)
            if response.status == _OK and type(json.loads(response.data)) is dict:
                return _Kept(_OK, response.data)
        except (TransportError, ValueError):  # a proxy may answer with a page of its own
            pass
        return _Kept(_UNAVAILABLE, b"")


def _over_requests() -> Transport:
    try:
        from google.auth.transport.requests import Request
    except ImportError:
        raise MissingDependencyError("google-auth with requests", "oidc") from None
    transport: Transport = Request()
    return transport


def _claims(token: str) -> dict[str, Any] | None:
    """What a token says, unverified."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        return None
    try:
        claims = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (Base64Error, ValueError, RecursionError):
        return None
    return claims if type(claims) is dict else None
