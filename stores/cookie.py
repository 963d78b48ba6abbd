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

    Each request stands on the cookie that it brought, so there are no conflicts: of two
    requests at once, the one that answers last is what the browser keeps. The version of a
    record is the expiry of the token that it was read from, which an update may not pass.
    """

    revocable = False
    blocking = False

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
            sealed = decode_base64(token)
            if sealed is None:
                raise Refused("malformed")
            record = self._envelope.open(sealed)
            if record.expires <= now:
                raise Refused("expired")
        except Refused as refused:
            if self._observer is not None:
                self._observer(TokenRefused(refused.reason))
            return None
        return record

    def create(self, record: Record, now: float) -> Saved:
        return Saved(encode_base64(self._envelope.seal(record)), int(record.expires))

    def update(self, token: str, record: Record, now: float) -> Saved:
        if record.version <= now:
            raise Gone("the session has expired")
        return self.create(record, now)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        """The browser is told to forget the cookie; there is nothing else to delete."""
        if version is not None and version <= now:
            raise Gone("the session has expired")

    def label(self, token: str) -> str | None:
        return None
