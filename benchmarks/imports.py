"""What importing costs beyond a bare interpreter: whole processes, started by turns."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import tieredsession
from benchmarks.cookies import SECRET
from benchmarks.harness import Effort, Rounds, Say, difference, race
from benchmarks.report import Findings, Key, Report, Table, Target, cell

BARE = "bare interpreter"
PACKAGE = "import tieredsession"

STATEMENTS: dict[str, str] = {
    BARE: "pass",
    PACKAGE: PACKAGE,
    "SessionMiddleware": "from tieredsession import SessionMiddleware",
    "SessionMiddleware, ready": (
        "from tieredsession import SessionMiddleware; "
        f"SessionMiddleware(None, {{'SECRET_KEY': {SECRET!r}}})"
    ),
    "itsdangerous": "from itsdangerous import URLSafeTimedSerializer",
    "Flask's sessions": "import flask.sessions",
    "Starlette's sessions": "import starlette.middleware.sessions",
    "Django's sessions": "import django.contrib.sessions.backends.signed_cookies",
}

_CASE = "import"
_LIMIT = 30.0  # milliseconds beyond the bare interpreter, from the issue that asked for it


def measure(effort: Effort, say: Say) -> Findings:
    findings = Findings()
    calls = {}
    for name, statement in STATEMENTS.items():
        # The first run also writes what the others read: the compiled modules.
        done = _run(f"{statement}; import sys; print(len(sys.modules))")
        if done.returncode == 0:
            calls[name] = partial(_start, statement)
            findings.rounds[Key(_CASE, name, "modules")] = [float(done.stdout)]
        else:
            findings.skipped[name] = done.stderr.strip().rpartition("\n")[2]
    # One call takes longer than a whole turn of the other programs.
    fewer = effort._replace(rounds=max(3, effort.rounds // 16))
    for name, taken in race(calls, fewer, say, _CASE).items():
        findings.rounds[Key(_CASE, name, "wall")] = taken.wall
    return findings


def report(findings: Findings) -> Report:
    made = Report("imports", findings.skipped)
    bare = _milliseconds(findings, BARE)
    rows = []
    for name in findings.contestants(_CASE):
        key = partial(Key, _CASE, name)
        took = _milliseconds(findings, name)
        modules = made.quote(key("modules"), findings.rounds[key("modules")], "").median
        row = [name, cell(made.quote(key("wall"), took, "ms")), "", f"{modules:.0f}"]
        if name != BARE:
            beyond = made.quote(key("beyond a bare one"), difference(took, bare), "ms")
            row[2] = cell(beyond)
            if name == PACKAGE:
                text = f"{name}, beyond a {BARE}"
                made.targets.append(Target(text, beyond.median, _LIMIT, "ms"))
        rows.append(row)
    columns = ["ms", "process", "beyond a bare one", "modules"]
    made.tables.append(Table("imports", columns, rows))
    return made


def _milliseconds(findings: Findings, name: str) -> Rounds:
    return [us / 1000 for us in findings.rounds[Key(_CASE, name, "wall")]]


def _start(statement: str) -> None:
    _run(statement).check_returncode()


def _run(code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* away from the checkout, whose folder would be searched first, but with it."""
    home = Path(tieredsession.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(home)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=gettempdir(), env=environment, capture_output=True, text=True
    )
