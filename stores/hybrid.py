"""The cookie while it is enough, the server when it is not.

An anonymous visitor with little data costs the server nothing. A session that outgrows the
cookie, or that somebody logs in to, moves to the server store, under an id, and stays there:
there it can be revoked.
"""

from __future__ import annotations

from tieredsession.contracts import Record, Saved, SessionStore

COOKIE_LIMIT = 3600
"""Characters of a token beyond which a session moves: browsers keep 4096 for the whole line."""


class HybridSessionStore:
    """A :class:`SessionStore` made of one that is the cookie and one on the server.

    Args:
        cookie: keeps the data in its tokens.
        server: keeps it under an id.
        limit: characters of a cookie token, at most.
    """

    revocable = False  # some of its sessions are, but a change of any may need a new token

    def __init__(
        self, cookie: SessionStore, server: SessionStore, limit: int = COOKIE_LIMIT
    ) -> None:
        self.cookie = cookie
        self.server = server
        self._limit = limit
        self.sweepable = server
        """Where rows are to be swept."""

    def load(self, token: str, now: float) -> Record | None:
        return self._home(token).load(token, now)

    def create(self, record: Record, now: float) -> Saved:
        if record.principal is None:
            saved = self.cookie.create(record, now)
            if len(saved.token) <= self._limit:
                return saved
        return self.server.create(record, now)

    def create_successor(self, token: str, record: Record, now: float) -> Saved:
        return (self if self._home(token) is self.cookie else self.server).create(record, now)

    def update(self, token: str, record: Record, now: float) -> Saved:
        home = self._home(token)
        saved = home.update(token, record, now)  # first of all: is it still alive?
        if home is self.server:
            return saved
        if record.principal is None and len(saved.token) <= self._limit:
            return saved
        return self.server.create(record, now)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        self._home(token).delete(token, now, version)

    def label(self, token: str) -> str | None:
        return self.server.label(token)

    def close(self) -> None:
        """Close what the part on the server holds open; it opens it again if it is used again."""
        close = getattr(self.server, "close", None)
        if close is not None:
            close()

    def _home(self, token: str) -> SessionStore:
        return self.cookie if self.server.label(token) is None else self.server
