"""Events to logging and to OpenTelemetry, and to several observers at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import fields

from tieredsession.contracts import Observer
from tieredsession.errors import MissingDependencyError
from tieredsession.events import (
    BreakerClosed,
    BreakerOpened,
    CacheFailed,
    CacheRefused,
    CookieNearLimit,
    Event,
    ImportRefused,
    Purged,
    PurgeRefused,
    SessionGone,
    SessionImported,
    SessionMerged,
    StoreFailed,
    TokenRefused,
)

_log = logging.getLogger("tieredsession")

_LEVELS: dict[type[Event], int] = {
    TokenRefused: logging.INFO,
    ImportRefused: logging.INFO,
    SessionImported: logging.INFO,
    SessionMerged: logging.INFO,
    SessionGone: logging.INFO,
    BreakerClosed: logging.INFO,
    Purged: logging.INFO,
    BreakerOpened: logging.WARNING,
    CacheFailed: logging.WARNING,
    CacheRefused: logging.WARNING,
    CookieNearLimit: logging.WARNING,
    PurgeRefused: logging.WARNING,
    StoreFailed: logging.ERROR,
}


def fan_out(observers: Iterable[Observer]) -> Observer | None:
    """One observer that tells them all, or ``None`` if there are none.

    An observer that raises is logged and the rest are told all the same: watching a
    session end must not keep it alive.
    """
    listeners = tuple(observers)
    if not listeners:
        return None

    def tell(event: Event) -> None:
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("an observer failed on %s", type(event).__name__)

    return tell


class LoggingObserver:
    """Writes each event as one line to the logger ``tieredsession``.

    Failures are errors, also those of a purge; a nearly full cookie and a stranger at the purge are
    warnings; refused tokens, merges, dropped saves and purges are information, and all else
    is debug output.
    """

    def __init__(self, logger: logging.Logger = _log) -> None:
        self._logger = logger

    def __call__(self, event: Event, /) -> None:
        level = _LEVELS.get(type(event), logging.DEBUG)
        if isinstance(event, Purged) and (event.failed or event.stuck):
            level = logging.ERROR
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", describe(event))


class OpenTelemetryObserver:
    """Counts events in the OpenTelemetry counter ``tieredsession.events``.

    The attributes are the event's name and, where there is one, its reason; never a
    session's label, of which there are too many for a metric.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import metrics
        except ImportError:
            raise MissingDependencyError("opentelemetry-api", "opentelemetry") from None
        meter = metrics.get_meter("tieredsession")
        self._counter = meter.create_counter(
            "tieredsession.events", description="Session events by name and reason"
        )

    def __call__(self, event: Event, /) -> None:
        attributes = {"event": type(event).__name__}
        if isinstance(event, (CacheRefused, ImportRefused, PurgeRefused, TokenRefused)):
            attributes["reason"] = event.reason
        self._counter.add(1, attributes)


def tell_operator(observer: Observer | None, event: Event) -> None:
    """Tell of a tier that fails or cannot be believed: *observer*, or the log if there is none.

    A visitor sees such a failure as a ``503``, or not at all, so nobody else would tell.
    """
    (observer or _LOGGING)(event)


def describe(event: Event) -> str:
    """*event* on one line; what a visitor may have chosen is quoted, so no line is split."""
    parts = [f"{field.name}={getattr(event, field.name)!r}" for field in fields(event)]
    return " ".join([type(event).__name__, *parts])


_LOGGING = LoggingObserver()
