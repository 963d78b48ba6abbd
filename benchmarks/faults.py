"""Requests through an outage of the cache: how long they take, and what visitors see.

memcached is stopped as a machine stops that hangs: it keeps its connections and says nothing.
One visitor asks at a steady pace, three reads for each change, before, during and after. Every
client has the same time-out, and none is told what is going on.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import threading
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.frameworks import Request
from benchmarks.harness import QUICK, Effort, Say
from benchmarks.report import Findings, Key, Report, Table, Target, number
from benchmarks.servers import Servers, owned_memcached, running
from benchmarks.sites import Where, is_ours, present
from tieredsession.errors import ConfigurationError

SERVERS = ("datastore",)
FULL = Effort(processes=1, rounds=1, seconds=0)

TIMEOUT = 0.1
"""Seconds that each client waits for memcached."""

CASE = "memcached hangs"
CONTESTANTS = (
    "Werkzeug, ours, GAE on memcached",
    "Werkzeug, ours, SQLite and memcached",
    "Werkzeug, ndb by hand, its cache on memcached",
    "Werkzeug, naive write-through",
    "Flask, Flask-Session, memcached",
    "Django, cache, memcached",
    "Django, cached_db, SQLite and memcached",
)
_PACE = 0.02  # seconds from one request to the next
_PATIENCE = 10.0
_WARM_UP = 50  # requests of each kind; the emulator's own compiler is at work for longer


class Phases(NamedTuple):
    """Seconds before, during and after."""

    before: float
    during: float
    after: float


_PHASES = Phases(2.0, 4.0, 6.0)
_QUICK = Phases(0.3, 0.6, 0.6)

AT, TOOK, FAILED, FORGOTTEN, PHASE = "at", "took", "failed", "forgotten", "phase"
"""Of each request: when it began, how long it took, whether it was an error, whether the visitor
was taken for a new one, and in which phase that was. Seconds, or 0 and 1."""


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    logging.disable()  # each failure would be told with its traceback
    warnings.simplefilter("ignore")
    phases = _QUICK if effort == QUICK else _PHASES
    with running(*SERVERS) as servers:
        for name in CONTESTANTS:
            say(name)
            try:
                with owned_memcached() as (address, process), TemporaryDirectory() as folder:
                    there = Servers({**servers, "memcached": address})
                    where = Where(Path(folder), there, TIMEOUT)
                    site = present(where, findings.skipped, (name,)).get(name)
                    if site is not None:
                        _go_through(findings, name, site, process.pid, phases)
            except ConfigurationError as error:
                findings.skipped[name] = str(error)
    return findings


def _go_through(findings: Findings, name: str, site: Request, pid: int, phases: Phases) -> None:
    cookie = site("/fill", None).cookie or "other=1"
    for path in ("/read", "/count") * _WARM_UP:
        with suppress(Exception):  # a machine so busy that even this takes too long
            site(path, cookie)
    begin = time.perf_counter()
    down, up = phases.before, phases.before + phases.during
    end = up + phases.after
    timers = [
        threading.Timer(down, os.kill, (pid, signal.SIGSTOP)),
        threading.Timer(up, os.kill, (pid, signal.SIGCONT)),
    ]
    for timer in timers:
        timer.start()
    measured: dict[str, list[float]] = {m: [] for m in (AT, TOOK, FAILED, FORGOTTEN, PHASE)}
    number_ = 0
    while (at := time.perf_counter() - begin) < end:
        path = "/count" if number_ % 4 == 3 else "/read"
        failed = forgotten = False
        try:
            body = site(path, cookie).body
            forgotten = body == (b"1" if path == "/count" else b"0")
        except Exception:  # whatever a visitor would see as an error page
            failed = True
        took = time.perf_counter() - begin - at
        phase = 0 if at < down else 1 if at < up else 2
        for measure, value in zip(measured, (at, took, failed, forgotten, phase), strict=True):
            measured[measure].append(float(value))
        number_ += 1
        time.sleep(max(0.0, begin + number_ * _PACE - time.perf_counter()) if took < _PACE else 0)
    for timer in timers:
        timer.join(_PATIENCE)
    for measure, values in measured.items():
        findings.rounds[Key(CASE, name, measure)] = values


def report(findings: Findings) -> Report:
    made = Report("faults", findings.skipped)
    rows = []
    for name in findings.contestants(CASE):
        row = [name]
        for phase, label in enumerate(Phases._fields):
            took = _of_phase(findings, name, phase, TOOK)
            key = partial(Key, CASE, name)
            made.quote(key(f"{label}: took"), [seconds * 1000 for seconds in took], "ms")
            row += [number(statistics.median(took) * 1000), number(max(took) * 1000)]
        wrong = {
            measure: sum(sum(_of_phase(findings, name, phase, measure)) for phase in (1, 2))
            for measure in (FAILED, FORGOTTEN)
        }
        asked = sum(len(_of_phase(findings, name, phase, TOOK)) for phase in (1, 2))
        row += [f"{100 * wrong[measure] / asked:.1f}" for measure in (FAILED, FORGOTTEN)]
        if is_ours(name):
            text = f"{name}: failed or forgotten"
            made.targets.append(Target(text, sum(wrong.values()), 0.0, "requests"))
        rows.append(row)
        made.series[name] = {
            measure: [round(value, 5) for value in findings.rounds[Key(CASE, name, measure)]]
            for measure in (AT, TOOK, FAILED, FORGOTTEN, PHASE)
        }
    columns = ["ms"]
    columns += [f"{label}: {what}" for label in Phases._fields for what in ("median", "most")]
    columns += ["% failed", "% forgotten"]
    made.tables.append(Table(f"faults: {CASE}", columns, rows))
    return made


def _of_phase(findings: Findings, name: str, phase: int, measure: str) -> list[float]:
    values = findings.rounds[Key(CASE, name, measure)]
    phases = findings.rounds[Key(CASE, name, PHASE)]
    return [value for value, where in zip(values, phases, strict=True) if where == phase] or [0.0]
