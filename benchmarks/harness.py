"""Timing in rounds: every contestant in every round, so that a busy machine is busy for all.

Both clocks are read: the wall's, and the processor's, which stands still while other programs
have the processor or a disk is waited for. A ratio or a difference is taken within each round
and its median is quoted: figures of different rounds, runs or machines are never divided by
each other.

A full run asks several processes, one after the other, and pools their rounds: how memory
and hash tables happen to lie in one of them can be worth a third.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import add, sub, truediv
from time import perf_counter, process_time
from typing import NamedTuple, TypeVar

Name = TypeVar("Name")
Call = Callable[[], object]
Say = Callable[[str], None]

Rounds = list[float]
"""Something in microseconds a call, round by round."""


class Taken(NamedTuple):
    """What one contestant took, by the wall's clock and by the processor's."""

    wall: Rounds
    cpu: Rounds


class Effort(NamedTuple):
    """How much time to spend: *seconds* for each contestant in each of *rounds*.

    All that in each of *processes*.
    """

    processes: int
    rounds: int
    seconds: float


# A turn is shorter than the slices in which an operating system shares out a busy processor,
# so that most turns are not interrupted.
FULL = Effort(processes=5, rounds=61, seconds=0.001)
QUICK = Effort(processes=1, rounds=15, seconds=0.0005)


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def race(calls: Mapping[Name, Call], effort: Effort, say: Say, what: str) -> dict[Name, Taken]:
    """Time each of *calls* in interleaved rounds; *say* is told of each round of *what*.

    The order is rotated from round to round and reversed in every other one, so that nobody
    always runs behind the same neighbour. The garbage collector runs between rounds only.
    """
    names = list(calls)
    loops = {name: _calibrate(calls[name], effort.seconds) for name in names}
    taken = {name: Taken([], []) for name in names}
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        for number in range(effort.rounds):
            say(f"{what}, round {number + 1} of {effort.rounds}")
            gc.collect()
            start = number % len(names)
            order = names[start:] + names[:start]
            for name in reversed(order) if number % 2 else order:
                # The one before has filled the processor's caches with what is its own.
                _time(calls[name], 1 + loops[name] // 4)
                wall, cpu = _time(calls[name], loops[name])
                taken[name].wall.append(wall / loops[name] * 1e6)
                taken[name].cpu.append(cpu / loops[name] * 1e6)
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
    return taken


def spread(rounds: Sequence[float]) -> Spread:
    """The median of *rounds* and the quartiles around it."""
    if len(rounds) == 1:
        return Spread(rounds[0], rounds[0], rounds[0])
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Spread(median, low, high)


def total(one: Rounds, other: Rounds) -> Rounds:
    """Both together, round by round."""
    return list(map(add, one, other))


def ratio(one: Rounds, other: Rounds) -> Rounds:
    """*one* as a share of *other*, round by round."""
    return list(map(truediv, one, other))


def difference(one: Rounds, other: Rounds) -> Rounds:
    """What *one* takes beyond *other*, round by round."""
    return list(map(sub, one, other))


def _calibrate(call: Call, seconds: float) -> int:
    """How often *call* fits into *seconds*."""
    call()  # what is made on first use is not part of any figure
    loops = 1
    while (taken := _time(call, loops).wall) < seconds / 4:
        loops *= 2
    return max(1, round(loops * seconds / taken))


class _Clocks(NamedTuple):
    wall: float
    cpu: float


def _time(call: Call, loops: int) -> _Clocks:
    times = repeat(None, loops)
    cpu = process_time()
    wall = perf_counter()
    for _ in times:
        call()
    return _Clocks(perf_counter() - wall, process_time() - cpu)
