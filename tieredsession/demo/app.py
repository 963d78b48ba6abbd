"""The demo's routes, its settings, and the server that shows them."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

try:
    from werkzeug.serving import make_server
    from werkzeug.utils import redirect
    from werkzeug.wrappers import Response
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("Werkzeug", "demo") from None

from tieredsession import Request, Session, SessionMiddleware, SessionTooLarge, Settings
from tieredsession.demo import page
from tieredsession.demo.meter import Meter, metered
from tieredsession.errors import ConfigurationError
from tieredsession.events import Event
from tieredsession.merge import counter
from tieredsession.registry import open_store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from tieredsession.demo.servers import Tiers

FOLDER = Path(".demo")
"""Where the demo keeps its secret and its SQLite file, below the current directory."""

STORES = {
    "sqlite": "tieredsession.stores.SQLiteSessionStore",
    "cookie": "tieredsession.stores.SecureCookieSessionStore",
    "memory": "tieredsession.stores.MemorySessionStore",
    "gae": "tieredsession.stores.GAESessionStore",
}

_FILE = "sessions.sqlite3"

MAX_NAME = 40
MAX_ITEMS = 60
REMEMBER_FOR = timedelta(days=30)

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Demo:
    """The demo as a WSGI application.

    Args:
        store: a key of :data:`STORES`.
        folder: where the secret and the SQLite file are; it is created.
        environ: may have ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS``, to try a change of
            key; without a ``SECRET_KEY`` one is made and kept in *folder*.
        clock: seconds since the epoch, UTC.
        tiers: where the servers of the store ``gae`` are.

    Raises:
        ConfigurationError: a secret is weak, or *folder* cannot be used.
        StoreError: the SQLite file cannot be used.
    """

    def __init__(
        self,
        store: str,
        folder: Path = FOLDER,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        tiers: Tiers | None = None,
    ) -> None:
        settings = Settings(_settings(store, folder, environ, tiers))
        self._clock = clock
        self._events: deque[tuple[float, Event]] = deque(maxlen=8)
        self._meter = Meter(settings.session_cookie_name)
        self._store = open_store(settings, [self._observe])
        where = os.path.abspath(folder / _FILE) if tiers is None else tiers.cache
        self._place = page.place(store, where)
        self._cookie_name = settings.session_cookie_name
        self._app = self._meter.outside(
            SessionMiddleware(
                self._meter.inside(self._answer),
                settings,
                store=metered(self._store, self._meter),
                observers=[self._observe],
                clock=clock,
            )
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._app(environ, start_response)

    def close(self) -> None:
        """Let go of the store."""
        close = getattr(self._store, "close", None)
        if close is not None:
            close()

    def _observe(self, event: Event) -> None:
        self._events.appendleft((self._clock(), event))

    # -- routes -----------------------------------------------------------------------

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        try:
            return self._route(request)(environ, start_response)
        except SessionTooLarge as error:
            # Raised while the response was about to start: no header has left.
            request.session.revert()
            return self._show(request, 413, str(error))(environ, start_response)

    def _route(self, request: Request) -> Response:
        if request.method == "POST" and request.path in _CHANGES:
            return self._change(request)
        if request.method in ("GET", "HEAD"):
            if request.path == "/":
                with self._meter.cost.watch():
                    session = request.session
                    session["visits"] = session.get("visits", 0) + 1
                    session["seen"] = datetime.fromtimestamp(int(self._clock()), timezone.utc)
                return self._show(request)
            if request.path == "/plain":
                with self._meter.cost.watch():
                    text = page.plain(request.session)
                return Response(text, headers=_HEADERS)
            if request.path == "/untouched":
                return redirect("/", 303)
        return Response("There is nothing here.\n", 404, headers=_HEADERS)

    def _change(self, request: Request) -> Response:
        with self._meter.cost.watch():
            session = request.session
            allowed = session.check_csrf_token(request.form.get("csrf"))
        if not allowed:
            return self._show(
                request,
                403,
                "Refused: the form did not carry the CSRF token of this session. It came from "
                "another site, or from a page of a session that has ended.",
            )
        _CHANGES[request.path](session, request.form)
        return redirect("/", 303)

    def _show(self, request: Request, status: int = 200, notice: str | None = None) -> Response:
        """The page. It is written after the session was saved, so it can tell the cost."""
        session = request.session
        flashes = session.flashes()
        csrf = session.csrf_token()
        cost = self._meter.cost
        root = request.host_url

        def body() -> Iterator[str]:
            pair = f"{self._cookie_name}={cost.token}"
            yield page.render(
                session,
                csrf=csrf,
                notice=notice,
                flashes=flashes,
                place=self._place,
                cost=cost,
                recent=tuple(self._meter.recent),
                events=tuple(self._events),
                replay=f"curl --cookie {shlex.quote(pair)} {shlex.quote(root + 'plain')}",
                now=self._clock(),
            )

        return Response(body(), status, headers=_HEADERS, mimetype="text/html")


# -- what a form can ask for ------------------------------------------------------------


def _login(session: Session, form: Mapping[str, str]) -> None:
    name = form.get("name", "").strip()
    if not 1 <= len(name) <= MAX_NAME:
        session.flash(f"A name has 1 to {MAX_NAME} characters.", "error")
        return
    session.bind(name)
    session.flash(f"Welcome, {name}. The data came along; the cookie is another one.")


def _logout(session: Session, form: Mapping[str, str]) -> None:
    session.destroy()
    session.flash("You are logged out, and this is another session.")


def _remember(session: Session, form: Mapping[str, str]) -> None:
    if form.get("on"):
        session.lifetime = REMEMBER_FOR
        session.persistent = True
    else:
        session.lifetime = None
        session.persistent = None


def _add(session: Session, form: Mapping[str, str]) -> None:
    name = form.get("name", "").strip()
    items = session.setdefault("list", [])
    if not 1 <= len(name) <= MAX_NAME:
        session.flash(f"An item has 1 to {MAX_NAME} characters.", "error")
    elif _find(items, name):
        session.flash(f"{name} is on the list.", "error")
    elif len(items) >= MAX_ITEMS:
        session.flash(f"A list has {MAX_ITEMS} items at most.", "error")
    else:
        items.append({"name": name, "quantity": 1})


def _more(session: Session, form: Mapping[str, str]) -> None:
    item = _find(session.get("list", []), form.get("item"))
    if item is not None:
        item["quantity"] += 1  # deep inside the session, and found all the same


def _drop(session: Session, form: Mapping[str, str]) -> None:
    items = session.get("list", [])
    item = _find(items, form.get("item"))
    if item is not None:
        items.remove(item)


def _find(items: list[dict[str, Any]], name: str | None) -> dict[str, Any] | None:
    return next((item for item in items if item["name"] == name), None)


_CHANGES: dict[str, Callable[[Session, Mapping[str, str]], None]] = {
    "/login": _login,
    "/logout": _logout,
    "/remember": _remember,
    "/list/add": _add,
    "/list/more": _more,
    "/list/remove": _drop,
}


# -- settings and server ----------------------------------------------------------------


def _settings(
    store: str, folder: Path, environ: Mapping[str, str], tiers: Tiers | None
) -> dict[str, Any]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = environ.get("SECRET_KEY") or _kept_secret(folder / "secret_key")
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be used: {error}") from None
    settings: dict[str, Any] = {
        "SECRET_KEY": secret,
        "SECRET_KEY_FALLBACKS": environ.get("SECRET_KEY_FALLBACKS", ""),
        "SESSION_STORE": STORES[store],
        # The demo is plain http on this machine, and for nothing else.
        "SESSION_COOKIE_SECURE": False,
        "SESSION_MERGE_RULES": {"visits": counter},  # two tabs at once are two visits
    }
    if store == "sqlite":
        settings["SESSION_STORE_URL"] = "sqlite:///" + quote(str(folder / _FILE))
    if tiers is not None:
        settings["SESSION_STORE_URL"] = tiers.store_url
        settings["SESSION_CACHE_URL"] = tiers.cache_url
    return settings


def _kept_secret(path: Path) -> str:
    """The secret in *path*, made at the first start, readable by its owner alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        secret = token_hex(32)
        file.write(secret + "\n")
    return secret


def serve(store: str, host: str, port: int) -> None:
    """Serve the demo until it is interrupted, and print where.

    Raises:
        ConfigurationError: *host* is not loopback, or the address cannot be had.
        SessionError: whatever :class:`Demo` raises.
    """
    if not _is_loopback(host):
        raise ConfigurationError(
            f"--host {host} is not an address of this machine alone: the demo shows its cookie "
            "and sends it over plain http, so it serves 127.0.0.1, ::1 or localhost only"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(f"--host {host} --port {port}: {error.strerror}") from None
    with listener, ExitStack() as stack:
        tiers = None
        if store == "gae":
            from tieredsession.demo.servers import running

            print("Starting the Datastore emulator and a cache ...", flush=True)
            tiers = stack.enter_context(running())
        demo = Demo(store, tiers=tiers)
        server = make_server(host, port, demo, threaded=True, fd=listener.fileno())
        shown = f"[{host}]" if ":" in host else host
        print(
            f"The demo, store {store}: http://{shown}:{server.port}/  (stop with Ctrl-C)",
            flush=True,
        )
        try:
            server.serve_forever()
        finally:
            demo.close()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
