"""Deleting expired sessions from Datastore: rows per second, processor time and memory.

Each contestant works in a process of its own, on rows of its own, as fast as it can: a purge
in production holds itself back (500/50/5), which is not what is compared here.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from time import perf_counter, process_time
from typing import Any

from benchmarks.frameworks import use_emulator
from benchmarks.harness import QUICK, Effort, Say, ratio
from benchmarks.report import Findings, Key, Report, Table, Target, cell, number
from benchmarks.servers import PROJECT, running

SERVERS = ("datastore",)
FULL = Effort(processes=1, rounds=3, seconds=0)

FEW, MANY = "2,000 expired sessions", "a backlog of 20,000"
ROWS = {FEW: 2_000, MANY: 20_000}
"""Ours looks into each of 256 shards, however few rows there are: that is dear for few.

The emulator looks at every row there is for each query, as the service does not: more rows would
measure that, and those most who ask for the rows of one shard at a time.
"""

_PAGE = 500
# A purge goes on where it stopped, so each process gets rows that none has seen.
_NAMESPACE = f"purge-{os.getpid()}"

OURS = "ours, purge()"
RAW = "raw: keys-only query, batched delete"
NDB_PAGES = "ndb: query and delete_multi, page by page"
NDB_ALL = "ndb: query and delete_multi, all at once"
_SECONDS = 600.0
SPEED = "rows per second"


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    with running(*SERVERS) as servers:
        if "datastore" not in servers:
            findings.skipped["purge"] = "the Datastore emulator is not installed"
            return findings
        rounds = [FEW] if effort == QUICK else [FEW] * effort.rounds + [MANY]
        for turn, case in enumerate(rounds):
            for name in CONTESTANTS:
                say(f"{case}, turn {turn + 1} of {len(rounds)}: {name}")
                found = _in_a_process(name, servers["datastore"], ROWS[case])
                if isinstance(found, str):
                    findings.skipped[name] = found
                    continue
                for measure, value in found.items():
                    findings.rounds.setdefault(Key(case, name, measure), []).append(value)
    return findings


def report(findings: Findings) -> Report:
    made = Report("purge", findings.skipped)
    for case in findings.cases():
        rows = []
        for name in findings.contestants(case):
            key = partial(Key, case, name)
            speed = made.quote(key(SPEED), findings.rounds[key(SPEED)], "1/s")
            cpu = made.quote(key("processor"), findings.rounds[key("processor")])
            memory = made.quote(key("memory"), findings.rounds[key("memory")], "MB")
            rows.append([name, cell(speed), cell(cpu), number(memory.median)])
        columns = ["", SPEED, "us of processor a row", "MB more at most"]
        made.tables.append(Table(f"purge: {case}", columns, rows))
        if Key(case, OURS, SPEED) not in findings.rounds:
            continue
        for peer in (NDB_PAGES, NDB_ALL):
            if Key(case, peer, SPEED) in findings.rounds:
                theirs, ours = (findings.rounds[Key(case, who, SPEED)] for who in (peer, OURS))
                value = made.quote(Key(case, OURS, f"time, of {peer}"), ratio(theirs, ours), "")
                text = f"{case}: {OURS}, time, of {peer}"
                made.targets.append(Target(text, value.median, 1.0, strict=True))
    return made


def _in_a_process(name: str, emulator: str, rows: int) -> dict[str, float] | str:
    """What a new process measured, or why it could not."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, name, emulator, rows))
    process.start()
    theirs.close()
    try:
        found: dict[str, float] | str = ours.recv()
    finally:
        process.join()
    return found


def _work(pipe: Any, name: str, emulator: str, rows: int) -> None:
    use_emulator(emulator)
    try:
        purge = CONTESTANTS[name](rows)
    except ImportError as error:
        pipe.send(str(error))
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = process_time(), perf_counter()
    deleted = purge()
    wall, cpu = perf_counter() - wall, process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if deleted != rows:
        raise AssertionError(f"{name} deleted {deleted} of {rows} rows")
    found = {
        SPEED: rows / wall,
        "processor": cpu / rows * 1e6,
        "memory": max(memory / 1024, 0.01),
    }
    pipe.send(found)


