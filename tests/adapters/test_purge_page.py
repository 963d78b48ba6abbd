"""The page that cron calls, through every front end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import flask
import pytest
from adapters.django_site import running
from django.test import Client as DjangoClient
from django.urls import path
from pyramid.config import Configurator
from starlette.applications import Starlette
from werkzeug.test import Client

from tieredsession.adapters.asgi import SessionMiddleware
from tieredsession.adapters.django import purge_view
from tieredsession.adapters.flask import TieredSession
from tieredsession.testing import FakeClock

SECRET = "a long enough text, for tests alone: 0123456789"
TOKEN = "another long enough text, for the tests of the purge"
URL = "/sessions/purge_old_sessions"
SETTINGS = {
    "SECRET_KEY": SECRET,
    "SESSION_STORE": "tieredsession.stores.MemorySessionStore",
    "SESSION_PURGE_TOKEN": TOKEN,
}


class Answer(NamedTuple):
    status: int
    content_type: str
    json: Any


Call = Callable[..., Answer]


def _over_wsgi(app: Any) -> Call:
    client = Client(app)

    def call(token: str = "", method: str = "GET", path: str = URL) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = client.open(path, method=method, headers=headers)
        return Answer(response.status_code, response.mimetype or "", response.get_json(silent=True))

    return call


def _flask(**settings: Any) -> Call:
    app = flask.Flask("purge")
    app.config.update(SETTINGS, **settings)
    TieredSession(app)

    def refuse() -> None:
        flask.abort(401)

    app.before_request(refuse)
    return _over_wsgi(app)


def _pyramid(**settings: Any) -> Call:
    config = Configurator(settings={**SETTINGS, **settings})
    config.set_default_csrf_options(require_csrf=True)
    config.include("tieredsession.adapters.pyramid")
    return _over_wsgi(config.make_wsgi_app())


def _asgi(**settings: Any) -> Call:
    app = Starlette()
    app.add_middleware(SessionMiddleware, settings={**SETTINGS, **settings})

    def call(token: str = "", method: str = "GET", path: str = URL) -> Answer:
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        start, *bodies = sent
        kind = dict(start["headers"]).get(b"content-type", b"").decode()
        text = b"".join(body.get("body", b"") for body in bodies)
        return Answer(start["status"], kind, json.loads(text) if "json" in kind else None)

    return call


def _django(**settings: Any) -> Call:
    url = settings.get("SESSION_PURGE_URL", URL)
    pages = () if not url else (path(url[1:], purge_view),)
    options = {
        **{name: value for name, value in SETTINGS.items() if name != "SECRET_KEY"},
        "ROOT_URLCONF": pages,
        "MIDDLEWARE": ["django.middleware.csrf.CsrfViewMiddleware"],
    }

    def call(token: str = "", method: str = "GET", path: str = URL) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with running(**options, **settings):
            client = DjangoClient(enforce_csrf_checks=True)
            response = client.generic(method, path, headers=headers)
        kind = response.headers["Content-Type"]
        return Answer(response.status_code, kind, response.json() if "json" in kind else None)

    return call


MAKERS = pytest.mark.parametrize(
    "make", [_flask, _pyramid, _asgi, _django], ids=["flask", "pyramid", "asgi", "django"]
)


@MAKERS
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_may_call(make: Callable[..., Call], method: str) -> None:
    """Who may call is answered with the report, whatever else guards the application's pages."""
    answer = make()(TOKEN, method)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json["completed"] is True


@MAKERS
def test_a_stranger(make: Callable[..., Call]) -> None:
    """Anybody else gets 403 and learns nothing."""
    for token in ("", "wrong"):
        answer = make()(token)
        assert (answer.status, answer.json) == (403, {"error": "forbidden"})


@MAKERS
def test_another_method(make: Callable[..., Call]) -> None:
    """Nothing but GET and POST runs the purge."""
    assert make()(TOKEN, "DELETE").status == 405


@MAKERS
def test_another_path(make: Callable[..., Call]) -> None:
    """The path is the one of the setting."""
    call = make(SESSION_PURGE_URL="/cron")
    assert call(TOKEN, path="/cron").status == 200
    assert call(TOKEN).status in (401, 404)


@MAKERS
def test_no_path(make: Callable[..., Call]) -> None:
    """With an empty path there is no page."""
    assert make(SESSION_PURGE_URL="")(TOKEN).status in (401, 404)


def test_the_time_of_the_purge(clock: FakeClock) -> None:
    """The purge of a Flask application goes by the clock that the application was given."""
    app = flask.Flask("purge")
    app.config.update(SETTINGS)
    TieredSession(app, clock=clock)
    client = app.test_client()

    @app.route("/")
    def visit() -> str:
        flask.session["a"] = 1
        return "page"

    client.get("/")
    clock.advance(100 * 24 * 3600)
    assert _over_wsgi(app)(TOKEN).json["deleted"] == 1
