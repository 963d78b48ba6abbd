"""Whole requests in process: what a session costs beyond the same framework without one.

Sites without servers cost processor time and nothing else, except that SQLite waits for the
disk; sites with servers wait for them, and the wall's time has that. The calls to each tier
are counted at the servers, in requests that are not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.calls import CACHE as CACHE_CALLS
from benchmarks.calls import CALLS, MEASURES, metered
from benchmarks.frameworks import Answer, Request, stop_event_loop
from benchmarks.harness import Effort, Rounds, Say, difference, race, ratio, spread
from benchmarks.report import Findings, Key, Report, Table, Target, cell, number
from benchmarks.servers import NAMES, running
from benchmarks.sites import (
    BARE_CALLS,
    CACHE,
    SITES,
    Where,
    framework,
    is_ours,
    present,
)

SERVERS = NAMES
FULL = Effort(processes=3, rounds=31, seconds=0.001)
"""Many sites wait for a server, and one of their requests takes longer than a turn."""


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
    "returning read, large": Kind("/read", "/fill-large", b"1"),
    "counter": Kind("/count", "/count", b"2"),
    "counter, typical": Kind("/count", "/fill", b"2"),
    "login": Kind("/login", None, b"Ada"),
}
"""A typical or large session is the codec's payload of that name; otherwise one number is held."""

READS = ("untouched", "anonymous read", "returning read", "returning read, typical")
MAX_COOKIE = 4096
"""Bytes of a cookie that browsers keep."""

BEYOND, WALL_BEYOND = "beyond the floor", "wall beyond the floor"
_COUNTED = 4  # requests
_SUMMARY = ("untouched", "returning read", "returning read, large", "counter", "login")

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


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    with ExitStack() as stack:
        servers = stack.enter_context(running(*SERVERS))
        folder = stack.enter_context(TemporaryDirectory())
        stack.callback(stop_event_loop)
        _count(findings, say, Where(Path(folder, "counted"), servers))
        where = Where(Path(folder, "timed"), servers)
        where.folder.mkdir()
        sites = present(where, findings.skipped)
        for kind in KINDS:
            calls = _calls(kind, sites, findings.skipped)
            for name, call in calls.items():
                if "datastore" in SITES[name].needs:
                    # The emulator's own compiler is at work for seconds.
                    for _ in range(effort.rounds):
                        call()
            for name, taken in race(calls, effort, say, kind).items():
                findings.rounds[Key(kind, name, "wall")] = taken.wall
                findings.rounds[Key(kind, name, "processor")] = taken.cpu
    return findings


def _calls(
    kind: str, sites: dict[str, Request], skipped: dict[str, str]
) -> dict[str, Callable[[], Answer]]:
    """One request of *kind* to each site, whose answer has been looked at."""
    path, cookie_from, answer = KINDS[kind]
    calls: dict[str, Callable[[], Answer]] = {}
    for name, request in sites.items():
        if _is_bare(name) and path != "/untouched":
            continue
        if name in BARE_CALLS.values() and name not in map(partial(_bare_call, kind), SITES):
            continue
        try:
            cookie = None if cookie_from is None else request(cookie_from, None).cookie
        except Exception as error:  # each library has its own for what it cannot hold
            if cookie_from != "/fill-large":
                raise
            skipped[f"{name}: {kind}"] = str(error)
            continue
        if cookie is not None and len(cookie) > MAX_COOKIE:
            skipped[f"{name}: {kind}"] = f"no browser keeps a cookie of {len(cookie)} bytes"
            continue
        calls[name] = partial(request, path, cookie or "other=1")
        # A site without a session always answers 0.
        wanted = b"0" if _is_bare(name) or SITES[name].floor is None else answer
        if calls[name]().body != wanted:
            raise AssertionError(f"{name} gives a wrong answer: {kind}")
    return calls


def _count(findings: Findings, say: Say, where: Where) -> None:
    """How many calls each site makes; a process of several can leave that to the first."""
    where.folder.mkdir()
    names = tuple(name for name, site in SITES.items() if site.needs)
    with suppress(ImportError), metered(where.servers) as meters:
        sites = present(where._replace(servers=meters.servers), {}, names)
        for kind in KINDS:
            say(f"counting calls, {kind}")
            for name, call in _calls(kind, sites, {}).items():

                def several(call: Callable[[], object] = call) -> None:
                    for _ in range(_COUNTED):
                        call()

                counts = meters.count(several)
                for measure in MEASURES:
                    findings.rounds[Key(kind, name, measure)] = [counts[measure] / _COUNTED]


