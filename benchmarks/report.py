"""What was measured, and what is made of it: figures for JSON, tables, and targets."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from benchmarks.harness import Rounds, Spread, spread

PACKAGES = (
    "tieredsession",
    "msgpack",
    "cryptography",
    "pymemcache",
    "google-cloud-ndb",
    "grpcio",
    "werkzeug",
    "flask",
    "itsdangerous",
    "starlette",
    "django",
    "pyramid",
    "pyramid_nacl_session",
    "pyramid_session_redis",
    "pynacl",
    "redis",
    "pylibmc",
    "Flask-Session",
    "starsessions",
    "Beaker",
    "aiohttp-session",
    "secure-cookie",
)
"""Whose versions are recorded."""


SERVERS = {"memcached": ["memcached", "--version"], "redis": ["redis-server", "--version"]}
"""How to ask a server for its version."""


class Key(NamedTuple):
    """What was measured, of whom, and in which *case*."""

    case: str
    contestant: str
    measure: str


@dataclass
class Findings:
    """What one or more processes measured, round by round.

    *skipped* names what could not take part, and why. A size has one round.
    """

    rounds: dict[Key, Rounds] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def pool(self, other: Findings) -> None:
        """Put the rounds of *other* behind those that are here."""
        for key, rounds in other.rounds.items():
            self.rounds.setdefault(key, []).extend(rounds)
        self.skipped.update(other.skipped)

    def cases(self) -> list[str]:
        return list(dict.fromkeys(key.case for key in self.rounds))

    def contestants(self, case: str) -> list[str]:
        return list(dict.fromkeys(key.contestant for key in self.rounds if key.case == case))

    def as_json(self) -> dict[str, Any]:
        rows = [{**key._asdict(), "rounds": rounds} for key, rounds in self.rounds.items()]
        return {"rounds": rows, "skipped": self.skipped}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Findings:
        rounds = {
            Key(row["case"], row["contestant"], row["measure"]): row["rounds"]
            for row in document["rounds"]
        }
        return cls(rounds, document["skipped"])


class Figure(NamedTuple):
    """One number that is quoted."""

    key: Key
    value: Spread
    unit: str


class Target(NamedTuple):
    """A promise about a figure: *value* is at most *limit* (below it, if *strict*)."""

    text: str
    value: float
    limit: float
    unit: str = ""
    strict: bool = False

    @property
    def holds(self) -> bool:
        return self.value < self.limit if self.strict else self.value <= self.limit


class Table(NamedTuple):
    """Rows of text under *columns*; the first column is words and the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Report:
    """What the findings of *program* amount to."""

    program: str
    skipped: dict[str, str]
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """What a picture shows point by point, by contestant."""

    def quote(self, key: Key, rounds: Rounds, unit: str = "us") -> Spread:
        """Record what *rounds* amount to, and answer it."""
        value = spread(rounds)
        self.figures.append(Figure(key, value, unit))
        return value

    def as_json(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "figures": [
                {**key._asdict(), **value._asdict(), "unit": unit}
                for key, value, unit in self.figures
            ],
            "targets": [{**target._asdict(), "holds": target.holds} for target in self.targets],
            "tables": [table._asdict() for table in self.all_tables()],
            "series": self.series,
        }

    def all_tables(self) -> list[Table]:
        """The tables of figures, and one of the targets if there are any."""
        if not self.targets:
            return self.tables
        rows = [
            [
                target.text,
                f"{number(target.value)} {target.unit}".strip(),
                f"{'<' if target.strict else '<='} {number(target.limit)} {target.unit}".strip(),
                "yes" if target.holds else "NO",
            ]
            for target in self.targets
        ]
        columns = ["", "measured", "target", "holds"]
        return [*self.tables, Table(f"{self.program}: targets", columns, rows)]


def environment() -> dict[str, Any]:
    """Where and with what a run took place."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "servers": {name: found for name in SERVERS if (found := _server(name)) is not None},
    }


def plain(table: Table) -> str:
    """*table* for a terminal."""
    widths = _widths(table)
    lines = [_line(row, widths) for row in [table.columns, *table.rows]]
    return "\n".join([table.title, "-" * len(table.title), *lines, ""])


def rest(table: Table) -> str:
    """*table* as reStructuredText."""
    # An empty first cell would continue the row above.
    rows = [[row[0] or "\\", *row[1:]] for row in [table.columns, *table.rows]]
    widths = _widths(table)
    rule = "  ".join("=" * width for width in widths)
    head, *lines = [_line(row, widths) for row in rows]
    return "\n".join([table.title, "-" * len(table.title), "", rule, head, rule, *lines, rule, ""])


def number(value: float) -> str:
    """*value* with three figures, or all there are before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def cell(value: Spread) -> str:
    """A median, and how far the quartiles are from it."""
    return f"{number(value.median)} ±{number((value.high - value.low) / 2)}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip()


def _widths(table: Table) -> list[int]:
    columns = zip(table.columns, *table.rows, strict=True)
    return [max(1, *(len(text) for text in column)) for column in columns]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _server(name: str) -> str | None:
    try:
        said = subprocess.run(SERVERS[name], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\d+\.[\d.]+", said)
    return None if found is None else found[0]


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
