"""The tiered store on memcached and the Datastore emulator, beside its primitives and ndb.

The emulator is a program in Java without disk or replication: a commit to the service takes
several times as long, and what a client adds weighs as much in CPU and less in time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.harness import Effort, Say, race, ratio
from benchmarks.payloads import TYPICAL
from benchmarks.report import Findings, Key, Report, Table, Target, cell, number
from tieredsession.codec import MsgpackCodec
from tieredsession.contracts import Record
from tieredsession.demo.servers import PROJECT, running
from tieredsession.errors import SessionError
from tieredsession.keyring import Keyring
from tieredsession.options import StoreOptions
from tieredsession.registry import open_cache
from tieredsession.url import URL

NOW = 1_800_000_000.0
THREADS = 16
_WARM_UP = 400

READ, INCREMENT = "returning read", "increment"
MANY = f"{THREADS * 4} increments by {THREADS} threads"
BARE_GET, BARE_COMMIT = "bare PooledClient.get", "bare raw commit"
OURS, NDB = "ours, memcached and Datastore", "ndb, get and put by hand"

_CODEC = MsgpackCodec()


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    try:
        with ExitStack() as stack:
            tiers = stack.enter_context(running())
            if not tiers.cache_url.startswith("memcached"):
                findings.skipped["memcached"] = "not installed"
                return findings
            _measure(findings, effort, say, tiers.cache_url, tiers.store_url)
    except (SessionError, ImportError) as error:
        findings.skipped[OURS] = str(error)
    return findings


def _measure(findings: Findings, effort: Effort, say: Say, cache_url: str, store_url: str) -> None:
    from pymemcache.client.base import PooledClient

    from tieredsession.stores.datastore import DatastoreSessionStore
    from tieredsession.stores.tiered import TieredSessionStore

    options = StoreOptions(
        Keyring("only for benchmarks, only for benchmarks"), "id", url=URL(store_url, "URL")
    )
    durable = DatastoreSessionStore.from_options(options)
    cache = open_cache(f"{cache_url}?timeout=5&pool=32")
    store = TieredSessionStore(cache, durable, options.ids, options.record_envelope)
    record = Record(_CODEC.encode(TYPICAL), NOW + 86_400, NOW)

    token = store.create(record, NOW).token
    key = options.ids.key(token) or ""
    host, _, port = cache_url.removeprefix("memcached://").partition(":")
    client = PooledClient((host, int(port)), no_delay=True, default_noreply=False)

    def read() -> object:
        found = store.load(token, NOW)
        return None if found is None else _CODEC.decode(found.payload)

    calls: dict[str, Callable[[], object]] = {BARE_GET: partial(client.get, key), OURS: read}
    _record(findings, READ, race(calls, effort, say, READ))

    commit = _bare_commit(durable, options.ids.mint()[1], record)
    ndb_increment = _ndb(record.payload)
    calls = {
        BARE_COMMIT: commit,
        OURS: partial(_increment, store, token),
        NDB: partial(ndb_increment, "0"),
    }
    for _ in range(_WARM_UP):  # the emulator's own compiler goes on for seconds
        for call in calls.values():
            call()
    _record(findings, INCREMENT, race(calls, effort, say, INCREMENT))

    tokens = [store.create(record, NOW).token for _ in range(THREADS * 4)]
    with ThreadPoolExecutor(THREADS) as pool:

        def together(work: Callable[[str], object], names: list[str]) -> object:
            return list(pool.map(work, names))

        calls = {
            OURS: partial(together, partial(_increment, store), tokens),
            NDB: partial(together, ndb_increment, [str(n) for n in range(THREADS * 4)]),
        }
        fewer = effort._replace(rounds=max(3, effort.rounds // 4))
        _record(findings, MANY, race(calls, fewer, say, MANY))
    store.close()
    client.close()


def _increment(store: Any, token: str) -> None:
    """Read a session, change it and save it, as a request does."""
    found = store.load(token, NOW)
    data = _CODEC.decode(found.payload)
    data["count"] = data.get("count", 0) + 1
    store.update(token, found._replace(payload=_CODEC.encode(data)), NOW)


def _bare_commit(durable: Any, key: str, record: Record) -> Callable[[], object]:
    """One upsert of as many bytes, on the same channel, with everything prepared."""
    request = durable._request().insert(key, durable._seal(record, key), record.expires, b"", None)
    upsert = request.mutations[0].upsert
    upsert.CopyFrom(request.mutations[0].insert)
    commit = durable._connect().commit

    def write() -> object:
        # Datastore does not write what it has already.
        upsert.properties["write"].blob_value = os.urandom(16)
        return commit(request, 5.0)

    return write


def _ndb(payload: bytes) -> Callable[[str], object]:
    """The same increment written with ndb: a context, get, change, put."""
    import google.cloud.ndb as ndb

    class ByHand(ndb.Model):  # type: ignore[misc]  # ndb has no types
        data = ndb.BlobProperty(indexed=False)
        expires = ndb.IntegerProperty()

    client = ndb.Client(project=PROJECT)
    with client.context():
        ndb.put_multi([ByHand(id=str(n), data=payload, expires=1) for n in range(THREADS * 4)])

    def increment(name: str) -> None:
        with client.context():
            entity = ndb.Key(ByHand, name).get()
            data = _CODEC.decode(entity.data)
            data["count"] = data.get("count", 0) + 1
            entity.data = _CODEC.encode(data)
            entity.put()

    return increment


def _record(findings: Findings, case: str, taken: dict[str, Any]) -> None:
    for name, rounds in taken.items():
        findings.rounds[Key(case, name, "wall")] = rounds.wall
        findings.rounds[Key(case, name, "cpu")] = rounds.cpu


def report(findings: Findings) -> Report:
    made = Report("tiers", findings.skipped)
    for case, base in ((READ, BARE_GET), (INCREMENT, BARE_COMMIT), (MANY, NDB)):
        if Key(case, OURS, "wall") not in findings.rounds:
            continue
        rows = []
        for name in findings.contestants(case):
            wall, cpu = (findings.rounds[Key(case, name, what)] for what in ("wall", "cpu"))
            share = ratio(wall, findings.rounds[Key(case, base, "wall")])
            rows.append(
                [
                    name,
                    cell(made.quote(Key(case, name, "wall"), wall)),
                    cell(made.quote(Key(case, name, "cpu"), cpu)),
                    number(made.quote(Key(case, name, f"of {base}"), share, "").median),
                ]
            )
        made.tables.append(Table(f"tiers: {case}", ["us", "wall", "processor", f"of {base}"], rows))
    _targets(made, findings)
    return made


def _targets(made: Report, findings: Findings) -> None:
    def share(case: str, other: str, what: str = "wall") -> float:
        ours = findings.rounds[Key(case, OURS, what)]
        return made.quote(
            Key(case, OURS, f"{what} of {other}"),
            ratio(ours, findings.rounds[Key(case, other, what)]),
            "",
        ).median

    if Key(MANY, OURS, "wall") not in findings.rounds:
        return
    made.targets += [
        Target(f"{READ}, decoded: of {BARE_GET}", share(READ, BARE_GET), 1.5),
        Target(f"{INCREMENT}: of {BARE_COMMIT}", share(INCREMENT, BARE_COMMIT), 1.3),
        Target(f"{INCREMENT}: of {NDB}", share(INCREMENT, NDB), 1 / 3),
        Target(f"{INCREMENT}: of {NDB}, processor", share(INCREMENT, NDB, "cpu"), 0.25),
        Target(f"{MANY}: of {NDB}", share(MANY, NDB), 0.2),
    ]
