"""One small site in each framework, with each kind of session and with none.

Every site answers the same paths with the same text, so that its cost beyond the site
without a session is what the session costs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cookies import SECRET, why
from benchmarks.payloads import TYPICAL, without_datetimes
from tieredsession import Session, SessionMiddleware
from tieredsession.wsgi import SESSION_KEY

USER = "48213"
PATHS = ("/untouched", "/read", "/count", "/login", "/fill")


class Answer(NamedTuple):
    """What a client sees. *cookie* is what it sends from then on, ``None`` if nothing new."""

    body: bytes
    cookie: str | None


Request = Callable[[str, str | None], Answer]
"""``request(path, cookie)``: one whole request, in process, to its last byte."""


def act(session: Any, path: str) -> str:
    """What the view of *path* does, on a mapping that is a session; ``None`` is none."""
    if session is None or path == "/untouched":
        return "0"
    if path == "/read":
        return str(session.get("count", 0))
    if path == "/count":
        count = session["count"] = session.get("count", 0) + 1
        return str(count)
    if path == "/login":
        if isinstance(session, Session):
            session.bind(USER)
        else:
            session.clear()
            session["user"] = USER
        session["name"] = "Ada"
        return "Ada"
    session["count"] = 1
    for key, value in without_datetimes(TYPICAL).items():
        session[key] = value
    return "filled"


# -- WSGI -------------------------------------------------------------------------------

_ENVIRON: dict[str, Any] = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "443",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost",
    "HTTP_ACCEPT": "*/*",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "https",
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


def over_wsgi(app: Any) -> Request:
    """Call *app* as a server does: a fresh environ, every chunk, ``close``."""

    def request(path: str, cookie: str | None) -> Answer:
        environ = {**_ENVIRON, "PATH_INFO": path}
        if cookie is not None:
            environ["HTTP_COOKIE"] = cookie
        answer: list[Any] = []

        def start_response(status: str, headers: list[Any], exc_info: Any = None) -> None:
            answer[:] = (status, headers)

        body = app(environ, start_response)
        try:
            text = b"".join(body)
        finally:
            if hasattr(body, "close"):
                body.close()
        status, headers = answer
        if not status.startswith("200"):
            raise AssertionError(f"{path}: {status}")
        return Answer(text, _cookie(headers))

    return request


def _cookie(headers: list[Any]) -> str | None:
    for name, value in headers:
        if name.lower() == "set-cookie":
            pair: str = value.partition(";")[0]
            return pair
    return None


def plain(environ: Any, start_response: Any) -> list[bytes]:
    """The least that a WSGI application can do."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1")])
    return [b"0"]


class Nothing:
    """A WSGI middleware that does nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


def werkzeug_app(session_of: Callable[[Any], Any]) -> Any:
    """A Werkzeug application without routing; *session_of* a request answers its session."""
    wrappers = import_module("werkzeug.wrappers")

    def view(request: Any) -> Any:
        return wrappers.Response(act(session_of(request), request.path))

    return wrappers.Request.application(view)


def flask_app(*, secret: str | None, ours: bool = False) -> Any:
    """Without a *secret* Flask has no session; *ours* or its own."""
    flask = import_module("flask")
    app = flask.Flask("benchmark")
    app.secret_key = secret
    if ours:
        import_module("tieredsession.adapters.flask").TieredSession(app)

    def view() -> str:
        return act(flask.session if secret else None, flask.request.path)

    for path in PATHS:
        app.add_url_rule(path, path, view)
    return app


# -- ASGI -------------------------------------------------------------------------------


def over_asgi(app: Any) -> Request:
    """Call *app* as a server does. Nothing in it waits, so no event loop is part of the cost."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    def request(path: str, cookie: str | None) -> Answer:
        headers = [(b"host", b"localhost"), (b"accept", b"*/*")]
        if cookie is not None:
            headers.append((b"cookie", cookie.encode("latin-1")))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50000),
            "server": ("localhost", 443),
        }
        start: dict[str, Any] = {}
        chunks: list[bytes] = []

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                chunks.append(message.get("body", b""))

        running = app(scope, receive, send)
        try:
            running.send(None)
        except StopIteration:
            pass
        else:
            raise AssertionError(f"{path}: the application waits for something")
        if start["status"] != 200:
            raise AssertionError(f"{path}: {start['status']}")
        pairs = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]
        ]
        return Answer(b"".join(chunks), _cookie(pairs))

    return request


