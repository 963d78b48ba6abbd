"""Werkzeug: a ``Request`` that has a ``session``."""

from __future__ import annotations

try:
    from werkzeug.wrappers import Request as _Request
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("Werkzeug", "werkzeug") from None

from tieredsession.wsgi import SessionMixin


class Request(SessionMixin, _Request):
    """``werkzeug.Request`` with ``session``, under ``SessionMiddleware``.

    ``@Request.application`` makes a WSGI application of a function, as with Werkzeug's own.
    """
