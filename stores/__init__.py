"""Where sessions live: the stores that ``SESSION_STORE`` can name, imported on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tieredsession.stores.cookie import SecureCookieSessionStore
    from tieredsession.stores.datastore import GAESessionStore
    from tieredsession.stores.hybrid import HybridSessionStore
    from tieredsession.stores.memory import MemorySessionStore
    from tieredsession.stores.sqlite import SQLiteSessionStore

__all__ = [
    "GAESessionStore",
    "HybridSessionStore",
    "MemorySessionStore",
    "SQLiteSessionStore",
    "SecureCookieSessionStore",
]

_HOMES = {
    "GAESessionStore": "datastore",
    "HybridSessionStore": "hybrid",
    "MemorySessionStore": "memory",
    "SQLiteSessionStore": "sqlite",
    "SecureCookieSessionStore": "cookie",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
