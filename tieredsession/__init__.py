"""Sessions for Python web applications: lazy, dict-like, in the tiers of your choice.

The names below are imported when they are first used, so that a command or a cron job that
needs one of them does not pay for all.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # what importing typing would cost is most of what importing this costs
if TYPE_CHECKING:
    from typing import Any

    from tieredsession.adapters.werkzeug import Request as Request
    from tieredsession.contracts import Record as Record
    from tieredsession.contracts import Saved as Saved
    from tieredsession.contracts import SessionStore as SessionStore
    from tieredsession.errors import ConfigurationError as ConfigurationError
    from tieredsession.errors import Conflict as Conflict
    from tieredsession.errors import Gone as Gone
    from tieredsession.errors import HeadersSentError as HeadersSentError
    from tieredsession.errors import MissingDependencyError as MissingDependencyError
    from tieredsession.errors import NotLoadedError as NotLoadedError
    from tieredsession.errors import SessionError as SessionError
    from tieredsession.errors import SessionTooLarge as SessionTooLarge
    from tieredsession.errors import StoreError as StoreError
    from tieredsession.errors import StoreUnavailable as StoreUnavailable
    from tieredsession.errors import UnstorableError as UnstorableError
    from tieredsession.manager import SessionManager as SessionManager
    from tieredsession.session import Session as Session
    from tieredsession.settings import Settings as Settings
    from tieredsession.wsgi import SessionMiddleware as SessionMiddleware
    from tieredsession.wsgi import SessionMixin as SessionMixin

__all__ = [
    "ConfigurationError",
    "Conflict",
    "Gone",
    "HeadersSentError",
    "MissingDependencyError",
    "NotLoadedError",
    "Record",
    "Request",
    "Saved",
    "Session",
    "SessionError",
    "SessionManager",
    "SessionMiddleware",
    "SessionMixin",
    "SessionStore",
    "SessionTooLarge",
    "Settings",
    "StoreError",
    "StoreUnavailable",
    "UnstorableError",
]

_HOMES = {
    "Record": "contracts",
    "Saved": "contracts",
    "SessionStore": "contracts",
    "ConfigurationError": "errors",
    "Conflict": "errors",
    "Gone": "errors",
    "HeadersSentError": "errors",
    "MissingDependencyError": "errors",
    "NotLoadedError": "errors",
    "SessionError": "errors",
    "SessionTooLarge": "errors",
    "StoreError": "errors",
    "StoreUnavailable": "errors",
    "UnstorableError": "errors",
    "SessionManager": "manager",
    "Session": "session",
    "Settings": "settings",
    "SessionMiddleware": "wsgi",
    "SessionMixin": "wsgi",
    "Request": "adapters.werkzeug",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
