"""What a million requests cost in Datastore and cache, from counted calls and assumed prices.

Calls are counted at the servers; prices and traffic are assumptions in ``assumptions.json``,
made to be edited. No figure here is a time, so two runs of it agree.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.calls import CACHE, DELETES, READS, WRITES, Meters, metered
from benchmarks.frameworks import Request
from benchmarks.harness import Effort, Say
from benchmarks.report import Findings, Key, Report, Table, Target, number
from benchmarks.servers import NAMES, running, talk
from benchmarks.sites import Where, is_ours, present

SERVERS = NAMES
FULL = Effort(processes=1, rounds=1, seconds=0)

ASSUMPTIONS = Path(__file__).with_name("assumptions.json")
CONTESTANTS = (
    "Werkzeug, ours, GAE on memcached",
    "Werkzeug, ours, GAE on Redis",
    "Werkzeug, naive write-through",
    "Werkzeug, ndb by hand",
    "Werkzeug, ndb by hand, its cache on memcached",
    "Werkzeug, ndb by hand, its cache on Redis",
)
READ, MISS, COUNTER, LOGIN = "returning read", "read that misses", "counter", "login"
_BILLED = (READS, WRITES, DELETES, CACHE)
_COUNTED = 8
_MILLION = 1_000_000


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    with running(*SERVERS) as servers, TemporaryDirectory() as folder:
        if "datastore" not in servers:
            findings.skipped["cost"] = "the Datastore emulator is not installed"
            return findings
        with metered(servers) as meters:
            where = Where(Path(folder), meters.servers)
            for name, site in present(where, findings.skipped, CONTESTANTS).items():
                say(name)
                for kind, counts in _count(meters, site).items():
                    for measure in _BILLED:
                        value = counts[measure] / _COUNTED
                        findings.rounds[Key(kind, name, measure)] = [value]
    return findings


def _count(meters: Meters, site: Request) -> dict[str, Counter[str]]:
    cookie = site("/fill", None).cookie
    site("/count", cookie)  # the first loads what later ones find: scripts, connections

    def several(path: str, cookie: str | None) -> None:
        for _ in range(_COUNTED):
            site(path, cookie)

    counts = {}
    for kind, path, sent in ((COUNTER, "/count", cookie), (LOGIN, "/login", None)):
        counts[kind] = meters.count(partial(several, path, sent))
    site("/read", cookie)  # what a change took out of a cache is there again
    counts[READ] = meters.count(partial(several, "/read", cookie))
    counts[MISS] = Counter()
    for _ in range(_COUNTED):
        _empty(meters)
        counts[MISS].update(meters.count(partial(site, "/read", cookie)))
    return counts


def _empty(meters: Meters) -> None:
    if "memcached" in meters.servers:
        talk(meters.servers["memcached"], b"flush_all", b"quit")
    if "redis" in meters.servers:
        talk(meters.servers["redis"], b"FLUSHALL", b"QUIT")


def report(findings: Findings) -> Report:
    made = Report("cost", findings.skipped)
    assumed = json.loads(ASSUMPTIONS.read_text())
    rows = []
    totals = {}
    for name in findings.contestants(READ):
        bill = _bill(findings, name, assumed)
        for measure, dollars in bill.items():
            made.quote(Key("a million requests", name, measure), [dollars], "USD")
        total = totals[name] = sum(bill.values())
        made.quote(Key("a million requests", name, "total"), [total], "USD")
        rows.append([name, *(number(bill[measure]) for measure in _BILLED), number(total)])
    columns = ["US dollars", *_BILLED, "total"]
    made.tables.append(Table("cost: a million requests", columns, rows))
    made.tables.append(_calls_table(made, findings))
    peers = [name for name in totals if not is_ours(name)]
    for name in filter(is_ours, totals):
        if peers:
            cheapest = min(peers, key=totals.__getitem__)
            text = f"{name}, of the cheapest other ({cheapest})"
            made.targets.append(Target(text, totals[name] / totals[cheapest], 1.0, strict=True))
    return made


def _calls_table(made: Report, findings: Findings) -> Table:
    rows = []
    kinds = (READ, MISS, COUNTER, LOGIN)
    for name in findings.contestants(READ):
        row = [name]
        for kind in kinds:
            counts = []
            for measure in _BILLED:
                key = Key(kind, name, measure)
                counts.append(f"{made.quote(key, findings.rounds[key], '').median:g}")
            row.append("+".join(counts))
        rows.append(row)
    return Table("cost: reads + writes + deletes + cache calls of a request", ["", *kinds], rows)


def _bill(findings: Findings, name: str, assumed: dict[str, Any]) -> dict[str, float]:
    """Dollars for a million requests, by what they are paid for."""
    traffic, prices = assumed["traffic"], assumed["prices"]
    reads, misses = traffic[READ], traffic["share of reads that miss the cache"]
    refreshes = reads / traffic["reads until a session of 14 days is due for a refresh"]
    shares = {
        READ: reads * (1 - misses) - refreshes,
        MISS: reads * misses,
        COUNTER: traffic[COUNTER] + refreshes,  # a refresh is a write like any other
        LOGIN: traffic[LOGIN],
    }
    bill = {}
    for measure in _BILLED:
        calls = sum(
            share * findings.rounds[Key(kind, name, measure)][0] for kind, share in shares.items()
        )
        if measure == DELETES:
            calls += shares[LOGIN]  # whatever began is deleted once
        bill[measure] = calls * _MILLION * _price(prices, measure)
    return bill


def _price(prices: dict[str, Any], measure: str) -> float:
    if measure != CACHE:
        dollars: float = prices[measure]["dollars"] / prices[measure]["per"]
        return dollars
    cache = prices["cache"]
    calls_an_hour = 3600 * cache["calls a second at full load"] * cache["load"]
    dollars_a_call: float = cache["dollars an hour"] / calls_an_hour
    return dollars_a_call
