"""The circuit breaker by itself: what only several callers at once, or much time, would show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tieredsession.errors import CacheError, CacheTimeout
from tieredsession.stores.breaker import Breaker
from tieredsession.testing import FakeClock


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    """A breaker that has just met a server that does not answer."""
    breaker = Breaker(clock)
    assert breaker.failed(CacheTimeout("late")) is not None
    return breaker


def fail_probe(breaker: Breaker, clock: FakeClock) -> float:
    """The seconds for which a probe that fails opens the breaker again."""
    clock.advance(60)
    assert breaker.may_probe()
    seconds = breaker.failed(CacheTimeout("late"))
    assert seconds is not None
    return seconds


def test_one_probe_at_a_time(breaker: Breaker, clock: FakeClock) -> None:
    """Nobody probes before the pause is over, and then one caller does, until it has an answer."""
    assert not breaker.may_probe()
    clock.advance(2)
    assert [breaker.may_probe() for _ in range(3)] == [True, False, False]
    breaker.interrupted()
    assert breaker.may_probe()


def test_a_server_that_stays_away_is_probed_less_and_less(
    breaker: Breaker, clock: FakeClock
) -> None:
    """Each probe that fails doubles the pause, up to half a minute, give or take a fifth."""
    pauses = [fail_probe(breaker, clock) for _ in range(8)]
    for pause, expected in zip(pauses, [2, 4, 8, 16, 30, 30, 30, 30], strict=True):
        assert expected * 0.8 <= pause <= expected * 1.2


def test_a_server_that_came_back_begins_anew(breaker: Breaker, clock: FakeClock) -> None:
    """The next outage after a recovery is probed as soon as the first was."""
    fail_probe(breaker, clock)
    breaker.close()
    pause = breaker.failed(CacheTimeout("late"))
    assert pause is not None
    assert pause <= 1.2


def test_a_failure_after_a_recovery(breaker: Breaker, clock: FakeClock) -> None:
    """The failures of an outage do not count any more when it is over."""
    breaker.close()
    assert breaker.failed(CacheError("refused")) is None


def test_calls_that_were_under_way(breaker: Breaker, clock: FakeClock) -> None:
    """Calls that fail after the breaker opened neither open it again nor make its pause longer."""
    assert [breaker.failed(CacheTimeout("late")) for _ in range(5)] == [None] * 5
    clock.advance(1.2)
    assert breaker.may_probe()


def test_a_late_answer_is_no_recovery(breaker: Breaker) -> None:
    """An answer to a call from before the outage does not end it: what was missed comes first."""
    breaker.succeeded()
    assert not breaker.is_closed
    assert not breaker.is_calm


def test_processes_do_not_probe_in_step(clock: FakeClock) -> None:
    """Breakers that open at the same moment open for different times."""
    pauses = {Breaker(clock).failed(CacheTimeout("late")) for _ in range(20)}
    assert len(pauses) > 1


@pytest.mark.parametrize("answers", [0, 3])
def test_a_quick_failure_is_forgotten(clock: FakeClock, answers: int) -> None:
    """Two failures that cost no time open the breaker, unless an answer came in between."""
    breaker = Breaker(clock)
    for _ in range(answers):
        assert breaker.failed(CacheError("refused")) is None
        breaker.succeeded()
    assert breaker.failed(CacheError("refused")) is None
    assert breaker.failed(CacheError("refused")) is not None


def test_what_is_missed_again_while_it_is_made_good(breaker: Breaker) -> None:
    """A key that was missed once more while somebody marked it has still to be marked."""
    breaker.missed("key")
    ((key, serial),) = breaker.to_make_good()
    breaker.missed("key")
    breaker.made_good(key, serial)
    assert [key for key, _ in breaker.to_make_good()] == ["key"]
    breaker.close()
    breaker.succeeded()
    assert not breaker.is_calm


def test_what_is_made_good_is_forgotten(clock: FakeClock) -> None:
    """A key is marked for as long as it is out of date, and then there is nothing to look at."""
    breaker = Breaker(clock)
    breaker.missed("key")
    assert not breaker.is_calm
    for key, serial in breaker.to_make_good():
        breaker.made_good(key, serial)
    breaker.succeeded()
    assert breaker.to_make_good() == []
    assert breaker.is_calm


@pytest.mark.usefixtures("restless_threads")
def test_threads_share_a_breaker() -> None:
    """Of many threads one probes, and what all of them make good at once is made good."""
    start = Barrier(8)

    def come_back(breaker: Breaker) -> bool:
        start.wait(30)
        probes = breaker.may_probe()
        for key, serial in breaker.to_make_good():
            breaker.made_good(key, serial)
        return probes

    with ThreadPoolExecutor(8) as pool:
        for _ in range(600):
            clock = FakeClock()
            breaker = Breaker(clock)
            breaker.failed(CacheTimeout("late"))
            clock.advance(2)
            for number in range(50):
                breaker.missed(f"key {number}")
            assert sum(pool.map(come_back, [breaker] * 8)) == 1
            assert breaker.to_make_good() == []
