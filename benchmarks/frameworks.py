"""The same small application in each framework, and how a server calls it in process."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.base_events import _run_until_complete_cb  # type: ignore[attr-defined]  # private
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import BytesIO, StringIO
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.cookies import SECRET, configure_django
from benchmarks.payloads import LARGE, TYPICAL, without_datetimes
from benchmarks.servers import EMULATOR

USER = "48213"
PATHS = ("/untouched", "/read", "/count", "/login", "/fill", "/fill-large")


class Answer(NamedTuple):
    """What a client sees. *cookie* is what it sends from then on, ``None`` if nothing new."""

    body: bytes
    cookie: str | None


Request = Callable[[str, str | None], Answer]
"""``request(path, cookie)``: one whole request, in process, to its last byte."""


def act(session: Any, path: str, renew: Callable[[Any], object] = dict.clear) -> str:
    """What the view of *path* does, on a mapping that is a session; ``None`` is none.

    *renew* is how that session gets a new id at a login, where it has one.
    """
    if session is None or path == "/untouched":
        return "0"
    if path == "/read":
        return str(session.get("count", 0))
    if path == "/count":
        count = session["count"] = session.get("count", 0) + 1
        return str(count)
    if path == "/login":
        bind = getattr(session, "bind", None)
        if bind is not None:
            bind(USER)
        else:
            renew(session)
            session["user"] = USER
        session["name"] = "Ada"
        return "Ada"
    session["count"] = 1
    for key, value in _filling(path.removeprefix("/fill")).items():
        session[key] = value
    return "filled"


def _filling(which: str) -> dict[str, Any]:
    if which[1:].isdigit():  # so many bytes of what no compressor shortens much
        return {"text": os.urandom(int(which[1:]) // 2).hex()}
    return without_datetimes(LARGE if which == "-large" else TYPICAL)


def use_emulator(address: str) -> None:
    """Let the clients of Datastore that are made from now on go to *address*."""
    os.environ[EMULATOR] = address


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


_EMPTY = BytesIO()  # a request's body without a byte
_ERRORS = StringIO()


def over_wsgi(app: Any) -> Request:
    """Call *app* as a server does: a fresh environ, every chunk, ``close``."""

    def request(path: str, cookie: str | None) -> Answer:
        environ = {**_ENVIRON, "PATH_INFO": path, "wsgi.input": _EMPTY, "wsgi.errors": _ERRORS}
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


# -- Werkzeug ---------------------------------------------------------------------------


def werkzeug_app(
    session_of: Callable[[Any], Any] = lambda request: None,
    renew: Callable[[Any], object] = dict.clear,
    after: Callable[[Any], object] | None = None,
) -> Any:
    """A Werkzeug application without routing; *session_of* a request answers its session.

    *after* a view that changed something, a session may want to be told so.
    """
    wrappers = import_module("werkzeug.wrappers")

    def view(request: Any) -> Any:
        session = session_of(request)
        text = act(session, request.path, renew)
        if after is not None and request.path not in ("/untouched", "/read"):
            after(session)
        return wrappers.Response(text)

    return wrappers.Request.application(view)


def beaker_site(kind: str) -> Any:
    """Beaker's middleware, with data as JSON; a view that changes something saves."""

    def make(where: Any) -> Request:
        middleware = import_module("beaker.middleware").SessionMiddleware
        options: dict[str, Any] = {"session.secure": True, "session.httponly": True}
        if kind == "cookie":
            options.update(type="cookie", validate_key=SECRET, data_serializer="json")
        elif kind == "memcached":
            import_module("memcache")
            folder = str(where.folder / "beaker")
            url = where.servers["memcached"]
            options.update(type="ext:memcached", url=url, lock_dir=folder, secret=SECRET)
            options.update(memcache_module="memcache")
        else:
            import_module("redis")
            options.update(type="ext:redis", url=f"redis://{where.servers['redis']}", secret=SECRET)
        named = {f"session.{name.removeprefix('session.')}": v for name, v in options.items()}
        app = werkzeug_app(
            lambda request: request.environ["beaker.session"],
            lambda session: session.invalidate(),
            lambda session: session.save(),
        )
        return over_wsgi(middleware(app, named))

    return make


# -- Flask ------------------------------------------------------------------------------


def flask_app(
    *, secret: str | None, prepare: Callable[[Any], object] | None = None, session: bool = False
) -> Any:
    """Without a *secret* Flask has no session, unless *prepare* gives the application one."""
    flask = import_module("flask")
    app = flask.Flask("benchmark")
    app.secret_key = secret
    app.config["SESSION_COOKIE_SECURE"] = True
    if prepare is not None:
        prepare(app)
    has_session = session or secret is not None

    def renew(session: Any) -> None:
        regenerate = getattr(app.session_interface, "regenerate", None)
        session.clear()
        if regenerate is not None:
            regenerate(session)

    def view() -> str:
        return act(flask.session if has_session else None, flask.request.path, renew)

    for path in PATHS:
        app.add_url_rule(path, path, view)
    return app


