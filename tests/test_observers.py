"""Observers: all are told, none can do harm, and a log line is one line."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tieredsession.errors import MissingDependencyError, StoreUnavailable
from tieredsession.events import (
    BreakerClosed,
    BreakerOpened,
    CacheFailed,
    CacheFilled,
    CacheHit,
    CacheMiss,
    CacheRefused,
    CookieNearLimit,
    Event,
    ImportRefused,
    Purged,
    PurgeRefused,
    SessionCreated,
    SessionEnded,
    SessionGone,
    SessionImported,
    SessionMerged,
    SessionRefreshed,
    SessionRenewed,
    SessionSaved,
    StoreFailed,
    TokenRefused,
)
from tieredsession.keyring import Keyring
from tieredsession.observers import LoggingObserver, OpenTelemetryObserver, describe, fan_out
from tieredsession.options import StoreOptions
from tieredsession.registry import open_manager
from tieredsession.session import Session
from tieredsession.settings import Settings
from tieredsession.stores.memory import MemorySessionStore
from tieredsession.testing import Chaos

SECRET = "only for tests, only for tests, 1"
OPTIONS = StoreOptions(Keyring(SECRET), "id")
LABEL = "0123456789ab"
EVENTS: list[tuple[Event, int, str]] = [
    (SessionCreated(session=LABEL), logging.DEBUG, f"SessionCreated session={LABEL!r}"),
    (SessionSaved(session=None), logging.DEBUG, "SessionSaved session=None"),
    (SessionRefreshed(session=LABEL), logging.DEBUG, f"SessionRefreshed session={LABEL!r}"),
    (SessionRenewed(session=LABEL), logging.DEBUG, f"SessionRenewed session={LABEL!r}"),
    (SessionEnded(session=LABEL), logging.DEBUG, f"SessionEnded session={LABEL!r}"),
    (SessionGone(session=LABEL), logging.INFO, f"SessionGone session={LABEL!r}"),
    (
        SessionMerged(("cart",), session=LABEL),
        logging.INFO,
        f"SessionMerged session={LABEL!r} keys=('cart',)",
    ),
    (
        SessionImported("flask", ("cart",), session=LABEL),
        logging.INFO,
        f"SessionImported session={LABEL!r} kind='flask' dropped=('cart',)",
    ),
    (
        ImportRefused("flask", "forged"),
        logging.INFO,
        "ImportRefused kind='flask' reason='forged'",
    ),
    (
        TokenRefused("forged", session=LABEL),
        logging.INFO,
        f"TokenRefused session={LABEL!r} reason='forged'",
    ),
    (CookieNearLimit(3500, 4096), logging.WARNING, "CookieNearLimit size=3500 limit=4096"),
    (StoreFailed("StoreError: full"), logging.ERROR, "StoreFailed error='StoreError: full'"),
    (CacheHit(session=LABEL), logging.DEBUG, f"CacheHit session={LABEL!r}"),
    (CacheMiss(session=LABEL), logging.DEBUG, f"CacheMiss session={LABEL!r}"),
    (CacheFilled(session=LABEL), logging.DEBUG, f"CacheFilled session={LABEL!r}"),
    (
        CacheRefused("forged", session=LABEL),
        logging.WARNING,
        f"CacheRefused session={LABEL!r} reason='forged'",
    ),
    (
        CacheFailed("h:1", "CacheTimeout"),
        logging.WARNING,
        "CacheFailed server='h:1' error='CacheTimeout'",
    ),
    (BreakerOpened("h:1", 2.0), logging.WARNING, "BreakerOpened server='h:1' seconds=2.0"),
    (BreakerClosed("h:1", 3), logging.INFO, "BreakerClosed server='h:1' marked=3"),
    (
        Purged(9, 7, 1, 1, 0, None, 0, 2, 2, 0, None, 0.5, 14.0, True, 3600.0, False),
        logging.INFO,
        "Purged scanned=9 deleted=7 spared=1 odd=1 failed=0 error=None stuck=0 shards=2"
        " shards_done=2 shards_taken=0 oldest_expired_age=None seconds=0.5 rate=14.0"
        " completed=True next=3600.0 dry_run=False",
    ),
    (PurgeRefused("no credential"), logging.WARNING, "PurgeRefused reason='no credential'"),
]
every_event = pytest.mark.parametrize(
    ("event", "level", "line"), EVENTS, ids=[type(row[0]).__name__ for row in EVENTS]
)


# -- several at once ----------------------------------------------------------------------


def test_nobody_listens() -> None:
    """Without observers there is no observer to call."""
    assert fan_out([]) is None
    assert fan_out(iter(())) is None


@pytest.mark.parametrize("watched", [True, False])
def test_an_unwatched_failure_is_logged(watched: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Why a store failed is told to the observers, or to the log where there are none."""
    heard: list[Event] = []
    chaos = Chaos()
    manager = open_manager(
        Settings({"SECRET_KEY": SECRET}),
        store=chaos.wrap(MemorySessionStore.from_options(OPTIONS)),
        observers=[heard.append] if watched else [],
    )
    session = Session(manager, "")
    session["a"] = 1
    chaos.fail("create")
    with pytest.raises(StoreUnavailable):
        manager.close(session)
    assert [type(event) for event in heard] == [StoreFailed] * watched
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    line = ("ERROR", "StoreFailed error='StoreUnavailable: create was made to fail'")
    assert told == ([] if watched else [line])


