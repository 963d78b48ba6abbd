"""The example of Django, served by gunicorn and walked over HTTP with a cookie jar."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "django"
COOKIE = "sessionid"
PATIENCE = 60  # seconds; a busy machine is no failure


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the example is served: by the commands of its docstring, on a free port."""
    text = (EXAMPLE / "app.py").read_text("utf-8")
    exported = dict(re.findall(r"^    export (\w+)=(.+)$", text, re.MULTILINE))
    exported["SECRET_KEY"] = "only for tests, only for tests, 1"
    assert "    gunicorn --pythonpath examples/django app:app\n" in text
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2"]
    server = subprocess.Popen(
        [*command, "--pythonpath", str(EXAMPLE), "app:app"],
        cwd=tmp_path,
        env={**os.environ, **exported, "HOME": str(tmp_path)},
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


@pytest.fixture
def browser(address: str) -> Iterator[httpx.Client]:
    """A browser with an empty cookie jar."""
    with httpx.Client(base_url=address, follow_redirects=True, timeout=PATIENCE) as client:
        yield client


def press(browser: httpx.Client, button: str, page: str, name: str = "") -> str:
    """Press the button that leads to the path *button* on *page*; the page that comes of it."""
    assert f'formaction="{button}"' in page
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    response = browser.post(button, data={"csrfmiddlewaretoken": token, "name": name})
    assert [step.status_code for step in response.history] == [302]
    return response.raise_for_status().text


def test_the_walk(address: str, browser: httpx.Client) -> None:
    """Visits are counted, a login has a new id, and an old cookie gets nothing."""

    def replay(cookie: str) -> str:
        headers = {"Cookie": f"{COOKIE}={cookie}"}
        return httpx.get(address, headers=headers, timeout=PATIENCE).text

    assert "Visit 1 of nobody." in browser.get("/").text
    page = browser.get("/").text
    assert "Visit 2 of nobody." in page
    anonymous = browser.cookies[COOKIE]
    page = press(browser, "/login", page, "<Ada>")
    assert "Visit 3 of &lt;Ada&gt;." in page
    known = browser.cookies[COOKIE]
    assert known != anonymous
    assert "Visit 1 of nobody." in replay(anonymous)
    assert "Visit 4 of &lt;Ada&gt;." in replay(known)
    page = press(browser, "/logout", browser.get("/").text)
    assert "Visit 1 of nobody." in page
    assert browser.cookies[COOKIE] not in (anonymous, known)
    assert "Visit 1 of nobody." in replay(known)


def test_a_form_from_elsewhere(browser: httpx.Client) -> None:
    """A form without the token of this visitor does nothing."""
    browser.get("/")
    for token in ("", "x" * 64):
        data = {"csrfmiddlewaretoken": token, "name": "Eve"}
        assert browser.post("/login", data=data).status_code == 403
    assert "Visit 2 of nobody." in browser.get("/").text