def starlette_app(*, secret: str | None) -> Any:
    applications = import_module("starlette.applications")
    responses = import_module("starlette.responses")
    routing = import_module("starlette.routing")

    async def view(request: Any) -> Any:
        session = request.session if secret else None
        return responses.PlainTextResponse(act(session, request.scope["path"]))

    app = applications.Starlette(routes=[routing.Route(path, view) for path in PATHS])
    if secret:
        middleware = import_module("starlette.middleware.sessions").SessionMiddleware
        app.add_middleware(middleware, secret_key=secret, https_only=True)
    return app


# -- the sites --------------------------------------------------------------------------


def ours(
    app: Any = None, store: str = "SecureCookieSessionStore", **settings: Any
) -> Callable[[Path], Request]:
    """*app*, or a Werkzeug one, under our middleware with its default settings but these."""

    def make(folder: Path) -> Request:
        inner = app or werkzeug_app(lambda request: request.environ[SESSION_KEY])
        url = settings.get("SESSION_STORE_URL")
        more = {} if url is None else {"SESSION_STORE_URL": url.format(folder=folder)}
        named = {"SECRET_KEY": SECRET, "SESSION_STORE": f"tieredsession.stores.{store}"}
        return over_wsgi(SessionMiddleware(inner, {**named, **settings, **more}))

    return make


class Site(NamedTuple):
    """*make* gets a folder for files; *floor* names the same site without a session."""

    make: Callable[[Path], Request]
    floor: str | None = None


_NOTHING = "WSGI, middleware that does nothing"

SITES: dict[str, Site] = {
    "WSGI": Site(lambda _: over_wsgi(plain)),
    _NOTHING: Site(lambda _: over_wsgi(Nothing(plain)), "WSGI"),
    "WSGI, ours": Site(ours(plain), _NOTHING),
    "Werkzeug": Site(lambda _: over_wsgi(werkzeug_app(lambda request: None))),
    "Werkzeug, ours, cookie": Site(ours(), "Werkzeug"),
    "Werkzeug, ours, cookie, encrypted": Site(ours(SESSION_COOKIE_ENCRYPT=True), "Werkzeug"),
    "Werkzeug, ours, memory": Site(ours(store="MemorySessionStore"), "Werkzeug"),
    "Werkzeug, ours, SQLite": Site(
        ours(store="SQLiteSessionStore", SESSION_STORE_URL="sqlite:///{folder}/full.sqlite3"),
        "Werkzeug",
    ),
    "Werkzeug, ours, SQLite, normal": Site(
        ours(
            store="SQLiteSessionStore",
            SESSION_STORE_URL="sqlite:///{folder}/normal.sqlite3?synchronous=normal",
        ),
        "Werkzeug",
    ),
    "Flask": Site(lambda _: over_wsgi(flask_app(secret=None))),
    "Flask, its session": Site(lambda _: over_wsgi(flask_app(secret=SECRET)), "Flask"),
    "Flask, ours, cookie": Site(lambda _: over_wsgi(flask_app(secret=SECRET, ours=True)), "Flask"),
    "Starlette": Site(lambda _: over_asgi(starlette_app(secret=None))),
    "Starlette, its session": Site(lambda _: over_asgi(starlette_app(secret=SECRET)), "Starlette"),
}
"""SQLite syncs each commit to the disk, unless it is told that ``normal`` will do."""


def present(folder: Path, skipped: dict[str, str]) -> dict[str, Request]:
    """Those of :data:`SITES` that work here; the others go into *skipped* with the reason."""
    requests: dict[str, Request] = {}
    for name, site in SITES.items():
        try:
            requests[name] = site.make(folder)
        except ImportError as error:
            skipped[name] = why(error)
    return requests
