"""The cookie is the store: the sealed data travels with the visitor.

No server is asked and nothing is kept, so nothing can be taken back either: ``delete``
makes the visitor's browser forget the cookie, and a copy of it stays valid until it
expires. A session that must end for good at logout belongs in another store.
"""

from __future__ import annotations

from tieredsession.contracts import Observer, Record, Saved
from tieredsession.envelope import Envelope, Refused
from tieredsession.errors import Gone
from tieredsession.events import TokenRefused
from tieredsession.options import StoreOptions
from tieredsession.tokens import decode_base64, encode_base64


class SecureCookieSessionStore:
    """Sessions in one sealed cookie: signed, or encrypted with ``SESSION_COOKIE_ENCRYPT``.

    Each request stands on the cookie that it brought, so there are no versions and no
    conflicts: of two requests at once, the one that answers last is what the browser keeps.
    """

    revocable = False

    def __init__(self, envelope: Envelope, observer: Observer | None = None) -> None:
        self._envelope = envelope
        self._observer = observer

    @classmethod
    def from_options(cls, options: StoreOptions) -> SecureCookieSessionStore:
        if options.url is not None:
            raise options.url.error("is set, but SecureCookieSessionStore keeps nothing anywhere")
        return cls(options.cookie_envelope, options.observer)

    def load(self, token: str, now: float) -> Record | None:
        try:
            record = self._open(token)
            if record.expires <= now:
                raise Refused("expired")
        except Refused as refused:
            if self._observer is not None:
                self._observer(TokenRefused(refused.reason))
            return None
        return record

    def create(self, record: Record, now: float) -> Saved:
        return Saved(encode_base64(self._envelope.seal(record)), 0)

    def update(self, token: str, record: Record, now: float) -> Saved:
        self._check(token, now)
        return self.create(record, now)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        """The browser is told to forget the cookie; there is nothing else to delete."""
        if version is not None:
            self._check(token, now)

    def label(self, token: str) -> str | None:
        return None

    def _check(self, token: str, now: float) -> None:
        try:
            if self._open(token).expires <= now:
                raise Gone("the session has expired")
        except Refused:
            raise Gone("the token is not a session") from None

    def _open(self, token: str) -> Record:
        sealed = decode_base64(token)
        if sealed is None:
            raise Refused("malformed")
        return self._envelope.open(sealed)
