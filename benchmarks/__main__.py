"""``python -m benchmarks [program ...] [--quick] [--results FOLDER] [--compare OLD.json]``."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import compare, results
from benchmarks.harness import FULL, QUICK, Effort, Say
from benchmarks.report import Findings, Report, environment, plain, rest
from benchmarks.servers import handed_down, running

PROGRAMS = ("codec", "requests", "imports", "tiers", "scale", "purge", "faults", "cost")
"""Each is a module here with ``measure(effort, say) -> Findings`` and ``report(findings)``.

It may say which ``SERVERS`` it needs, and what a ``FULL`` effort is for it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    # Whoever is told to end takes the servers along, as one that is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.worker:
        (name,) = options.programs
        effort: Effort = _module(name, "FULL", FULL)
        json.dump(_measure(name, effort).as_json(), sys.stdout)
        return 0
    if options.redraw:
        folder = options.results or results.FOLDER
        results.draw(json.loads((folder / results.JSON).read_text()), folder)
        if options.readme:
            results.into_readme(folder)
        return 0

    where = environment()
    print(results.heading(where), end="\n\n")
    names = options.programs or PROGRAMS
    with ExitStack() as stack:
        needed = dict.fromkeys(server for name in names for server in _module(name, "SERVERS", ()))
        if needed:
            stack.enter_context(handed_down(stack.enter_context(running(*needed))))
        reports = []
        for name in names:
            report = _run(name, quick=options.quick)
            reports.append(report)
            if options.results is not None:
                # A first look replaces no result; what failed later costs none that is there.
                folder = options.results / "quick" if options.quick else options.results
                results.write(_document(where, [report], quick=options.quick), folder)

    document = _document(where, reports, quick=options.quick)
    if options.json is not None:
        results.write_json(document, options.json)
    if options.rst is not None:
        tables = [rest(table) for report in reports for table in report.all_tables()]
        options.rst.write_text("\n".join([results.heading(where), "", *tables]))
    if options.readme and options.results is not None and not options.quick:
        results.into_readme(options.results)
    if options.compare is not None:
        for table in compare.tables(json.loads(options.compare.read_text()), document):
            print(plain(table))
    return 0


def _document(where: dict[str, Any], reports: list[Report], *, quick: bool) -> dict[str, Any]:
    programs = {report.program: report.as_json() for report in reports}
    # What is drawn, compared and kept are the same figures.
    return results.rounded({"environment": where, "quick": quick, "programs": programs})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="program", help=", ".join(PROGRAMS))
    parser.add_argument("--quick", action="store_true", help="seconds, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="write figures, tables and pictures there"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="JSON", help="say what has changed since that run"
    )
    parser.add_argument(
        "--readme", action="store_true", help="put the chosen results into README.rst as well"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="measure nothing; draw what FOLDER holds again"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.programs:
        if name not in PROGRAMS:
            parser.error(f"no program {name!r}: choose from {', '.join(PROGRAMS)}")
    return options


def _module(name: str, attribute: str, default: Any = None) -> Any:
    return getattr(import_module(f"benchmarks.{name}"), attribute, default)


def _run(name: str, *, quick: bool) -> Report:
    """Measure, and print what came of it."""
    begin = time.monotonic()
    effort = QUICK if quick else _module(name, "FULL", FULL)
    # Only a process of its own starts without what the others have loaded and left behind.
    findings = _measure(name, effort) if quick else _pool(name, effort)
    make: Callable[[Findings], Report] = _module(name, "report")
    report = make(findings)
    for table in report.all_tables():
        print(plain(table))
    for skipped, reason in report.skipped.items():
        print(f"skipped: {skipped} ({reason})")
    print(f"{name}: {time.monotonic() - begin:.0f} seconds\n", flush=True)
    return report


def _measure(name: str, effort: Effort) -> Findings:
    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{name}: {text}" if text else "\r\x1b[K")
            sys.stderr.flush()

    measure: Callable[[Effort, Say], Findings] = _module(name, "measure")
    findings = measure(effort, say)
    say("")
    return findings


def _pool(name: str, effort: Effort) -> Findings:
    """The findings of several processes, which write them to their standard output."""
    findings = Findings()
    command = [sys.executable, "-m", "benchmarks", name, "--worker"]
    for _ in range(effort.processes):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            try:
                found, _ = worker.communicate()
            except BaseException:  # also what interrupts: the worker has servers of its own to end
                worker.terminate()
                raise
        if worker.returncode:
            raise subprocess.CalledProcessError(worker.returncode, command)
        findings.pool(Findings.from_json(json.loads(found)))
    return findings


if __name__ == "__main__":
    sys.exit(main())
