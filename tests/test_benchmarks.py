"""The benchmarks run anywhere, and the bytes of a cookie, which no machine changes, are kept."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, cost, results
from benchmarks.calls import CACHE, DELETES, READS, WRITES
from benchmarks.report import Findings, Key
from benchmarks.servers import delayed

ROOT = Path(__file__).parent.parent

_PEERS = (
    *("flask", "starlette", "django", "webob", "pyramid", "nacl", "secure_cookie"),
    *("beaker", "aiohttp_session"),
)
_WITHOUT_PEERS = (
    f"import sys, runpy; sys.modules.update(dict.fromkeys({_PEERS})); "
    "sys.argv[0] = 'benchmarks'; runpy.run_module('benchmarks', run_name='__main__')"
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What ``python -m benchmarks codec --quick`` prints where no peer is installed; its JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "codec.json"
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_PEERS, "codec", "--quick", "--json", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout, json.loads(file.read_text())


def test_missing_peers_are_named(quick: tuple[str, dict[str, Any]]) -> None:
    """A peer that is not installed is named, and no row is made up for it."""
    output, document = quick
    codec = document["programs"]["codec"]
    contestants = {figure["contestant"] for figure in codec["figures"]}
    assert contestants == {"ours", "ours, not compressed", "ours, encrypted"}
    assert {"Flask", "Starlette", "Django", "NaCl box, JSON"} <= set(codec["skipped"])
    assert "skipped: Flask" in output


def test_every_figure_has_a_spread(quick: tuple[str, dict[str, Any]]) -> None:
    """Every figure is a median between its quartiles, and is recorded with where it was found."""
    document = quick[1]
    for figure in document["programs"]["codec"]["figures"]:
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    assert document["environment"]["python"]
    assert "msgpack" in document["environment"]["versions"]


@pytest.mark.parametrize(
    ("payload", "limit"),
    [
        pytest.param("tiny", 39, id="tiny"),
        pytest.param("typical", 0.95 * 324, id="typical"),
        pytest.param("unusual", 354, id="unusual"),
        pytest.param("cart", 705, id="cart"),
        pytest.param("cart, odd prices", 721, id="odd prices"),
        pytest.param("cart, floats", 709, id="floats"),
        pytest.param("large", 1397, id="large"),
    ],
)
def test_cookies_are_shorter_than_flasks(
    quick: tuple[str, dict[str, Any]], payload: str, limit: float
) -> None:
    """A cookie is shorter than Flask 3.1 makes it of the same data, with zlib 1.2.13."""
    (size,) = [
        figure["median"]
        for figure in quick[1]["programs"]["codec"]["figures"]
        if (figure["case"], figure["contestant"], figure["measure"]) == (payload, "ours", "bytes")
    ]
    assert size <= limit


# -- what was another run, and what is kept of it ------------------------------------


def test_a_change_beyond_the_spread_is_told(quick: tuple[str, dict[str, Any]]) -> None:
    """A comparison tells the figures that moved beyond the spread of both runs, and no others."""
    before, after = quick[1], copy.deepcopy(quick[1])
    (size,) = [
        figure
        for figure in after["programs"]["codec"]["figures"]
        if (figure["case"], figure["contestant"], figure["measure"]) == ("tiny", "ours", "bytes")
    ]
    for part in ("low", "median", "high"):
        size[part] *= 2
    (table,) = compare.tables(before, after)
    assert [(row[0], row[3]) for row in table.rows] == [("tiny, ours, bytes", "+100 %")]


def test_times_of_two_machines_are_not_compared(quick: tuple[str, dict[str, Any]]) -> None:
    """Times of another machine are left out of a comparison, and it says so."""
    before, after = quick[1], copy.deepcopy(quick[1])
    after["environment"]["cpu"] = "another"
    for figure in after["programs"]["codec"]["figures"]:
        for part in ("low", "median", "high"):
            figure[part] *= 10 if figure["unit"] == "us" else 1
    (table,) = compare.tables(before, after)
    assert [row[0] for row in table.rows] == ["nothing"]
    assert "another machine" in table.title


def test_results_of_one_run_stay_together(
    quick: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    """A program that did not run again keeps its results, unless they are of another machine."""
    earlier = copy.deepcopy(quick[1])
    earlier["programs"]["tiers"] = earlier["programs"].pop("codec")
    elsewhere = copy.deepcopy(quick[1])
    elsewhere["environment"]["cpu"] = "another"
    kept = []
    for document in (earlier, quick[1], elsewhere):
        results.write(document, tmp_path)
        kept.append(set(json.loads((tmp_path / results.JSON).read_text())["programs"]))
    assert kept == [{"tiers"}, {"tiers", "codec"}, {"codec"}]
    assert "codec: tiny" in (tmp_path / "codec.rst").read_text()


def test_a_client_and_its_server_are_both_named() -> None:
    """The heading names the version of a server and that of the client of the same name."""
    where = {"python": "CPython 3", "cpus": 2, "cpu": "a processor"}
    where |= {"versions": {"redis": "8.1.0"}, "servers": {"redis": "7.0.15"}}
    assert results.heading(where).endswith("\nredis 8.1.0, redis server 7.0.15")


def test_results_are_kept_line_by_line(quick: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Figures are rounded before they are used, and a figure or a row is a line of the file."""
    assert quick[1] == results.rounded(quick[1])
    document = {
        "programs": {"codec": {"figures": [{"median": 1 / 3, "unit": "us"}, {"median": 2.0}]}},
        "rows": [["a", "1.0 ±0.1"], []],
        "quick": False,
    }
    short = results.rounded(document)
    assert [figure["median"] for figure in short["programs"]["codec"]["figures"]] == [0.33333, 2]
    file = tmp_path / "folder" / "results.json"
    results.write_json(short, file)
    assert json.loads(file.read_text()) == short
    lines = [line.strip() for line in file.read_text().splitlines()]
    assert {'{"median": 0.33333, "unit": "us"},', '{"median": 2}', "[]"} <= set(lines)


