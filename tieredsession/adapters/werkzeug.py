"""Werkzeug: a ``Request`` that has a ``session``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

try:
    from werkzeug.wrappers import Request as _Request
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("Werkzeug", "werkzeug") from None

from tieredsession.wsgi import SessionMixin

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

R = TypeVar("R", bound="Request")


class Request(SessionMixin, _Request):
    """``werkzeug.Request`` with ``session``, under ``SessionMiddleware``.

    ``@Request.application`` makes a WSGI application of a function, as with Werkzeug's own.
    """

    if TYPE_CHECKING:
        # By Werkzeug's types the function would be given a request without a session.
        @classmethod
        def application(cls: type[R], f: Callable[[R], WSGIApplication]) -> WSGIApplication: ...