def flask_session_site(cache: str) -> Any:
    """Flask-Session with its defaults."""

    def make(where: Any) -> Request:
        session = import_module("flask_session").Session
        address = where.servers[cache]

        def prepare(app: Any) -> None:
            app.config["SESSION_TYPE"] = cache
            if cache == "redis":
                redis = import_module("redis")
                app.config["SESSION_REDIS"] = redis.Redis.from_url(f"redis://{address}")
            else:
                pymemcache = import_module("pymemcache.client.base")
                app.config["SESSION_MEMCACHED"] = pymemcache.PooledClient(
                    address, no_delay=True, timeout=where.timeout, connect_timeout=where.timeout
                )
            session(app)

        return over_wsgi(flask_app(secret=SECRET, prepare=prepare))

    return make


# -- ASGI -------------------------------------------------------------------------------

_loop: asyncio.AbstractEventLoop | None = None
_server: asyncio.Task[None] | None = None


async def _for_ever() -> None:
    await asyncio.Event().wait()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, with a task that lives as long as a server's own would.

    Thread pools of anyio hang on that task; without it each request would make its own.
    """
    global _loop, _server
    if _loop is None:
        _loop = asyncio.new_event_loop()
        asyncio.set_event_loop(_loop)
        _server = _loop.create_task(_for_ever())
        _server.add_done_callback(_run_until_complete_cb)
    return _loop


def stop_event_loop() -> None:
    """End that task, and with it the threads that hang on it: a process waits for them."""
    global _loop, _server
    if _loop is not None and _server is not None:
        _server.cancel()
        with suppress(asyncio.CancelledError):
            _loop.run_until_complete(_server)
        _loop.close()
        _loop = _server = None


def over_asgi(app: Any) -> Request:
    """Call *app* as a server does: each request is a task of the one event loop."""
    loop = event_loop()

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

        task = loop.create_task(app(scope, receive, send))
        task.add_done_callback(lambda _: loop.stop())
        loop.run_forever()
        task.result()
        if start["status"] != 200:
            raise AssertionError(f"{path}: {start['status']}")
        pairs = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]
        ]
        return Answer(b"".join(chunks), _cookie(pairs))

    return request


def starlette_app(
    *,
    secret: str | None = None,
    session_of: Callable[[Any], Any] | None = None,
    before: Callable[[Any], Any] | None = None,
    renew: Callable[[Any], object] | None = None,
) -> Any:
    """*before* is awaited with the request by views that use the session."""
    applications = import_module("starlette.applications")
    responses = import_module("starlette.responses")
    routing = import_module("starlette.routing")
    if secret:
        session_of = attrgetter("session")

    async def view(request: Any) -> Any:
        path = request.scope["path"]
        if before is not None and path != "/untouched":
            await before(request)
        session = None if session_of is None or path == "/untouched" else session_of(request)
        again = dict.clear if renew is None else lambda _: renew(request)
        return responses.PlainTextResponse(act(session, path, again))

    app = applications.Starlette(routes=[routing.Route(path, view) for path in PATHS])
    if secret:
        middleware = import_module("starlette.middleware.sessions").SessionMiddleware
        app.add_middleware(middleware, secret_key=secret, https_only=True)
    return app


def starsessions_site(kind: str) -> Any:
    """starsessions, loaded by the views that use it."""

    def make(where: Any) -> Request:
        stars = import_module("starsessions")
        if kind == "cookie":
            store = stars.CookieStore(secret_key=SECRET)
        else:
            redis = import_module("redis.asyncio")
            connection = redis.Redis.from_url(f"redis://{where.servers['redis']}")
            store = import_module("starsessions.stores.redis").RedisStore(connection=connection)

        def renew(request: Any) -> None:
            request.session.clear()
            stars.regenerate_session_id(request)

        app = starlette_app(
            session_of=lambda request: request.session, before=stars.load_session, renew=renew
        )
        app.add_middleware(
            stars.SessionMiddleware, store=store, lifetime=14 * 24 * 3600, cookie_https_only=True
        )
        return over_asgi(app)

    return make


# -- Django -----------------------------------------------------------------------------


def django_site(engine: str | None, cache: str | None = None) -> Any:
    """Django with one of its session engines; ``None`` is Django without sessions.

    Connections to the database stay open, SQLite writes ahead and does not wait for the disk:
    the best that its settings allow.
    """

    def make(where: Any) -> Request:
        import_module("django")
        settings = configure_django()
        if engine is not None:
            settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
        if cache is not None:
            settings.SESSION_ENGINE = _django_engine(engine or "", cache, where)
        if engine in ("db", "cached_db"):
            _django_database(where.folder / "django.sqlite3")
        return over_wsgi(django_handler(sessions=engine is not None))

    return make


def django_handler(*, sessions: bool = True) -> Any:
    """Django as a WSGI application, with its middleware for sessions, or with none."""
    middleware = "django.contrib.sessions.middleware.SessionMiddleware"
    configure_django().MIDDLEWARE = [middleware] if sessions else []
    return import_module("django.core.handlers.wsgi").WSGIHandler()


def _django_engine(engine: str, cache: str, where: Any) -> str:
    """A module with Django's *engine* on a cache of its own: its setting names but one."""
    django_cache = import_module("django.core.cache")
    address = where.servers[cache]
    if cache == "redis":
        import_module("redis")
        named: dict[str, Any] = {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"redis://{address}",
        }
    else:
        import_module("pylibmc")  # the others connect anew for each request there
        milliseconds = int(where.timeout * 1000)
        behaviors = dict.fromkeys(("connect_timeout", "_poll_timeout"), milliseconds)
        behaviors |= dict.fromkeys(("send_timeout", "receive_timeout"), milliseconds * 1000)
        named = {
            "BACKEND": "django.core.cache.backends.memcached.PyLibMCCache",
            "LOCATION": address,
            "OPTIONS": {"behaviors": behaviors},
        }
    alias = f"{cache}-{address}"
    django_cache.caches.settings[alias] = named
    base = import_module(f"django.contrib.sessions.backends.{engine}").SessionStore

    class SessionStore(base):  # type: ignore[misc,valid-type]  # Django has no types here
        def __init__(self, session_key: str | None = None) -> None:
            super().__init__(session_key)
            self._cache = django_cache.caches[alias]

    name = f"benchmarks_django_{engine}_{alias}".replace(":", "_").replace(".", "_")
    module = sys.modules[name] = ModuleType(name)
    vars(module)["SessionStore"] = SessionStore
    return name


