"""The README's own lines, run as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.rst"
ENVIRONMENT = {**os.environ, "SECRET_KEY": "only for tests, only for tests, 1"}


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    """The first Python block of the README, as a file, on any free port."""
    block = re.search(r"\.\. code-block:: python\n\n(.*?)\n(?=\S)", README.read_text(), re.DOTALL)
    assert block is not None
    path = tmp_path / "app.py"
    path.write_text(textwrap.dedent(block[1]).replace(" 8000", " 0"))
    return path


@pytest.fixture
def laptop(app_file: Path) -> Iterator[int]:
    """``python app.py``, and the port it listens on."""
    assert 'run_simple("127.0.0.1", 0, ' in app_file.read_text()
    server = subprocess.Popen(
        [sys.executable, app_file.name],
        cwd=app_file.parent,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    with server, server.stderr:
        said = ""
        for line in server.stderr:
            said += line
            if "Running on" in line:
                break
        found = re.search(r"Running on http://127\.0\.0\.1:(\d+)", said)
        assert found is not None, said
        yield int(found[1])
        server.terminate()


def test_the_laptop_counts_over_plain_http(laptop: int) -> None:
    """The README's lines count in a browser over plain http at once."""
    cookie = ""
    for number in (1, 2, 3):
        connection = HTTPConnection("127.0.0.1", laptop, timeout=60)
        connection.request("GET", "/", headers={"Cookie": cookie})
        response = connection.getresponse()
        assert response.read().decode() == f"visit {number}\n"
        line = response.headers["Set-Cookie"]
        assert "Secure" not in line
        cookie = line.partition(";")[0]
        connection.close()


def test_deployed_its_cookies_are_safe(app_file: Path) -> None:
    """The same file, deployed as app:app, sends a Secure __Host- cookie whatever the scheme."""
    script = (
        "from werkzeug.test import Client; from app import app;"
        "print(Client(app).get('/', base_url='http://inside').headers['Set-Cookie'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=app_file.parent,
        env={**ENVIRONMENT, "PYTHONPATH": str(app_file.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    line = done.stdout.strip()
    assert line.startswith("__Host-id=")
    assert line.endswith("; Path=/; Secure; HttpOnly; SameSite=Lax")
