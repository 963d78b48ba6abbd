"""The examples of WSGI frameworks, served by gunicorn and walked over HTTP with a cookie jar."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
README = EXAMPLES / "README.rst"
PATIENCE = 60  # seconds; a busy machine is no failure


class Example(NamedTuple):
    """A folder of the examples, and what its framework calls and answers."""

    name: str
    cookie: str = "id"
    token: str = "csrf_token"
    redirect: int = 303
    refusal: int = 400


def settings() -> dict[str, str]:
    """What the README of the examples exports, with a key that needs no command."""
    found = dict(re.findall(r"^    export (\w+)=(.+)$", README.read_text("utf-8"), re.MULTILINE))
    return {**found, "SECRET_KEY": "only for tests, only for tests, 1"}


@contextmanager
def served(name: str, folder: Path) -> Iterator[str]:
    """The example *name* on a free port, its files in *folder*: its address."""
    module = f"gunicorn --pythonpath examples/{name} app:app"
    assert f"``{module}``" in README.read_text("utf-8")
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2"]
    server = subprocess.Popen(
        [*command, "--pythonpath", str(EXAMPLES / name), "app:app"],
        cwd=folder,
        env={**os.environ, **settings(), "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    watch = threading.Timer(PATIENCE, server.kill)  # which ends the lines below
    watch.start()
    with server, server.stderr:
        try:
            log = ""
            for line in server.stderr:
                log += line
                if found := re.search(r"Listening at: (http://127\.0\.0\.1:\d+)", line):
                    yield found[1]
                    return
            raise AssertionError(log)
        finally:
            watch.cancel()
            server.terminate()


@pytest.fixture(
    params=[
        Example("wsgi"),
        Example("werkzeug"),
        Example("pyramid"),
        Example("django", "sessionid", "csrfmiddlewaretoken", 302, 403),
    ],
    ids=lambda example: example.name,
)
def example(request: pytest.FixtureRequest) -> Example:
    """Each example in turn."""
    found: Example = request.param
    return found


@pytest.fixture
def address(example: Example, tmp_path: Path) -> Iterator[str]:
    """Where it is served."""
    with served(example.name, tmp_path) as url:
        yield url


@pytest.fixture
def browser(address: str) -> Iterator[httpx.Client]:
    """A browser with an empty cookie jar."""
    with httpx.Client(base_url=address, follow_redirects=True, timeout=PATIENCE) as client:
        yield client


def test_the_walk(example: Example, address: str, browser: httpx.Client) -> None:
    """Visits are counted, a login has a new id, and an old cookie gets nothing."""

    def press(path: str, page: str, name: str = "") -> str:
        assert f'formaction="{path}"' in page
        (token,) = re.findall(rf'name="{example.token}" value="([^"]+)"', page)
        response = browser.post(path, data={example.token: token, "name": name})
        assert [step.status_code for step in response.history] == [example.redirect]
        return response.raise_for_status().text

    def replay(cookie: str) -> str:
        headers = {"Cookie": f"{example.cookie}={cookie}"}
        return httpx.get(address, headers=headers, timeout=PATIENCE).text

    assert "Visit 1 of nobody." in browser.get("/").text
    page = browser.get("/").text
    assert "Visit 2 of nobody." in page
    anonymous = browser.cookies[example.cookie]
    page = press("/login", page, "<Ada>")
    assert "Visit 3 of &lt;Ada&gt;." in page
    known = browser.cookies[example.cookie]
    assert known != anonymous
    assert "Visit 1 of nobody." in replay(anonymous)
    assert "Visit 4 of &lt;Ada&gt;." in replay(known)
    page = press("/logout", browser.get("/").text)
    assert "Visit 1 of nobody." in page
    assert browser.cookies[example.cookie] not in (anonymous, known)
    assert "Visit 1 of nobody." in replay(known)


def test_a_form_from_elsewhere(example: Example, browser: httpx.Client) -> None:
    """A form without the token of this visitor does nothing."""
    browser.get("/")
    for token in ("", "x" * 22, "x" * 64):
        answer = browser.post("/login", data={example.token: token, "name": "Eve"})
        assert answer.status_code == example.refusal
    assert "Visit 2 of nobody." in browser.get("/").text


def test_the_readme_lists_every_example() -> None:
    """Each folder of examples is in their README."""
    text = README.read_text("utf-8")
    folders = [path.name for path in EXAMPLES.iterdir() if path.is_dir()]
    for name in folders:
        if not name.startswith((".", "__")):
            assert f"``{name}/" in text, name
