"""Applications behind a real server, and the examples among them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

Serve = Callable[[Path], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves ``app:app`` of a folder with uvicorn, and answers where: host and port."""
    environment = {
        **os.environ,
        "SECRET_KEY": "only for tests, only for tests, 1",
        "SESSION_STORE": "tieredsession.stores.SQLiteSessionStore",
        "SESSION_STORE_URL": f"sqlite:///{tmp_path}/sessions.sqlite3",
        "SESSION_COOKIE_SECURE": "false",
    }
    with ExitStack() as stack:

        def start(folder: Path) -> str:
            command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(folder)]
            server = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", "0", "--no-access-log"],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert server.stderr is not None
            # In reverse: told to stop, waited for, and then its pipe is closed.
            stack.enter_context(server.stderr)
            stack.callback(server.wait, 20)
            stack.callback(server.terminate)
            said = ""
            for line in server.stderr:
                said += line
                found = re.search(r"running on http://(127\.0\.0\.1:\d+)", line)
                if found is not None:
                    return found[1]
            raise AssertionError(said)

        yield start


@pytest.mark.parametrize("name", ["starlette", "fastapi"])
def test_an_example(serve: Serve, name: str) -> None:
    """The example counts, gives a new id at login, and after logout its old cookies are dead."""
    address = f"http://{serve(EXAMPLES / name)}"

    def replay(cookie: str | None) -> str:
        assert cookie is not None
        return httpx.get(f"{address}/", headers={"Cookie": f"id={cookie}"}).text

    with httpx.Client(base_url=address) as browser:
        assert browser.get("/").text == "visit 1, stranger\n"
        anonymous = browser.cookies.get("id")
        assert browser.get("/").text == "visit 2, stranger\n"
        assert browser.cookies.get("id") == anonymous
        assert replay(anonymous) == "visit 3, stranger\n"

        assert browser.post("/login/ann").text == "logged in\n"
        known = browser.cookies.get("id")
        assert known != anonymous
        assert browser.get("/").text == "visit 4, ann\n"
        assert replay(anonymous) == "visit 1, stranger\n"

        assert browser.post("/logout").text == "logged out\n"
        assert browser.cookies.get("id") is None
        assert replay(known) == "visit 1, stranger\n"
        assert browser.get("/").text == "visit 1, stranger\n"


SOCKET = """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from tieredsession.adapters.asgi import SessionMiddleware

async def read(request):
    return JSONResponse(dict(request.session))

async def socket(websocket):
    websocket.session["said"] = []
    await websocket.accept()
    async for text in websocket.iter_text():
        websocket.session["said"].append(text)
        if text != "unsaved":
            await websocket.session.save()
        await websocket.send_text("heard")

app = Starlette(
    routes=[Route("/", read), WebSocketRoute("/socket", socket)],
    middleware=[Middleware(SessionMiddleware)],
)
"""


def test_a_websocket_behind_a_server(serve: Serve, tmp_path: Path) -> None:
    """A websocket gets its cookie in the handshake, saves on the way, and at its end."""
    (tmp_path / "app.py").write_text(SOCKET)
    address = serve(tmp_path)

    def read() -> list[str]:
        answer = httpx.get(f"http://{address}/", headers={"Cookie": cookie})
        said: list[str] = answer.json()["said"]
        return said

    with connect(f"ws://{address}/socket", proxy=None) as socket:
        assert socket.response is not None
        cookie = socket.response.headers["Set-Cookie"].partition(";")[0]
        assert read() == []
        for text in ("one", "unsaved"):
            socket.send(text)
            assert socket.recv(timeout=10) == "heard"
            assert read() == ["one"]
    for _ in range(1000):  # the server hears of the end a moment later
        if read() != ["one"]:
            break
    assert read() == ["one", "unsaved"]
