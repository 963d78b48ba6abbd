"""The example for Flask, served by gunicorn and walked as a visitor walks it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "flask"
COOKIE = "__Host-id"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where two workers of gunicorn serve the example, on a free port."""
    options = ["--bind", "127.0.0.1:0", "--workers", "2", "--worker-tmp-dir", str(tmp_path)]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, "--chdir", str(FOLDER), "app:app"],
        env={
            **os.environ,
            "SECRET_KEY": "only for tests, only for tests, 1",
            "SESSION_STORE_URL": f"sqlite:///{tmp_path}/sessions.sqlite3",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    with server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"Listening at: (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("gunicorn did not start:\n" + "".join(lines))
            yield found[1]
        finally:
            server.terminate()
            server.stderr.read()  # or a full pipe would keep it from ending


class Browser:
    """A visitor whose jar takes Secure cookies from loopback, as Chrome and Firefox do."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._jar = CookieJar(DefaultCookiePolicy(secure_protocols=("http", "https")))
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(self._jar))

    def open(self, path: str = "/", cookie: str = "", **form: str) -> str:
        """Open a page, or send it a form, and follow where it leads."""
        request = Request(self._address + path, urlencode(form).encode() if form else None)
        if cookie:
            request.add_header("Cookie", f"{COOKIE}={cookie}")
        with self._opener.open(request, timeout=30) as response:
            page: bytes = response.read()
        return page.decode()

    @property
    def cookie(self) -> str:
        """The token in the jar."""
        (cookie,) = self._jar
        assert cookie.name == COOKIE
        assert cookie.secure
        return str(cookie.value)


def visits(page: str) -> int:
    """The number that the page shows."""
    found = re.search(r"Visits: (\d+)", page)
    assert found is not None
    return int(found[1])


def test_the_example_for_flask(address: str) -> None:
    """The example counts, logs in under a new id and logs out, and an old cookie opens nothing."""
    browser = Browser(address)
    assert [visits(browser.open()) for _ in range(4)] == [1, 2, 3, 4]
    anonymous = browser.cookie

    page = browser.open("/login", name="Ada")
    assert visits(page) == 5
    assert "Welcome." in page
    assert "Ada" in page
    assert "Welcome." not in browser.open()
    logged_in = browser.cookie
    assert logged_in != anonymous

    page = browser.open("/logout", sure="yes")
    assert visits(page) == 1
    assert "Ada" not in page
    assert browser.cookie not in (anonymous, logged_in)

    assert "somebody" in browser.open("/login", name="")

    for old in (anonymous, logged_in):
        page = Browser(address).open(cookie=old)
        assert visits(page) == 1
        assert "Ada" not in page