def test_only_what_is_marked_is_rewritten(
    quick: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The README is rewritten between its markers, and is refused where it has none."""
    results.write(quick[1], tmp_path)
    readme = tmp_path / "README.rst"
    readme.write_text("before\n\n.. benchmarks begin\nwhat was there\n.. benchmarks end\n\nafter\n")
    results.into_readme(tmp_path, readme)
    text = readme.read_text()
    assert text.startswith("before\n\n.. benchmarks begin\n")
    assert text.endswith(".. benchmarks end\n\nafter\n")
    assert "what was there" not in text  # short words may be part of a processor's name
    assert quick[1]["environment"]["python"] in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        results.into_readme(tmp_path, readme)


# -- what is behind the figures ------------------------------------------------------


def test_a_bill_is_calls_times_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a million requests is their counted calls times the assumed prices."""
    assumed = json.loads(cost.ASSUMPTIONS.read_text())
    assumed["traffic"] |= {
        cost.READ: 0.5,
        cost.COUNTER: 0.2,
        cost.LOGIN: 0.1,
        "share of reads that miss the cache": 0.1,
        "reads until a session of 14 days is due for a refresh": 5,
    }
    for what, dollars in ((READS, 3), (WRITES, 7), (DELETES, 1)):
        assumed["prices"][what] = {"dollars": dollars, "per": 1_000_000}
    assumed["prices"]["cache"] = {
        "dollars an hour": 3.6,
        "calls a second at full load": 2_000,
        "load": 0.5,
    }
    file = tmp_path / "assumptions.json"
    file.write_text(json.dumps(assumed))
    monkeypatch.setattr(cost, "ASSUMPTIONS", file)
    calls = {
        cost.READ: (0, 0, 1),
        cost.MISS: (1, 0, 2),
        cost.COUNTER: (0, 1, 3),
        cost.LOGIN: (0, 1, 1),
    }
    findings = Findings()
    for kind, counted in calls.items():
        for measure, count in zip((READS, WRITES, CACHE), counted, strict=True):
            findings.rounds[Key(kind, "ours", measure)] = [float(count)]
        findings.rounds[Key(kind, "ours", DELETES)] = [0.0]
    figures = {
        key.measure: value.median
        for key, value, _ in cost.report(findings).figures
        if key.case == "a million requests"
    }
    # Of 0.5 reads, 0.05 miss and 0.1 refresh; a refresh is a write as in a counter.
    assert figures[READS] == pytest.approx(0.05 * 3)
    assert figures[WRITES] == pytest.approx((0.2 + 0.1 + 0.1) * 7)
    assert figures[DELETES] == pytest.approx(0.1 * 1)
    assert figures[CACHE] == pytest.approx(0.35 * 1 + 0.05 * 2 + 0.3 * 3 + 0.1 * 1)


def test_a_delay_makes_round_trips_longer_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The delaying proxy hands on what it gets, whole and in order, and not before its time."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sent = os.urandom(300_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            left = len(sent)
            while left:  # the proxy's start is awaited by a connection that says nothing
                with listener.accept()[0] as connection:
                    while left and (chunk := connection.recv(1 << 16)):
                        connection.sendall(chunk)
                        left -= len(chunk)

        echoing = threading.Thread(target=echo, daemon=True)
        echoing.start()
        upstream = ":".join(map(str, listener.getsockname()))
        with delayed(upstream, 0.2) as address:
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                begin = time.perf_counter()
                connection.sendall(sent)
                first = connection.recv(1)
                took = time.perf_counter() - begin
                answer = first + b"".join(iter(lambda: connection.recv(1 << 16), b""))
        echoing.join(10)
    assert took >= 0.2
    assert answer == sent