def _django_database(file: Path) -> None:
    connections = import_module("django.db").connections
    connection = connections["default"]
    if connection.settings_dict["NAME"] != str(file):
        connection.close()
        # The wrappers of other threads are made from the same dict.
        connections.settings["default"].update(
            NAME=str(file),
            CONN_MAX_AGE=None,
            OPTIONS={"init_command": "PRAGMA journal_mode=wal; PRAGMA synchronous=normal"},
        )
    model = import_module("django.contrib.sessions.models").Session
    if model._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(model)


def django_view(request: Any, **_: Any) -> Any:
    """The one view, for the URLs that :func:`configure_django` names."""
    response = import_module("django.http").HttpResponse
    session = getattr(request, "session", None)
    return response(act(session, request.path, _django_renew))


def _django_renew(session: Any) -> None:
    session.flush()  # as django.contrib.auth.login does for another user
    session.cycle_key()


# -- Pyramid ----------------------------------------------------------------------------


def pyramid_app(factory: Callable[[], Any] | None = None) -> Any:
    """*factory* makes the session factory."""
    configurator = import_module("pyramid.config").Configurator
    response = import_module("pyramid.response").Response

    def view(request: Any) -> Any:
        path = request.path_info
        session = None if factory is None or path == "/untouched" else request.session
        return response(act(session, path, lambda session: session.invalidate()))

    with configurator(session_factory=None if factory is None else factory()) as config:
        for path in PATHS:
            config.add_route(path, path)
            config.add_view(view, route_name=path)
    return config.make_wsgi_app()


def pyramid_signed() -> Any:
    """Pyramid's own signed cookies."""
    session = import_module("pyramid.session")
    return session.SignedCookieSessionFactory(SECRET, secure=True, httponly=True)


def pyramid_nacl() -> Any:
    """pyramid_nacl_session, with data as JSON."""
    nacl = import_module("pyramid_nacl_session")
    serializer = import_module("pyramid.session").JSONSerializer()
    return nacl.EncryptedCookieSessionFactory(SECRET.encode()[:32], serializer=serializer)


def pyramid_redis_site() -> Any:
    """pyramid_session_redis with its defaults."""

    def make(where: Any) -> Request:
        redis = import_module("pyramid_session_redis")
        url = f"redis://{where.servers['redis']}"
        return over_wsgi(pyramid_app(lambda: redis.RedisSessionFactory(SECRET, redis_url=url)))

    return make
