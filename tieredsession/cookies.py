"""The session cookie: finding it in a request, writing its line, and the headers beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_LINE = 4096
"""Bytes of a ``Set-Cookie`` line, all counted. Browsers keep 4096 for name and value and
1024 for each attribute (RFC 6265bis, 5.6); counting everything is safe for all of them."""

MAX_AGE = 400 * 24 * 3600
"""Seconds that a browser keeps a cookie at most (RFC 6265bis, 5.5)."""

_MAX_CANDIDATES = 8
_DIRECTIVE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')  # a quoted string may hold commas


class Reply(NamedTuple):
    """What a response owes to a session that was touched.

    *set_cookie* is the value of a ``Set-Cookie`` header, or ``None``; the response varies
    on ``Cookie`` in any case. *cache_control* goes with a ``Set-Cookie``. *expire_imported*
    is one more ``Set-Cookie``: it deletes another library's cookie whose session was taken over.
    *expire_others* are more of that kind, where one site takes over from several.
    """

    set_cookie: str | None
    cache_control: str
    expire_imported: str | None = None
    expire_others: tuple[str, ...] = ()

    @property
    def set_cookies(self) -> list[str]:
        """The values of all ``Set-Cookie`` headers."""
        lines = (self.set_cookie, self.expire_imported, *self.expire_others)
        return [line for line in lines if line is not None]


def find(header: str | None, name: str) -> list[str]:
    """The different values of the cookie *name* in a Cookie *header*, in their order.

    Names are compared exactly (RFC 6265bis, 5.4). More values than anyone sends by
    accident count as none.
    """
    if not header or name not in header:
        return []
    values: list[str] = []
    for pair in header.split(";"):
        key, equals, value = pair.strip(" \t").partition("=")
        if key == name and equals and value and value not in values:
            if len(values) == _MAX_CANDIDATES:
                return []  # at once: each is compared with all before it
            values.append(value)
    return values


class CookieWriter:
    """Writes the ``Set-Cookie`` line of one cookie; the attributes are the same each time.

    Args:
        name: the cookie's name.
        domain: the ``Domain`` attribute, or ``None`` for the host alone.
        path: the ``Path`` attribute.
        secure: the ``Secure`` attribute.
        httponly: the ``HttpOnly`` attribute.
        samesite: ``"Lax"``, ``"Strict"`` or ``"None"``.
        partitioned: the ``Partitioned`` attribute (CHIPS).
    """

    def __init__(
        self,
        name: str,
        *,
        domain: str | None = None,
        path: str = "/",
        secure: bool = True,
        httponly: bool = True,
        samesite: str = "Lax",
        partitioned: bool = False,
    ) -> None:
        self.name = name
        self.place = (name, (domain or "").lower().lstrip("."), path, partitioned)
        """What a browser tells cookies apart by."""
        self._attributes = "".join(
            [
                f"; Domain={domain}" if domain else "",
                f"; Path={path}",
                "; Secure" if secure else "",
                "; HttpOnly" if httponly else "",
                f"; SameSite={samesite}",
                "; Partitioned" if partitioned else "",
            ]
        )

    def write(self, token: str, max_age: int | None) -> str:
        """The line that sets *token*, for *max_age* seconds or until the browser closes."""
        age = "" if max_age is None else f"; Max-Age={max(0, min(max_age, MAX_AGE))}"
        return f"{self.name}={token}{age}{self._attributes}"

    def expire(self) -> str:
        """The line that deletes the cookie: the same attributes, and a time long ago."""
        past = "Thu, 01 Jan 1970 00:00:00 GMT"
        return f"{self.name}=; Expires={past}; Max-Age=0{self._attributes}"


_MERGED = frozenset({"vary", "cache-control"})


def add_headers(headers: list[tuple[str, str]], reply: Reply) -> None:
    """Put what *reply* asks for into a list of response *headers*.

    A stricter ``Cache-Control`` of the view stays; one that would let a shared cache keep
    somebody's cookie does not.
    """
    lines = reply.set_cookies
    if _MERGED.isdisjoint([name.lower() for name, _ in headers]):  # as nearly always
        headers.append(("Vary", "Cookie"))
        if lines:
            headers.append(("Cache-Control", reply.cache_control))
            headers.extend(("Set-Cookie", line) for line in lines)
        return
    _merge_header(headers, "Vary", "Cookie", _vary)
    if lines:
        wanted = reply.cache_control
        _merge_header(headers, "Cache-Control", wanted, lambda v: cache_control(v, wanted))
        headers.extend(("Set-Cookie", line) for line in lines)


def _merge_header(
    headers: list[tuple[str, str]], name: str, alone: str, merge: Callable[[str], str]
) -> None:
    """Fold all headers called *name* into one, at the place of the first; *alone* if none."""
    lower = name.lower()
    if lower not in [key.lower() for key, _ in headers]:
        headers.append((name, alone))
        return
    places = [index for index, (key, _) in enumerate(headers) if key.lower() == lower]
    merged = merge(", ".join(headers[index][1] for index in places))
    for index in reversed(places[1:]):
        del headers[index]
    headers[places[0]] = (headers[places[0]][0], merged)


def _vary(value: str) -> str:
    fields = [field.strip() for field in value.split(",") if field.strip()]
    if "*" in fields or any(field.lower() == "cookie" for field in fields):
        return value
    return ", ".join([*fields, "Cookie"])


def cache_control(value: str, wanted: str) -> str:
    """*value* of a ``Cache-Control`` header made at least as strict as *wanted*."""
    directives = [part.strip() for part in _DIRECTIVE.findall(value) if part.strip()]
    names = {directive.lower() for directive in directives}
    if "no-store" in names:
        return value
    if wanted == "no-store":
        return wanted
    shared = ("public", "s-maxage", "private")  # a private="field" is not a private
    kept = [d for d in directives if d.partition("=")[0].strip().lower() not in shared]
    if wanted in names and len(kept) == len(directives) - 1:
        return value
    return ", ".join([*kept, wanted])
