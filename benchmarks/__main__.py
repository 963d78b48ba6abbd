"""``python -m benchmarks [program ...] [--quick] [--json FILE] [--rst FILE]``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import FULL, QUICK, Effort, Say
from benchmarks.report import Findings, Report, environment, plain, rest

PROGRAMS = ("codec", "requests", "imports", "tiers")
"""Each is a module here with ``measure(effort, say) -> Findings`` and ``report(findings)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    effort = QUICK if options.quick else FULL
    if options.worker:
        (name,) = options.programs
        json.dump(_measure(name, effort).as_json(), sys.stdout)
        return 0

    where = environment()
    print(_heading(where), end="\n\n")
    reports = []
    for name in options.programs or PROGRAMS:
        findings = _measure(name, effort) if effort.processes == 1 else _pool(name, effort)
        make: Callable[[Findings], Report] = import_module(f"benchmarks.{name}").report
        report = make(findings)
        for table in report.all_tables():
            print(plain(table))
        for skipped, reason in report.skipped.items():
            print(f"skipped: {skipped} ({reason})")
        print(flush=True)
        reports.append(report)

    if options.json is not None:
        found = {report.program: report.as_json() for report in reports}
        document = {"environment": where, "quick": options.quick, "programs": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.rst is not None:
        tables = [rest(table) for report in reports for table in report.all_tables()]
        options.rst.write_text("\n".join([_heading(where), "", *tables]))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="program", help=", ".join(PROGRAMS))
    parser.add_argument("--quick", action="store_true", help="seconds, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.programs:
        if name not in PROGRAMS:
            parser.error(f"no program {name!r}: choose from {', '.join(PROGRAMS)}")
    return options


def _measure(name: str, effort: Effort) -> Findings:
    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{name}: {text}" if text else "\r\x1b[K")
            sys.stderr.flush()

    measure: Callable[[Effort, Say], Findings] = import_module(f"benchmarks.{name}").measure
    findings = measure(effort, say)
    say("")
    return findings


def _pool(name: str, effort: Effort) -> Findings:
    """The findings of several processes, which write them to their standard output."""
    findings = Findings()
    command = [sys.executable, "-m", "benchmarks", name, "--worker"]
    for _ in range(effort.processes):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        findings.pool(Findings.from_json(json.loads(done.stdout)))
    return findings


def _heading(where: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{where['python']}, {where['cpus']} x {where['cpu']}\n{versions}"


if __name__ == "__main__":
    sys.exit(main())
