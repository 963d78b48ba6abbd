"""Where results are kept: JSON, a reStructuredText table for each program, and pictures.

Everything in the folder, and what stands between the markers in ``README.rst``, is made from
``results.json``: nothing there is edited by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import Table, number, rest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"
JSON = "results.json"

_BEGIN, _END = ".. benchmarks begin", ".. benchmarks end"


def heading(where: dict[str, Any]) -> str:
    """The machine and the versions, in words."""
    servers = {f"{name} server": found for name, found in where.get("servers", {}).items()}
    named = {**where["versions"], **servers}  # a client may have the name of its server
    versions = ", ".join(f"{name} {version}" for name, version in named.items())
    return f"{where['python']}, {where['cpus']} x {where['cpu']}\n{versions}"


def rounded(document: dict[str, Any]) -> dict[str, Any]:
    """*document* with every figure to five digits, which is more than any of them is worth."""
    short: dict[str, Any] = json.loads(json.dumps(document), parse_float=_five_digits)
    return short


def _five_digits(text: str) -> float:
    value = float(f"{float(text):.5g}")
    return int(value) if value.is_integer() else value


def write_json(document: dict[str, Any], file: Path) -> None:
    """Keep *document* in *file*: a figure, or a row of a table, is a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_lines(document, "\n") + "\n")


def _lines(value: Any, indent: str) -> str:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)) or not any(isinstance(v, (dict, list)) for v in inner):
        return json.dumps(value)
    deeper = indent + " "
    if isinstance(value, list):
        return f"[{deeper}{f',{deeper}'.join(_lines(v, deeper) for v in value)}{indent}]"
    items = (f"{json.dumps(name)}: {_lines(v, deeper)}" for name, v in value.items())
    return f"{{{deeper}{f',{deeper}'.join(items)}{indent}}}"


def write(document: dict[str, Any], folder: Path) -> None:
    """Keep *document* in *folder*; programs that did not run this time keep what they had.

    What is kept of another machine, or beside a quick run, would be taken for one run with it:
    it goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, made = folder / JSON, document["programs"]
    if file.exists():
        earlier = json.loads(file.read_text())
        same = ("environment", "quick")
        if all(earlier.get(name) == document[name] for name in same):
            document = {**document, "programs": {**earlier["programs"], **document["programs"]}}
    write_json(document, file)
    draw({**document, "programs": made}, folder)


def draw(document: dict[str, Any], folder: Path) -> None:
    """The tables and pictures of *document*."""
    for name, program in document["programs"].items():
        made = f"Made by ``python -m benchmarks {name}``" + (
            " ``--quick``: a first look, not a result." if document["quick"] else "."
        )
        tables = [rest(Table(**table)) for table in program["tables"]]
        skipped = [f"- left out: {who} ({why})" for who, why in program["skipped"].items()]
        note = "\n".join([*skipped, ""]) if skipped else ""
        text = "\n".join([made, "", heading(document["environment"]), "", note, *tables])
        (folder / f"{name}.rst").write_text(text)
    try:
        from benchmarks import plots
    except ImportError as error:
        print(f"no pictures: {error}")
        return
    for picture in plots.draw(document, folder):
        print(f"drawn: {picture}")


def into_readme(folder: Path, readme: Path = ROOT / "README.rst") -> None:
    """Put a table of chosen figures between the markers of *readme*."""
    document = json.loads((folder / JSON).read_text())
    before, begin, rest_ = readme.read_text().partition(_BEGIN)
    _, end, after = rest_.partition(_END)
    if not begin or not end:
        raise ValueError(f"{readme.name} has no markers: {_BEGIN!r} and {_END!r}")
    readme.write_text(f"{before}{begin}\n\n{_chosen(document)}\n{end}{after}")


_CHOSEN = (
    ("Werkzeug, ours, cookie", "cookie"),
    ("Flask, ours, cookie", "cookie"),
    ("Flask, its session", "cookie"),
    ("Django, ours, cookie", "cookie"),
    ("Django, signed_cookies", "cookie"),
    ("Starlette, ours, cookie", "cookie"),
    ("Starlette, its session", "cookie"),
    ("Pyramid, ours, cookie", "cookie"),
    ("Pyramid, its session", "cookie"),
    ("Werkzeug, Beaker, cookie", "cookie"),
    ("Werkzeug, ours, GAE on memcached", "tiers"),
    ("Werkzeug, ours, GAE on Redis", "tiers"),
    ("Werkzeug, ndb by hand", "tiers"),
    ("Werkzeug, ndb by hand, its cache on memcached", "tiers"),
    ("Flask, ours, SQLite and Redis", "tiers"),
    ("Flask, Flask-Session, Redis", "tiers"),
    ("Django, ours, SQLite and memcached", "tiers"),
    ("Django, cached_db, SQLite and memcached", "tiers"),
)
_KINDS = ("returning read", "counter", "login")


def _chosen(document: dict[str, Any]) -> str:
    figures = document["programs"].get("requests", {"figures": []})["figures"]
    by_key = {(f["case"], f["contestant"], f["measure"]): f for f in figures}
    rows = []
    for name, group in _CHOSEN:
        measure = "beyond the floor" if group == "cookie" else "wall beyond the floor"
        found = [by_key.get((kind, name, measure)) for kind in _KINDS]
        if any(found):
            calls = by_key.get(("counter", name, "cache calls"))
            commits = by_key.get(("counter", name, "Datastore calls"))
            counted = "" if calls is None or commits is None else _calls(calls, commits)
            cells = ["" if figure is None else number(figure["median"]) for figure in found]
            rows.append([name, *cells, counted])
    columns = ["us beyond the floor", *_KINDS, "calls of a counter"]
    table = rest(Table("", columns, rows)).partition("\n\n")[2] if rows else ""
    quick = ", in a hurry" if document["quick"] else ""
    where = heading(document["environment"]).partition("\n")[0]
    return f"{table.lstrip()}\n``make bench``{quick}, on {where}.\n"


def _calls(cache: dict[str, Any], datastore: dict[str, Any]) -> str:
    return f"{cache['median']:g} + {datastore['median']:g}"
