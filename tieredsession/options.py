"""What a store is told about the site that it serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from tieredsession.contracts import Observer
from tieredsession.envelope import Envelope
from tieredsession.keyring import Keyring
from tieredsession.tokens import MAC_BYTES, Owners, SessionIds
from tieredsession.url import URL


@dataclass(frozen=True)
class StoreOptions:
    """Handed to the ``from_options`` of whatever ``SESSION_STORE`` names.

    Args:
        keyring: the secrets of the site.
        cookie_name: part of every purpose, so that no token passes for another cookie's.
        prefix: goes before every storage key, and is part of every purpose as well.
        url: ``SESSION_STORE_URL``, or ``None`` for the store's own default.
        encrypt: seal so that nobody without a key can read.
        compress: make cookies shorter where that helps.
        principals: keep an index from principals to their sessions.
        observer: is told why a token was refused.
    """

    keyring: Keyring
    cookie_name: str
    prefix: str = ""
    url: URL | None = None
    encrypt: bool = False
    compress: bool = False
    principals: bool = False
    observer: Observer | None = field(default=None, repr=False)

    @cached_property
    def ids(self) -> SessionIds:
        """Ids of this cookie name and prefix."""
        purpose = f"id:{self.cookie_name}:{self.prefix}"
        return SessionIds(self.keyring.authenticator(purpose, MAC_BYTES), self.prefix)

    @cached_property
    def cookie_envelope(self) -> Envelope:
        """Seals the data that travels in the cookie."""
        application = f":{self.prefix}" if self.prefix else ""  # no cookie's name has a colon
        return Envelope(
            self.keyring,
            f"cookie:{self.cookie_name}{application}",
            encrypt=self.encrypt,
            compress=self.compress,
        )

    @cached_property
    def record_envelope(self) -> Envelope:
        """Seals records at rest."""
        return Envelope(self.keyring, f"record:{self.prefix}", encrypt=self.encrypt)

    @cached_property
    def owners(self) -> Owners | None:
        """Names principals in an index, or ``None`` if none is kept."""
        if not self.principals:
            return None
        return Owners(self.keyring.authenticator(f"owner:{self.prefix}"))
