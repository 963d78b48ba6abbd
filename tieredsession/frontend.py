"""What front ends say in the same words, whatever protocol they speak."""

from __future__ import annotations

import logging
import os
from typing import Any

from tieredsession.cookies import Reply, add_headers
from tieredsession.session import Session, SessionIO
from tieredsession.settings import Settings

UNAVAILABLE = b"Service Unavailable\n"
"""The body of a 503, which a visitor gets while a store cannot answer."""

_HEADERS = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(UNAVAILABLE))),
    ("Cache-Control", "no-store"),
    ("Retry-After", "5"),
)

_log = logging.getLogger("tieredsession")


def unavailable_headers(reply: Reply | None) -> list[tuple[str, str]]:
    """The headers of that 503, to which the session owes *reply*.

    What was saved before the store failed may stand under another id by now.
    """
    headers = list(_HEADERS)
    if reply is not None and reply.set_cookies:
        add_headers(headers, reply)
    return headers


class PlainHTTPWatch:
    """Says so in the log when cookies without ``Secure`` leave the machine they are made on.

    *active* tells whether there is anything left to look for: a warning is given once.
    """

    def __init__(self, settings: Settings) -> None:
        self.active = not settings.session_cookie_secure
        if self.active and ("K_SERVICE" in os.environ or "GAE_ENV" in os.environ):
            self._warn("this is a cloud service")

    def look_at(self, address: str) -> None:
        """A request came from *address*, which is empty for a local socket."""
        from ipaddress import ip_address

        try:
            local = not address or ip_address(address.removeprefix("::ffff:")).is_loopback
        except ValueError:
            local = False
        if not local:
            self.active = False
            self._warn(f"a request came from {address}")

    def _warn(self, reason: str) -> None:
        _log.warning(
            "SESSION_COOKIE_SECURE is False, which is for development on one's own machine, "
            "and %s: session cookies travel in clear",
            reason,
        )


class LoginSession(Session):
    """A session in which a framework keeps who has logged in, under a key of its own.

    Its login gives the session a new id and binds it to that user, if the application does
    not bind it itself; after its logout it is nobody's. What the session holds stays, as there.
    """

    __slots__ = ("_former",)

    _login_key: str

    def __init__(self, io: SessionIO, cookie_header: str | None) -> None:
        super().__init__(io, cookie_header)
        # Whose it was before this request's login bound it, in a tuple; empty without one.
        self._former: tuple[str | None, ...] = ()

    def bind(self, principal: str | None, *, device: str | None = None) -> None:
        """As ``Session.bind``, which goes before what the framework's login has bound."""
        if self._former:
            (self._state or self._touch()).principal = self._former[0]
            self._former = ()
        super().bind(principal, device=device)

    def __setitem__(self, key: str, value: Any) -> None:
        if key != self._login_key or self.get(key) == value:
            super().__setitem__(key, value)
            return
        user = self._user()
        self.renew(restart=True)
        super().__setitem__(key, value)
        state = self._state or self._touch()
        if state.principal in (None, user):
            self._former = (state.principal,)
            state.principal = self._user()

    def __delitem__(self, key: str) -> None:
        if key == self._login_key:
            self.bind(None)
        super().__delitem__(key)

    def _user(self) -> str | None:
        """Who has logged in, by the framework."""
        user = self.get(self._login_key)
        return None if user is None else str(user) or None
