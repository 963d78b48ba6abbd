"""The page that cron calls, through every front end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import flask
import pytest
from adapters.django_site import running
from django.core.management import call_command
from django.http import HttpResponseRedirect
from django.test import Client as DjangoClient
from django.test import override_settings
from django.urls import path
from pyramid.config import Configurator
from pyramid.security import Denied
from starlette.applications import Starlette
from werkzeug.test import Client

from tieredsession.adapters.asgi import SessionMiddleware
from tieredsession.adapters.django import make_manager, purge_view, use_manager
from tieredsession.adapters.flask import TieredSession
from tieredsession.cron import PurgeView
from tieredsession.events import Event, Purged, PurgeRefused
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

    def call(token: str = "", method: str = "GET", path: str = URL, cron: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if cron:
            headers["X-Appengine-Cron"] = cron
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


class Nobody:
    """A security policy of Pyramid by which nobody may do anything."""

    def identity(self, request: Any) -> None:
        return None

    def authenticated_userid(self, request: Any) -> None:
        return None

    def permits(self, request: Any, context: Any, permission: str) -> Denied:
        return Denied("nobody may")

    def remember(self, request: Any, userid: str, **options: Any) -> list[tuple[str, str]]:
        return []

    def forget(self, request: Any, **options: Any) -> list[tuple[str, str]]:
        return []


def _pyramid(**settings: Any) -> Call:
    config = Configurator(settings={**SETTINGS, **settings})
    config.set_default_csrf_options(require_csrf=True)
    config.set_security_policy(Nobody())
    config.set_default_permission("edit")
    config.include("tieredsession.adapters.pyramid")
    return _over_wsgi(config.make_wsgi_app())


def _asgi(**settings: Any) -> Call:
    app = Starlette()
    app.add_middleware(SessionMiddleware, settings={**SETTINGS, **settings})

    def call(token: str = "", method: str = "GET", path: str = URL, cron: str = "") -> Answer:
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        if cron:
            headers.append((b"x-appengine-cron", cron.encode()))
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


class LoginRequired:
    """Django's middleware of that name, for visitors of whom none is logged in."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self._get_response(request)

    def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> Any:
        return HttpResponseRedirect("/login") if getattr(view, "login_required", True) else None


_DJANGO = {
    **{name: value for name, value in SETTINGS.items() if name != "SECRET_KEY"},
    "ROOT_URLCONF": (path(URL[1:], purge_view),),
    "MIDDLEWARE": [
        "django.middleware.csrf.CsrfViewMiddleware",
        "adapters.test_purge_page.LoginRequired",
    ],
}


def _django(**settings: Any) -> Call:
    url = settings.get("SESSION_PURGE_URL", URL)
    options = {**_DJANGO, "ROOT_URLCONF": (path(url[1:], purge_view),) if url else ()}

    def call(token: str = "", method: str = "GET", path: str = URL, cron: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if cron:
            headers["X-Appengine-Cron"] = cron
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


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_an_observer_in_django(token: str) -> None:
    """The observers of the manager are told of the purge, and of strangers at it."""
    seen: list[Event] = []
    with running(**_DJANGO):
        use_manager(make_manager(observers=[seen.append]))
        try:
            for _ in range(2):
                DjangoClient().get(URL, headers={"Authorization": f"Bearer {token}"})
            if token == TOKEN:
                call_command("clearsessions")
        finally:
            use_manager(None)
    kinds = [type(event) for event in seen]
    assert kinds == ([Purged] * 3 if token == TOKEN else [PurgeRefused] * 2)


def test_a_stranger_in_django_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page in Django reads the settings once, and again when a test has changed one."""
    made: list[object] = []

    class View(PurgeView):
        def __init__(self, *given: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*given, **options)

    monkeypatch.setattr("tieredsession.adapters.django.PurgeView", View)
    with running(**_DJANGO):
        for _ in range(3):
            assert DjangoClient().get(URL).status_code == 403
        assert len(made) == 1
        with override_settings(SESSION_PURGE_TOKEN=TOKEN[::-1]):
            headers = {"Authorization": f"Bearer {TOKEN[::-1]}"}
            assert DjangoClient().get(URL, headers=headers).status_code == 200


@MAKERS
def test_cron_of_app_engine(make: Callable[..., Call], monkeypatch: pytest.MonkeyPatch) -> None:
    """App Engine's cron may call where App Engine runs, and nowhere else."""
    assert make()(cron="true").status == 403
    monkeypatch.setenv("GAE_ENV", "standard")
    call = make(SESSION_PURGE_GRACE=0)  # another setting: what was made before is not used again
    assert call(cron="true").status == 200
    for forged in ("false", "true,true", "true, true", "1"):
        assert call(cron=forged).status == 403


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