def report(findings: Findings) -> Report:
    made = Report("requests", findings.skipped)
    beyond: dict[str, dict[str, Rounds]] = {}
    for kind in findings.cases():
        cpu = _all(findings, kind, "processor")
        wall = _all(findings, kind, "wall")
        rows = []
        beyond[kind] = {}
        for name in cpu:
            key = partial(Key, kind, name)
            quoted = made.quote(key("wall"), wall[name])
            row = [name, cell(quoted), cell(made.quote(key("processor"), cpu[name]))]
            row += ["", "", "", ""]
            site = SITES[name]
            if site.floor is not None:
                cpu_beyond = difference(cpu[name], cpu[site.floor])
                wall_beyond = difference(wall[name], wall[site.floor])
                beyond[kind][name] = wall_beyond if site.waits else cpu_beyond
                share = made.quote(key("of the floor"), ratio(wall[name], wall[site.floor]), "")
                row[3] = cell(made.quote(key(WALL_BEYOND), wall_beyond))
                row[4] = cell(made.quote(key(BEYOND), cpu_beyond))
                row[5] = number(share.median)
                bare = _bare_call(kind, name)
                if bare in wall:
                    of_bare = ratio(wall_beyond, wall[bare])
                    row[6] = number(made.quote(key("of a bare call"), of_bare, "").median)
            row += [_quote_calls(made, findings, key(measure)) for measure in (CACHE_CALLS, CALLS)]
            rows.append(row)
        columns = ["us", "wall", "processor", WALL_BEYOND, BEYOND, "of the floor"]
        columns += ["of a bare call", "cache calls", "Datastore calls"]
        made.tables.append(Table(f"requests: {kind}", columns, rows))
        made.targets += _targets(kind, beyond[kind])
    made.tables.append(_summary(beyond))
    return made


def _all(findings: Findings, kind: str, measure: str) -> dict[str, Rounds]:
    return {
        name: findings.rounds[key]
        for name in findings.contestants(kind)
        if (key := Key(kind, name, measure)) in findings.rounds
    }


def _quote_calls(made: Report, findings: Findings, key: Key) -> str:
    if key not in findings.rounds:
        return ""
    for measure in MEASURES[2:] if key.measure == CALLS else ():
        made.quote(
            key._replace(measure=measure), findings.rounds[key._replace(measure=measure)], ""
        )
    return f"{made.quote(key, findings.rounds[key], '').median:g}"


def _summary(beyond: dict[str, dict[str, Rounds]]) -> Table:
    """What a session costs: by the wall where somebody is waited for, else by the processor."""
    kinds = [kind for kind in _SUMMARY if kind in beyond]
    names = dict.fromkeys(name for kind in kinds for name in beyond[kind])
    rows = [
        [
            name,
            *(cell(spread(beyond[kind][name])) if name in beyond[kind] else "" for kind in kinds),
        ]
        for name in names
    ]
    return Table("requests: microseconds beyond the floor", ["us", *kinds], rows)


def rivals(kind: str, name: str, names: list[str]) -> list[str]:
    """Those of *names* who do the same work as *name*, a site of ours, in the same framework.

    A read takes the same work of whoever asks a cache first, wherever changes come to rest.
    """
    work = _work(kind, name)
    if work is None:
        return []
    same = [other for other in names if framework(other) == framework(name)]
    return [other for other in same if not is_ours(other) and _work(kind, other) == work]


def _bare_call(kind: str, name: str) -> str | None:
    """The one call that *name* cannot do without: a get for a read, a commit for a change."""
    needs = SITES[name].needs
    if SITES[name].floor is None or not needs:
        return None
    if kind.startswith("returning read"):
        return BARE_CALLS[needs[0]] if needs[0] != "datastore" else None
    if kind.startswith(("counter", "login")):
        return BARE_CALLS["datastore"] if "datastore" in needs else None
    return None


def _work(kind: str, name: str) -> str | None:
    site = SITES[name]
    if site.work is None or not site.needs:
        return site.work
    if site.cached and kind.startswith("returning read"):
        return f"{CACHE} {site.needs[0]}"
    return f"{site.work} {site.needs[-1]}"


def _targets(kind: str, beyond: dict[str, Rounds]) -> list[Target]:
    targets = []
    for (where, name), limit in _TARGETS.items():
        if where == kind and name in beyond:
            text = f"{kind}: {name}, {BEYOND}"
            targets.append(Target(text, spread(beyond[name]).median, limit, "us"))
            for peer, share in _OF_PEERS.get(kind, {}).items():
                if peer in beyond:
                    value = spread(ratio(beyond[name], beyond[peer])).median
                    targets.append(Target(f"{text}, of: {peer}", value, share))
    if kind in ("untouched", "anonymous read"):
        return targets  # nobody does any work there
    for name in filter(is_ours, beyond):
        peers = rivals(kind, name, list(beyond))
        if peers:
            fastest = min(peers, key=lambda peer: spread(beyond[peer]).median)
            value = spread(ratio(beyond[name], beyond[fastest])).median
            text = f"{kind}: {name}, of the fastest peer with the same work ({fastest})"
            targets.append(Target(text, value, 1.0, strict=True))
    return targets


def _is_bare(name: str) -> bool:
    """Whether there is no view that could touch a session."""
    return name.startswith("WSGI")
