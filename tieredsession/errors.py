"""Every error this package raises on purpose.

::

    SessionError
    ├── ConfigurationError            a setting is weak, wrong, unknown or contradictory
    ├── MissingDependencyError        an extra is not installed (also an ImportError)
    ├── UnstorableError               a value that no session can hold (also a TypeError)
    ├── DecodeError                   authentic bytes that are not a session
    ├── SessionTooLarge               the cookie would not fit into 4096 bytes
    ├── HeadersSentError              a change that needs a cookie came after the headers
    ├── NotLoadedError                an unread session was used on an event loop
    ├── Gone                          the session was ended, purged or has expired
    ├── Conflict                      another request saved the session first
    ├── CacheError                    a cache call failed; the store is asked instead
    │   └── CacheTimeout              it was not answered in time
    └── StoreError                    a tier failed: broken, full, read-only
        └── StoreUnavailable          a tier did not answer in time; the same call may work later

A bad, expired or forged cookie is none of these: it is "no session".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tieredsession.contracts import Record


class SessionError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigurationError(SessionError):
    """A setting stops the start; the message names the setting and the fix."""


class MissingDependencyError(SessionError, ImportError):
    """A feature needs a package that is not installed; the message has the command."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f'{feature} is not installed: run  pip install "tieredsession[{extra}]"')


class UnstorableError(SessionError, TypeError):
    """A value cannot be kept in a session; the message names its key and type."""


class DecodeError(SessionError):
    """Bytes that passed the authenticity check do not decode to a session."""


class SessionTooLarge(SessionError):
    """The ``Set-Cookie`` line is longer than browsers keep; the old cookie stays valid.

    *size* and *limit* are bytes of the whole line: name, value and attributes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the session cookie would take {size} bytes and browsers keep {limit}: "
            "store less, or set SESSION_STORE to a store that keeps the data on the server"
        )
        self.size = size
        self.limit = limit


class HeadersSentError(SessionError, RuntimeError):
    """The session changed in a way that needs a cookie after the headers had left."""


class NotLoadedError(SessionError, RuntimeError):
    """Reading the session would keep an event loop waiting; the message says what to do."""


class Gone(SessionError):
    """The session is no longer there: ended, purged or expired. It stays so."""


class Conflict(SessionError):
    """The session was saved by another request since it was loaded.

    *current* is what the store holds now, to merge with and to try again.
    """

    def __init__(self, current: Record) -> None:
        super().__init__("the session was saved by another request in the meantime")
        self.current = current


class CacheError(SessionError):
    """A call to a cache failed, and it is not known whether it had an effect.

    It does not reach the application: the durable store answers instead.
    """


class CacheTimeout(CacheError):
    """A cache did not answer in time. Asking again would cost the same time again."""


class StoreError(SessionError):
    """A tier failed. The session is unknown, so it is neither empty nor saveable."""


class StoreUnavailable(StoreError):
    """A tier did not answer in time. The same call may succeed later."""