def test_all_are_told_in_order() -> None:
    """Every observer is told every event, in the order in which they were given."""
    heard: list[tuple[int, Event]] = []
    tell = fan_out(lambda event, n=n: heard.append((n, event)) for n in range(3))
    assert tell is not None
    events = [SessionCreated(session=LABEL), SessionEnded(session=LABEL)]
    for event in events:
        tell(event)
    assert heard == [(n, event) for event in events for n in range(3)]


def test_a_failing_observer_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises is logged, and those after it are told all the same."""
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise LookupError("the observer's own")

    tell = fan_out([heard.append, fail, heard.append, fail, heard.append])
    assert tell is not None
    event = SessionEnded(session=LABEL)
    tell(event)
    assert heard == [event] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "an observer failed on SessionEnded"
    ] * 2
    for record in caplog.records:
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert record.exc_info[0] is LookupError


def test_an_interrupt_is_not_swallowed() -> None:
    """An observer does not keep a process from being stopped."""

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    tell = fan_out([interrupt])
    assert tell is not None
    with pytest.raises(KeyboardInterrupt):
        tell(SessionEnded())


# -- logging ------------------------------------------------------------------------------


def test_every_event_is_in_the_table() -> None:
    """The table of these tests has every event that there is."""

    def leaves(kind: type[Event]) -> set[type[Event]]:
        below = kind.__subclasses__()
        return {leaf for sub in below for leaf in leaves(sub)} if below else {kind}

    ours = {kind for kind in leaves(Event) if kind.__module__ == "tieredsession.events"}
    assert {type(event) for event, _, _ in EVENTS} == ours


@every_event
def test_events_are_logged(
    event: Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each event is one line to the logger "tieredsession", at the level of its urgency."""
    with caplog.at_level(logging.DEBUG, "tieredsession"):
        LoggingObserver()(event)
    assert caplog.record_tuples == [("tieredsession", level, line)]


@every_event
def test_levels_are_obeyed(
    event: Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is below the logger's level is not written; a logger may be given."""
    logger = logging.getLogger("tieredsession.test")
    with caplog.at_level(level + 1, logger.name):
        LoggingObserver(logger)(event)
        assert caplog.records == []
    with caplog.at_level(level, logger.name):
        LoggingObserver(logger)(event)
    assert caplog.record_tuples == [(logger.name, level, line)]


@pytest.mark.parametrize("trouble", [{"failed": 1, "error": "StoreError: full"}, {"stuck": 2}])
def test_a_purge_that_fails_is_an_error(
    trouble: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A purge whose tier failed, or which does not delete what it should, is logged as an error."""
    (event,) = (event for event, _, _ in EVENTS if isinstance(event, Purged))
    with caplog.at_level(logging.ERROR, "tieredsession"):
        LoggingObserver()(replace(event, **trouble))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR


def test_what_nobody_reads_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    """An event below the logger's level costs no formatting."""

    class Reason(str):
        def __repr__(self) -> str:
            raise AssertionError("formatted for nobody")

    with caplog.at_level(logging.WARNING, "tieredsession"):
        LoggingObserver()(TokenRefused(Reason("forged")))


HOSTILE = "a\nb\rc\x1b[31md\x00e\u2028f\u2029g\x85h\x7fi'j\"k\\l%sm"


@pytest.mark.parametrize(
    "event",
    [
        TokenRefused(HOSTILE),
        SessionMerged((HOSTILE, HOSTILE)),
        StoreFailed(HOSTILE),
        SessionCreated(session=HOSTILE),
        CacheFailed(HOSTILE, HOSTILE),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_log_line_cannot_be_split(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks and terminal codes in an event are written escaped, on one line."""
    with caplog.at_level(logging.DEBUG, "tieredsession"):
        LoggingObserver()(event)
    (record,) = caplog.records
    line = record.getMessage()
    assert line == describe(event)
    assert line.isprintable()
    assert line.splitlines() == [line]


# -- OpenTelemetry ------------------------------------------------------------------------


def test_events_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are counted by name and reason, and by nothing that tells sessions apart."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    observe = OpenTelemetryObserver()
    for number in range(3):
        observe(SessionSaved(session=f"{number:012x}"))
        observe(TokenRefused("forged", session=f"{number:012x}"))
    observe(TokenRefused("expired"))
    observe(CacheRefused("distrusted"))
    observe(ImportRefused("werkzeug", "pickled"))
    observe(PurgeRefused("no credential"))
    observe(StoreFailed("StoreError: full"))

    data: Any = reader.get_metrics_data()
    provider.shutdown()
    ((metric,),) = [
        scope.metrics for resource in data.resource_metrics for scope in resource.scope_metrics
    ]
    assert metric.name == "tieredsession.events"
    counts = {tuple(p.attributes.items()): p.value for p in metric.data.data_points}
    assert counts == {
        (("event", "SessionSaved"),): 3,
        (("event", "TokenRefused"), ("reason", "forged")): 3,
        (("event", "TokenRefused"), ("reason", "expired")): 1,
        (("event", "CacheRefused"), ("reason", "distrusted")): 1,
        (("event", "ImportRefused"), ("reason", "pickled")): 1,
        (("event", "PurgeRefused"), ("reason", "no credential")): 1,
        (("event", "StoreFailed"),): 1,
    }


def test_counting_without_a_provider() -> None:
    """Without a configured provider, counting does nothing and does no harm."""
    OpenTelemetryObserver()(SessionSaved(session=LABEL))


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says how to install it."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    pattern = r'pip install "tieredsession\[opentelemetry\]"'
    with pytest.raises(MissingDependencyError, match=pattern):
        OpenTelemetryObserver()
