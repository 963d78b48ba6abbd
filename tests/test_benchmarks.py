"""The benchmarks run anywhere, and the bytes of a cookie, which no machine changes, are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

_PEERS = ("flask", "starlette", "django", "webob", "pyramid", "nacl", "secure_cookie")
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
