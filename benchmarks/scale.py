"""What grows: threads, sessions in the store, bytes in a session, and the way to the servers.

Requests of whole sites, by the wall. The clients and the servers share the processor here, so
that many threads wait for it long before memcached or Datastore are at their limits; with the
latency of a data centre, which a proxy adds, they wait for the network as they do there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import NamedTuple

from benchmarks.frameworks import Request, over_wsgi, werkzeug_app
from benchmarks.harness import QUICK, Effort, Say, race, ratio, spread
from benchmarks.report import Findings, Key, Report, Table, Target, cell
from benchmarks.servers import NAMES, Servers, delayed, running
from benchmarks.sites import DURABLE, SITES, Where, is_ours, present, settings
from tieredsession import SessionMiddleware
from tieredsession.codec import MsgpackCodec
from tieredsession.contracts import Record
from tieredsession.registry import open_manager
from tieredsession.settings import Settings
from tieredsession.wsgi import SESSION_KEY

SERVERS = NAMES
FULL = Effort(processes=1, rounds=15, seconds=0.002)

THREADS = (1, 2, 4, 8, 16, 32)
SESSIONS = (1_000, 10_000, 100_000, 1_000_000)
SIZES = (100, 1_000, 10_000, 100_000, 500_000)
CACHE_DELAY, DATASTORE_DELAY = 0.0005, 0.008
"""Seconds of a round trip in a data centre: to a cache in the same zone, and a commit to
Datastore. Assumptions, not measured here."""

_CONTESTANTS = (
    "Werkzeug, ours, GAE on memcached",
    "Werkzeug, ours, GAE on Redis",
    "Werkzeug, ndb by hand",
    "Werkzeug, ndb by hand, its cache on memcached",
    "Werkzeug, naive write-through",
    "Flask, ours, SQLite and Redis",
    "Flask, Flask-Session, Redis",
    "Django, ours, SQLite and memcached",
    "Django, cached_db, SQLite and memcached",
)
"""Those on Datastore, and those who have a cache and SQLite, or a cache alone."""

_PER_THREAD = 8
READ, COUNTER, LOGIN = "returning read", "counter", "login"
_PATHS = {READ: "/read", COUNTER: "/count", LOGIN: "/login"}


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    with running(*SERVERS) as servers, TemporaryDirectory() as folder:
        small = effort == QUICK
        _threads(findings, effort, say, Where(_folder(folder, "threads"), servers), small)
        _latency(findings, effort, say, Where(_folder(folder, "latency"), servers))
        _sizes(findings, effort, say, Where(_folder(folder, "sizes"), servers), small)
        _sessions(findings, effort, say, Where(_folder(folder, "sessions"), servers), small)
    return findings


def _folder(above: str, name: str) -> Path:
    folder = Path(above, name)
    folder.mkdir()
    return folder


def _cookie(request: Request) -> str:
    return request("/fill", None).cookie or "other=1"


# -- threads ----------------------------------------------------------------------------


def _threads(findings: Findings, effort: Effort, say: Say, where: Where, small: bool) -> None:
    """Each thread has a visitor of its own, who reads three times for each change."""
    sites = present(where, findings.skipped, _CONTESTANTS)
    most = max(THREADS)
    visitors = {name: [_cookie(site) for _ in range(most)] for name, site in sites.items()}

    def visit(site: Request, cookie: str) -> None:
        for turn in range(_PER_THREAD):
            site("/count" if turn % 4 == 3 else "/read", cookie)

    with ThreadPoolExecutor(most) as pool:
        for threads in THREADS[::3] if small else THREADS:
            calls: dict[str, Callable[[], object]] = {}
            for name, site in sites.items():

                def together(
                    site: Request = site, cookies: list[str] = visitors[name][:threads]
                ) -> None:
                    list(pool.map(partial(visit, site), cookies))

                calls[name] = together
            fewer = effort._replace(rounds=max(3, effort.rounds // 3))
            what = f"threads: {threads}"
            for name, taken in race(calls, fewer, say, what).items():
                requests = threads * _PER_THREAD
                rounds = [requests / (us / 1e6) for us in taken.wall]
                findings.rounds[Key(what, name, "requests per second")] = rounds


# -- the way to the servers -------------------------------------------------------------


def _latency(findings: Findings, effort: Effort, say: Say, where: Where) -> None:
    with ExitStack() as stack:
        far = Servers()
        for name, address in where.servers.items():
            seconds = DATASTORE_DELAY if name == "datastore" else CACHE_DELAY
            far[name] = stack.enter_context(delayed(address, seconds))
        sites = present(where._replace(servers=far), findings.skipped, _CONTESTANTS)
        for kind in (READ, COUNTER, LOGIN):
            calls = {}
            for name, site in sites.items():
                cookie = None if kind == LOGIN else _cookie(site)
                calls[name] = partial(site, _PATHS[kind], cookie)
                for _ in range(3):
                    calls[name]()
            for name, taken in race(calls, effort, say, f"latency: {kind}").items():
                findings.rounds[Key(f"latency: {kind}", name, "wall")] = taken.wall


# -- bytes in a session -----------------------------------------------------------------


_SIZED = (
    "Werkzeug, ours, GAE on memcached",
    "Werkzeug, ours, GAE on Redis",
    "Werkzeug, ndb by hand",
    "Werkzeug, ndb by hand, its cache on memcached",
)


def _sizes(findings: Findings, effort: Effort, say: Say, where: Where, small: bool) -> None:
    sites = present(where, findings.skipped, _SIZED)
    for size in SIZES[::2] if small else SIZES:
        for kind in (READ, COUNTER):
            calls = {}
            for name, site in sites.items():
                calls[name] = partial(site, _PATHS[kind], site(f"/fill-{size}", None).cookie)
                for _ in range(3):
                    calls[name]()
            case = f"bytes: {size}, {kind}"
            for name, taken in race(calls, effort, say, case).items():
                findings.rounds[Key(case, name, "wall")] = taken.wall


# -- sessions in the store --------------------------------------------------------------


class _Crowd(NamedTuple):
    """A site, and a way to put many more sessions beside those of its visitors."""

    site: Request
    grow: Callable[[int, int], None]


def _sessions(findings: Findings, effort: Effort, say: Say, where: Where, small: bool) -> None:
    """SQLite alone: what grows is an index, and the others keep theirs in other programs."""
    crowds = {}
    for name, make in {
        "Werkzeug, ours, SQLite, normal": _our_crowd,
        "Django, db, SQLite": _django_crowd,
    }.items():
        try:
            crowds[name] = make(where)
        except ImportError as error:
            findings.skipped[name] = str(error)
    there = 0
    for sessions in SESSIONS[:2] if small else SESSIONS:
        for crowd in crowds.values():
            say(f"sessions: {sessions}, filling")
            crowd.grow(there, sessions)
        there = sessions
        for kind in (READ, COUNTER):
            calls = {
                name: partial(crowd.site, _PATHS[kind], _cookie(crowd.site))
                for name, crowd in crowds.items()
            }
            case = f"sessions: {sessions}, {kind}"
            for name, taken in race(calls, effort, say, case).items():
                findings.rounds[Key(case, name, "wall")] = taken.wall


def _our_crowd(where: Where) -> _Crowd:
    app = werkzeug_app(lambda request: request.environ[SESSION_KEY])
    named = settings(where, "SQLiteSessionStore", synchronous="normal")
    manager = open_manager(Settings(named))
    # One real record, copied under other keys: made one by one they would take an hour.
    manager.store.create(Record(MsgpackCodec().encode({"count": 1}), time() + 1e6, time()), time())
    file = named["SESSION_STORE_URL"].removeprefix("sqlite:///").partition("?")[0]
    return _Crowd(over_wsgi(SessionMiddleware(app, named)), partial(_copy_rows, Path(file)))


def _django_crowd(where: Where) -> _Crowd:
    site = present(where, {}, ("Django, db, SQLite",)).get("Django, db, SQLite")
    if site is None:
        raise ImportError("Django is not installed")
    site("/count", None)
    return _Crowd(site, partial(_copy_rows, where.folder / "django.sqlite3"))


def _copy_rows(file: Path, start: int, end: int) -> None:
    """Copy the first row of the one table there under new random keys."""
    with sqlite3.connect(file, isolation_level=None) as database:
        ((table,),) = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%session%' LIMIT 1"
        )
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        first, *others = columns
        rest = ", ".join(others)
        database.executescript("PRAGMA synchronous = off; PRAGMA cache_size = -400000; BEGIN")
        database.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"INSERT INTO {table} ({first}, {rest}) "
            f"SELECT lower(hex(randomblob(32))), {rest} "
            f"FROM n, (SELECT {rest} FROM {table} LIMIT 1) ORDER BY 1",
            (end - start,),
        )
        database.execute("COMMIT")
    database.close()


# -- the report -------------------------------------------------------------------------


def report(findings: Findings) -> Report:
    made = Report("scale", findings.skipped)
    _threads_table(made, findings)
    _latency_table(made, findings)
    for what, title in (("bytes", "bytes in a session"), ("sessions", "sessions in the store")):
        _growth_table(made, findings, what, title)
    return made


def _threads_table(made: Report, findings: Findings) -> None:
    cases = [case for case in findings.cases() if case.startswith("threads")]
    measure = "requests per second"
    names = dict.fromkeys(name for case in cases for name in findings.contestants(case))
    rows = [
        [name, *(cell(made.quote(key, findings.rounds[key], "1/s")) for key in keys)]
        for name in names
        if (keys := [Key(case, name, measure) for case in cases])
    ]
    columns = [measure, *(case.removeprefix("threads: ") for case in cases)]
    made.tables.append(Table("scale: requests per second by threads", columns, rows))


def _latency_table(made: Report, findings: Findings) -> None:
    cases = [case for case in findings.cases() if case.startswith("latency")]
    names = dict.fromkeys(name for case in cases for name in findings.contestants(case))
    rows = []
    for name in names:
        row = [name]
        for case in cases:
            rounds = [us / 1000 for us in findings.rounds[Key(case, name, "wall")]]
            row.append(cell(made.quote(Key(case, name, "wall"), rounds, "ms")))
        rows.append(row)
    columns = ["ms", *(case.removeprefix("latency: ") for case in cases)]
    title = (
        f"scale: {CACHE_DELAY * 1000:g} ms to a cache, {DATASTORE_DELAY * 1000:g} ms to Datastore"
    )
    made.tables.append(Table(title, columns, rows))
    for case in cases:
        peers = [n for n in names if not is_ours(n) and "datastore" in SITES[n].needs]
        peers = [n for n in peers if SITES[n].work == DURABLE]
        for name in names:
            if not is_ours(name) or "datastore" not in SITES[name].needs:
                continue
            ours = findings.rounds[Key(case, name, "wall")]
            fastest = min(
                peers,
                key=lambda peer: spread(findings.rounds[Key(case, peer, "wall")]).median,
            )
            value = spread(ratio(ours, findings.rounds[Key(case, fastest, "wall")])).median
            text = f"{case}: {name}, of the fastest on Datastore ({fastest})"
            made.targets.append(Target(text, value, 1.0, strict=True))


def _growth_table(made: Report, findings: Findings, what: str, title: str) -> None:
    cases = [case for case in findings.cases() if case.startswith(what)]
    rows = []
    for case in cases:
        amount, kind = case.removeprefix(f"{what}: ").split(", ", 1)
        for name in findings.contestants(case):
            wall = findings.rounds[Key(case, name, "wall")]
            rows.append(
                [f"{name}, {kind}", amount, cell(made.quote(Key(case, name, "wall"), wall))]
            )
    by_name: dict[str, list[str]] = {}
    for name, _, text in rows:
        by_name.setdefault(name, []).append(text)
    amounts = list(dict.fromkeys(amount for _, amount, _ in rows))
    table = [[name, *cells] for name, cells in by_name.items()]
    if table:
        columns = ["us", *(f"{int(amount):,}" for amount in amounts)]
        made.tables.append(Table(f"scale: {title}", columns, table))
