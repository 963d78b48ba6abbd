"""Session data to a cookie and back: microseconds to encode, decode and refuse, and bytes.

Nothing here waits for anything, so the time is the processor's.
"""

from __future__ import annotations

from functools import partial

from benchmarks.cookies import OURS, PEERS, CookieCodec, present
from benchmarks.harness import Call, Effort, Rounds, Say, race, ratio, spread, total
from benchmarks.payloads import PAYLOADS, Data, without_datetimes
from benchmarks.report import Findings, Key, Report, Table, Target, cell, number

BOTH = "encode + decode"

# Ours as a share of the fastest peer and of Flask, from the issue that asked for it.
_OF_FASTEST = {"tiny": 0.65, "typical": 0.65}
_OF_FLASK = {"tiny": 0.13, "typical": 0.13, "cart": 0.25}
_REJECT_OF_FLASK = 0.2
_TINY_BYTES = 39
_BYTES_OF_FLASK = {"typical": 0.95}


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    codecs = present({**OURS, **PEERS}, findings.skipped)
    for payload, data in PAYLOADS.items():
        calls: dict[Key, Call] = {}
        for name, codec in codecs.items():
            given = data if codec.datetimes else without_datetimes(data)
            value = codec.encode(given)
            forged = _forge(value)
            _check(name, codec, given, value, forged)
            findings.rounds[Key(payload, name, "bytes")] = [float(len(value))]
            calls[Key(payload, name, "encode")] = partial(codec.encode, given)
            calls[Key(payload, name, "decode")] = partial(codec.decode, value)
            calls[Key(payload, name, "reject")] = partial(codec.decode, forged)
        for key, taken in race(calls, effort, say, payload).items():
            findings.rounds[key] = taken.cpu
    return findings


def report(findings: Findings) -> Report:
    made = Report("codec", findings.skipped)
    for payload in findings.cases():
        names = findings.contestants(payload)
        taken = {
            measured: {name: findings.rounds[Key(payload, name, measured)] for name in names}
            for measured in ("encode", "decode", "reject", "bytes")
        }
        taken[BOTH] = {name: total(taken["encode"][name], taken["decode"][name]) for name in names}
        ours = taken[BOTH]["ours"]
        rows = []
        for name in names:
            key = partial(Key, payload, name)
            times = [
                cell(made.quote(key(measured), taken[measured][name]))
                for measured in ("encode", "decode", BOTH, "reject")
            ]
            share = made.quote(key(f"{BOTH}, of ours"), ratio(taken[BOTH][name], ours), "")
            size = made.quote(key("bytes"), taken["bytes"][name], "bytes")
            rows.append([name, *times[:3], number(share.median), times[3], f"{size.median:.0f}"])
        columns = ["us", "encode", "decode", "both", "of ours", "reject", "bytes"]
        made.tables.append(Table(f"codec: {payload}", columns, rows))
        made.targets += _targets(payload, taken)
    return made


def _targets(payload: str, taken: dict[str, dict[str, Rounds]]) -> list[Target]:
    def share(measured: str, peer: str) -> float:
        return spread(ratio(taken[measured]["ours"], taken[measured][peer])).median

    def target(text: str, value: float, limit: float, unit: str = "") -> Target:
        return Target(f"{payload}: {text}", value, limit, unit)

    targets = []
    times, size = taken[BOTH], taken["bytes"]["ours"][0]
    peers = [name for name in times if name in PEERS]
    if peers and payload in _OF_FASTEST:
        fastest = min(peers, key=lambda name: spread(times[name]).median)
        text = f"{BOTH}, of the fastest peer ({fastest})"
        targets.append(target(text, share(BOTH, fastest), _OF_FASTEST[payload]))
    if payload == "tiny":
        targets.append(target("bytes", size, _TINY_BYTES))
    if "Flask" not in times:
        return targets
    if payload in _OF_FLASK:
        targets.append(target(f"{BOTH}, of Flask", share(BOTH, "Flask"), _OF_FLASK[payload]))
    targets.append(target("reject, of Flask", share("reject", "Flask"), _REJECT_OF_FLASK))
    flask = taken["bytes"]["Flask"][0]
    if payload in _BYTES_OF_FLASK:
        targets.append(target("bytes, of Flask", size / flask, _BYTES_OF_FLASK[payload]))
    else:
        targets.append(Target(f"{payload}: bytes, less than Flask", size, flask, strict=True))
    return targets


def _forge(value: str) -> str:
    """*value* with one character in its middle changed to another of its alphabet."""
    middle = len(value) // 2
    while not value[middle].isalpha():
        middle += 1
    other = "A" if value[middle] != "A" else "B"
    return value[:middle] + other + value[middle + 1 :]


def _check(name: str, codec: CookieCodec, given: Data, value: str, forged: str) -> None:
    if codec.decode(value) != given or codec.decode(forged) is not None:
        raise AssertionError(f"{name} does not keep what it is given, or opens a forgery")
