"""The example for App Engine, on the Datastore emulator."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from werkzeug.test import Client

if TYPE_CHECKING:
    from tieredsession import SessionMiddleware

MAIN = Path(__file__).parents[2] / "examples" / "app_engine" / "main.py"
PURGE = "/sessions/purge_old_sessions"


@pytest.fixture
def app(emulator: object, project: str, monkeypatch: pytest.MonkeyPatch) -> SessionMiddleware:
    """The application of the example, with the environment that App Engine gives it."""
    monkeypatch.setenv("SECRET_KEY", "only for tests, only for tests, 1")
    monkeypatch.setenv("SESSION_STORE", "tieredsession.stores.GAESessionStore")
    monkeypatch.setenv("SESSION_STORE_URL", "datastore:///?deadline=20")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", project)
    monkeypatch.setenv("GAE_ENV", "standard")
    made: SessionMiddleware = runpy.run_path(str(MAIN))["app"]
    return made


def test_it_counts_and_is_purged(app: SessionMiddleware) -> None:
    """It counts visits in Datastore, lets its cron purge, and nobody else."""
    client = Client(app)
    counts = [client.get("/", base_url="https://localhost").text for _ in range(3)]
    assert counts == ["Visit 1.\n", "Visit 2.\n", "Visit 3.\n"]
    assert client.get(PURGE).status_code == 403
    report = client.get(PURGE, headers={"X-Appengine-Cron": "true"}).get_json()
    assert (report["completed"], report["deleted"], report["failed"]) == (True, 0, 0)
    assert client.get("/", base_url="https://localhost").text == "Visit 4.\n"
