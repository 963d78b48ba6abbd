"""One strict parser for the URLs of stores and caches.

``scheme://[user[:password]@]host[:port][,host[:port]...][/path][?option=value&...]``. An
option that nobody reads is a mistake, so :meth:`URL.finish` refuses it. The password
never shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

from tieredsession.errors import ConfigurationError

T = TypeVar("T")

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def parse_bool(text: str) -> bool:
    """``1``, ``true``, ``yes``, ``on`` or their opposites, in any case."""
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("true or false")


class URL:
    """A parsed URL. Read its options with :meth:`option`, then call :meth:`finish`.

    Attributes:
        scheme: in lower case.
        hosts: ``(host, port)`` pairs; the port is ``None`` where none was given.
        path: with its leading slash, percent-decoded; empty if there is none.
        username: percent-decoded, or ``None``.
        password: percent-decoded, or ``None``.

    Raises:
        ConfigurationError: *text* is no such URL.
    """

    def __init__(self, text: str, setting: str) -> None:
        self._setting = setting
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme.replace("+", "").isalnum():
            raise self.error('has no scheme, such as "sqlite://" or "redis://"')
        self.scheme = scheme.lower()
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        if authority and ("@" in path or "@" in query):
            # Most likely a password with a special character in it: nothing of it is quoted.
            raise self.error("has an @ behind its host: write %40, and / : ? in a password alike")
        self.path = unquote(slash + path)
        userinfo, at, hosts = authority.rpartition("@")
        user, colon, password = userinfo.partition(":")
        self.username = unquote(user) if at and user else None
        self.password = unquote(password) if colon else None
        self.hosts = [self._host(part) for part in hosts.split(",")] if hosts else []
        pairs = parse_qsl(query, keep_blank_values=True)
        self._options = dict(pairs)
        if len(self._options) != len(pairs):
            raise self.error("names an option twice")

    def _host(self, text: str) -> tuple[str, int | None]:
        if text.startswith("["):  # an IPv6 address
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise self.error("has a malformed host")
            port = rest[1:]
        else:
            host, _, port = text.partition(":")
        if not host:
            raise self.error("has an empty host")
        if not port:
            return host, None
        if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
            raise self.error("has a port that is not a number from 1 to 65535")
        return host, int(port)

    def option(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        """Take the query option *name*, read by *parse*, or the *default*."""
        text = self._options.pop(name, None)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise self.error(f"has {name}={text!r}, which is not {error}") from None

    def seconds(self, name: str, default: float) -> float:
        """Take the query option *name* as a positive number of seconds."""

        def parse(text: str) -> float:
            try:
                value = float(text)
            except ValueError:
                value = 0.0
            if not 0 < value < float("inf"):
                raise ValueError("a positive number of seconds")
            return value

        return self.option(name, default, parse)

    def finish(self) -> None:
        """Refuse options that were not taken."""
        if self._options:
            names = ", ".join(sorted(self._options))
            raise self.error(f"has an unknown option: {names}")

    def error(self, problem: str) -> ConfigurationError:
        """A ``ConfigurationError`` about this URL, which it does not quote."""
        return ConfigurationError(f"{self._setting} {problem}")

    def __repr__(self) -> str:
        hosts = ",".join(h if p is None else f"{h}:{p}" for h, p in self.hosts)
        secret = "***@" if self.username or self.password else ""
        return f"{self.scheme}://{secret}{hosts}{self.path}"