# -- the contestants: each fills Datastore, and answers what empties it ------------------

Purge = Callable[[], int]


def _store(kind: str, rows: int) -> Any:
    """Our store, with as many sessions that expired a day ago."""
    from benchmarks.cookies import SECRET
    from benchmarks.payloads import TYPICAL
    from tieredsession.codec import MsgpackCodec
    from tieredsession.contracts import Record
    from tieredsession.keyring import Keyring
    from tieredsession.options import StoreOptions
    from tieredsession.stores.datastore import DatastoreSessionStore
    from tieredsession.url import URL

    url = URL(f"datastore://{PROJECT}?namespace={_NAMESPACE}&kind={kind}&deadline=20", "URL")
    options = StoreOptions(Keyring(SECRET), "id", url=url)
    store = DatastoreSessionStore.from_options(options)
    expires = float(int(time.time()) - 86_400)
    record = Record(MsgpackCodec().encode(TYPICAL), expires, expires - 86_400)
    connection, requests = store._connect(), store._request()
    for start in range(0, rows, _PAGE):
        batch: Any = None
        for _ in range(min(_PAGE, rows - start)):
            _, key = options.ids.mint()
            one = requests.insert(key, store._seal(record, key), record.expires, b"", None)
            if batch is None:
                batch = one
            else:
                batch.mutations.extend(one.mutations)
        connection.commit(batch, 30.0)
    return store


def _ours(rows: int) -> Purge:
    purge = import_module("tieredsession.purge").purge
    store = _store("BenchmarkOurs", rows)

    def run() -> int:
        deleted: int = purge(store, budget=_SECONDS, grace=0.0, ramp=False).deleted
        return deleted

    return run


def _raw(rows: int) -> Purge:
    from tieredsession.stores import datastore_rpc as rpc

    kind = "BenchmarkRaw"
    store = _store(kind, rows)
    connection = store._connect()

    def run() -> int:
        deleted = 0
        query = rpc.QueryRequest(project_id=connection.project)
        query.partition_id.project_id = connection.project
        query.partition_id.namespace_id = connection.namespace
        query.query.kind.add().name = kind
        query.query.projection.add().property.name = "__key__"
        query.query.limit.value = _PAGE
        while True:
            batch = connection.query(query, 30.0).batch
            if batch.entity_results:
                commit = rpc.CommitRequest(
                    project_id=connection.project, mode=rpc.CommitRequest.NON_TRANSACTIONAL
                )
                for found in batch.entity_results:
                    commit.mutations.add().delete.CopyFrom(found.entity.key)
                connection.commit(commit, 30.0)
                deleted += len(commit.mutations)
                query.query.start_cursor = batch.end_cursor  # behind what is being deleted
            elif batch.more_results != batch.NOT_FINISHED:
                return deleted

    return run


def _ndb(rows: int, *, at_once: bool) -> Purge:
    ndb = import_module("google.cloud.ndb")
    kind = "BenchmarkNdbAll" if at_once else "BenchmarkNdb"
    _store(kind, rows)
    client = ndb.Client(project=PROJECT, namespace=_NAMESPACE)
    model: Any = type(kind, (ndb.Model,), {"sweep": ndb.StringProperty()})

    def run() -> int:
        deleted = 0
        while True:
            with client.context():
                keys = model.query().fetch(rows if at_once else _PAGE, keys_only=True)
                ndb.delete_multi(keys)
            deleted += len(keys)
            if at_once or not keys:
                return deleted

    return run


CONTESTANTS: dict[str, Callable[[int], Purge]] = {
    OURS: _ours,
    RAW: _raw,
    NDB_PAGES: partial(_ndb, at_once=False),
    NDB_ALL: partial(_ndb, at_once=True),
}
