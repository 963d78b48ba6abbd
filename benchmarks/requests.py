"""Whole requests in process: what a session costs beyond the same framework without one.

The costs are the processor's time. Only SQLite waits, for the disk: the wall's time has that.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.harness import Effort, Rounds, Say, difference, race, ratio, spread
from benchmarks.report import Findings, Key, Report, Table, Target, cell, number
from benchmarks.sites import SITES, present


class Kind(NamedTuple):
    """A kind of request: its *path*, the path that gave the visitor a cookie, the right answer."""

    path: str
    cookie_from: str | None
    answer: bytes


KINDS: dict[str, Kind] = {
    "untouched": Kind("/untouched", "/count", b"0"),
    "anonymous read": Kind("/read", None, b"0"),
    "returning read": Kind("/read", "/count", b"1"),
    "returning read, typical": Kind("/read", "/fill", b"1"),
    "counter": Kind("/count", "/count", b"2"),
    "counter, typical": Kind("/count", "/fill", b"2"),
    "login": Kind("/login", None, b"Ada"),
}
"""A typical session is the codec's payload of that name; otherwise one number is held."""

_BEYOND = "beyond the floor"

# Microseconds beyond the floor, from the issue that asked for them.
_TARGETS = {
    ("untouched", "WSGI, ours"): 1.0,
    ("untouched", "Flask, ours, cookie"): 3.0,
    ("returning read", "Werkzeug, ours, cookie"): 30.0,
    ("counter", "Werkzeug, ours, cookie"): 50.0,
}
# What those are of what Flask's and Starlette's sessions took where they were written down:
# on a machine of another speed, these are the same demand.
_OF_PEERS = {
    "returning read": {"Flask, its session": 30 / 100, "Starlette, its session": 30 / 31},
    "counter": {"Flask, its session": 50 / 210, "Starlette, its session": 50 / 55},
}
# The same framework's own session, in the same run.
_FASTER_THAN = {"Flask, ours, cookie": "Flask, its session"}


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    with TemporaryDirectory() as folder:
        sites = present(Path(folder), findings.skipped)
        for kind, (path, cookie_from, answer) in KINDS.items():
            calls = {}
            for name, request in sites.items():
                if _is_bare(name) and path != "/untouched":
                    continue
                cookie = None if cookie_from is None else request(cookie_from, None).cookie
                calls[name] = partial(request, path, cookie or "other=1")
                # A site without a session always answers 0.
                wanted = b"0" if _is_bare(name) or SITES[name].floor is None else answer
                if calls[name]().body != wanted:
                    raise AssertionError(f"{name} gives a wrong answer: {kind}")
            for name, taken in race(calls, effort, say, kind).items():
                findings.rounds[Key(kind, name, "wall")] = taken.wall
                findings.rounds[Key(kind, name, "processor")] = taken.cpu
    return findings


def report(findings: Findings) -> Report:
    made = Report("requests", findings.skipped)
    for kind in findings.cases():
        cpu = {
            name: findings.rounds[Key(kind, name, "processor")]
            for name in findings.contestants(kind)
        }
        beyond: dict[str, Rounds] = {}
        rows = []
        for name in cpu:
            key = partial(Key, kind, name)
            wall = made.quote(key("wall"), findings.rounds[key("wall")])
            row = [name, cell(wall), cell(made.quote(key("processor"), cpu[name])), "", ""]
            floor = SITES[name].floor
            if floor is not None:
                beyond[name] = difference(cpu[name], cpu[floor])
                share = made.quote(key("of the floor"), ratio(cpu[name], cpu[floor]), "")
                row[3] = cell(made.quote(key(_BEYOND), beyond[name]))
                row[4] = number(share.median)
            rows.append(row)
        columns = ["us", "wall", "processor", _BEYOND, "of the floor"]
        made.tables.append(Table(f"requests: {kind}", columns, rows))
        made.targets += _targets(kind, beyond)
    return made


def _targets(kind: str, beyond: dict[str, Rounds]) -> list[Target]:
    targets = []
    for (where, name), limit in _TARGETS.items():
        if where == kind and name in beyond:
            text = f"{kind}: {name}, {_BEYOND}"
            targets.append(Target(text, spread(beyond[name]).median, limit, "us"))
            for peer, share in _OF_PEERS.get(kind, {}).items():
                if peer in beyond:
                    value = spread(ratio(beyond[name], beyond[peer])).median
                    targets.append(Target(f"{text}, of: {peer}", value, share))
    for name, peer in _FASTER_THAN.items():
        if kind in _OF_PEERS and name in beyond and peer in beyond:
            value = spread(ratio(beyond[name], beyond[peer])).median
            targets.append(Target(f"{kind}: {name}, of: {peer}", value, 1.0, strict=True))
    return targets


def _is_bare(name: str) -> bool:
    """Whether there is no view that could touch a session."""
    return name.startswith("WSGI")
