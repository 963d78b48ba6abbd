"""What front ends say in the same words, whatever protocol they speak."""

from __future__ import annotations

import logging
import os

from tieredsession.cookies import Reply, add_headers
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
