"""What the behaviour tests share: a site over each store, browsers to visit it, its events.

A test says *given* with ``make_site`` or ``site``, *when* with ``Browser.visit(view)``, where
the view is a function of the session, and *then* by what the visit came back with.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from werkzeug.test import Client, TestResponse

from tieredsession import Session, SessionMiddleware, SessionStore, Settings
from tieredsession.contracts import Observer
from tieredsession.cookies import Reply
from tieredsession.events import Event, SessionEvent, TokenRefused
from tieredsession.registry import open_store
from tieredsession.settings import ALIASES, SETTINGS
from tieredsession.stores import MemorySessionStore, SQLiteSessionStore
from tieredsession.testing import Chaos, FakeClock
from tieredsession.wsgi import SESSION_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

pytest.register_assert_rewrite("adapters.scenarios")

SECRET = "a long enough text, for tests alone: 0123456789"
COOKIE = "__Host-id"

KINDS: dict[str, dict[str, Any]] = {
    "cookie-signed": {},
    "cookie-encrypted": {"SESSION_COOKIE_ENCRYPT": True},
    "memory": {"SESSION_STORE": "tieredsession.stores.MemorySessionStore"},
    "sqlite": {
        "SESSION_STORE": "tieredsession.stores.SQLiteSessionStore",
        "SESSION_STORE_URL": "sqlite:///{folder}/sessions.sqlite3?synchronous=normal",
    },
    "tiered": {
        "SESSION_STORE": "tieredsession.stores.SQLiteSessionStore",
        "SESSION_STORE_URL": "sqlite:///{folder}/tiered.sqlite3?synchronous=normal",
        "SESSION_CACHE_URL": "memory://",
    },
}
"""The settings of each store that the behaviour tests run on."""

NARROWER = {
    "server_stores": [kind for kind in KINDS if not kind.startswith("cookie")],
    "cookie_stores": [kind for kind in KINDS if kind.startswith("cookie")],
    "one_of_each": ["cookie-signed", "memory"],
    "any_store": ["memory"],
}
"""The stores that a test runs on if it has the marker of that name."""

E = TypeVar("E", bound=Event)
View = Callable[[Session], Any]


def pytest_configure(config: pytest.Config) -> None:
    # A shell in which the examples were tried has settings of ours, which tests bring themselves.
    for name in (*(setting.name for setting in SETTINGS), *ALIASES):
        os.environ.pop(name, None)
    for name, kinds in NARROWER.items():
        config.addinivalue_line("markers", f"{name}: run on {', '.join(kinds)} alone.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a site runs on every store, unless its markers or its parameters say which."""
    if "kind" not in metafunc.fixturenames:
        return
    kinds = list(KINDS)
    for marker in metafunc.definition.iter_markers():
        if marker.name == "parametrize" and marker.args[0] == "kind":
            return
        if marker.name in NARROWER:
            kinds = [kind for kind in kinds if kind in NARROWER[marker.name]]
    metafunc.parametrize("kind", kinds)


class Recorder(list[Event]):
    """An observer that remembers what became of sessions, and not how a cache served them."""

    def __call__(self, event: Event, /) -> None:
        if not type(event).__name__.startswith("Cache"):
            self.append(event)

    @property
    def names(self) -> list[str]:
        """The names of the events, in their order."""
        return [type(event).__name__ for event in self]

    @property
    def reasons(self) -> list[str]:
        """Why cookies were refused, in order."""
        return [event.reason for event in self.of(TokenRefused)]

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self if isinstance(event, kind)]

    @property
    def labels(self) -> list[str | None]:
        """The sessions that the events name."""
        return [event.session for event in self.of(SessionEvent)]


@dataclass
class Visit:
    """One request: the *views* that answered it, what the last returned, and the response."""

    views: tuple[View, ...]
    status: str = "200 OK"
    headers: list[tuple[str, str]] = field(default_factory=list)
    result: Any = None
    response: TestResponse = field(init=False)

    @property
    def set_cookies(self) -> list[str]:
        """The values of every ``Set-Cookie`` header."""
        return self.response.headers.getlist("Set-Cookie")

    @property
    def set_cookie(self) -> str:
        """The value of the only ``Set-Cookie`` header."""
        (line,) = self.set_cookies
        return line

    @property
    def token(self) -> str:
        """The token that the response sets; empty if it deletes the cookie."""
        return self.set_cookie.partition(";")[0].partition("=")[2]

    @property
    def deletes_cookie(self) -> bool:
        """Whether the response tells the browser to forget the cookie."""
        return any("Max-Age=0" in line for line in self.set_cookies)


class Browser:
    """A visitor with a cookie jar."""

    def __init__(self, site: Site, client: Client | None = None) -> None:
        self._site = site
        self.client = client or Client(site.middleware)

    @property
    def cookie(self) -> str:
        """The token in the jar, empty if there is none."""
        cookie = self.client.get_cookie(self._site.cookie_name)
        return "" if cookie is None else cookie.value

    @cookie.setter
    def cookie(self, token: str) -> None:
        self.client.set_cookie(self._site.cookie_name, token)

    def visit(
        self,
        *views: View,
        status: str = "200 OK",
        headers: Iterable[tuple[str, str]] = (),
        **request: Any,
    ) -> Visit:
        """Make a request in which the *views* run in turn; then the response starts."""
        visit = Visit(views, status, [("Content-Type", "text/plain"), *headers])
        request.setdefault("method", "GET")
        visit.response = self.client.open(
            environ_overrides={"test.visit": visit}, buffered=True, **request
        )
        return visit

    def put(self, **data: Any) -> Visit:
        """Make a request that adds *data* to the session."""
        return self.visit(lambda session: session.update(data))

    def data(self) -> dict[str, Any]:
        """What the session holds when a page looks at it."""
        data: dict[str, Any] = self.visit(dict).result
        return data

    def take(self, reply: Reply | None) -> None:
        """Do with the jar as a *reply* of the manager says."""
        if reply is not None and reply.set_cookie is not None:
            self.cookie = reply.set_cookie.partition(";")[0].partition("=")[2]

    def copy(self) -> Browser:
        """Another browser with this one's cookies: a second node's or a thief's."""
        other = Browser(self._site)
        other.cookie = self.cookie
        return other


class Site:
    """A running application over one store, whose every call is counted and may fail."""

    def __init__(
        self,
        settings: dict[str, Any],
        clock: FakeClock,
        *,
        store: SessionStore | None = None,
        app: WSGIApplication | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.settings = Settings(settings)
        self.clock = clock
        self.events = Recorder()
        self.chaos = Chaos()
        observers = [*observers, self.events]
        self.real_store = open_store(self.settings, observers) if store is None else store
        self.store = self.chaos.wrap(self.real_store)
        self.middleware = SessionMiddleware(
            app or _application,
            self.settings,
            store=self.store,
            observers=observers,
            clock=clock,
        )
        self.manager = self.middleware.manager
        self.cookie_name = self.settings.session_cookie_name

    @property
    def calls(self) -> list[str]:
        """The store calls so far. Naming a session in a log is none."""
        return [name for name in self.chaos.calls if name != "label"]

    @property
    def rows(self) -> int:
        """How many sessions the store holds, the expired ones included."""
        if isinstance(self.real_store, MemorySessionStore):
            return len(self.real_store)
        if self.database is None:
            return 0
        with closing(sqlite3.connect(self.database)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
        return int(count)

    @property
    def database(self) -> str | None:
        """The SQLite file of the store, if it has one."""
        url = self.settings.session_store_url
        return None if url is None else url.removeprefix("sqlite:///").partition("?")[0]

    def browser(self, **data: Any) -> Browser:
        """A visitor; one that has been here before if there is *data* to its session."""
        browser = Browser(self)
        if data:
            session = self.manager.open(None)
            session.update(data)
            browser.take(self.manager.close(session))
            self.events.clear()
            self.chaos.calls.clear()
        return browser

    def header(self, token: str) -> str:
        """The ``Cookie`` header of a browser that has *token*."""
        return f"{self.cookie_name}={token}"

    def open(self, browser: Browser) -> Session:
        """The session of a request that is under way until somebody closes it."""
        return self.manager.open(self.header(browser.cookie) if browser.cookie else None)

    def send(self, cookie_header: str, view: View = dict, **request: Any) -> Visit:
        """A request with this very ``Cookie`` header, from a client without a jar."""
        browser = Browser(self, Client(self.middleware, use_cookies=False))
        return browser.visit(view, environ_base={"HTTP_COOKIE": cookie_header}, **request)


def _application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit: Visit = environ["test.visit"]
    for view in visit.views:
        visit.result = view(environ[SESSION_KEY])
    start_response(visit.status, visit.headers)
    return [b"page"]


MakeSite = Callable[..., Site]


@pytest.fixture
def clock() -> FakeClock:
    """The time of every site of a test."""
    return FakeClock()


@pytest.fixture
def make_site(kind: str, clock: FakeClock, tmp_path: Path) -> Iterator[MakeSite]:
    """Makes a site over the test's store, or another site's *store*; keywords are settings.

    It runs *app*, or else the views of each :class:`Visit`.
    """

    def make(
        *,
        store: SessionStore | None = None,
        app: WSGIApplication | None = None,
        observers: Iterable[Observer] = (),
        **overrides: Any,
    ) -> Site:
        settings = {"SECRET_KEY": SECRET, **KINDS[kind], **overrides}
        url = settings.get("SESSION_STORE_URL")
        if url is not None:
            settings["SESSION_STORE_URL"] = url.format(folder=tmp_path)
        site = Site(settings, clock, store=store, app=app, observers=observers)
        durable = getattr(site.real_store, "durable", site.real_store)
        if isinstance(durable, SQLiteSessionStore):
            stack.callback(durable.close)
        return site

    with ExitStack() as stack:
        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site with the settings that one has without choosing any."""
    return make_site()


@pytest.fixture
def browser(site: Site) -> Browser:
    """A visitor of that site who has never been there."""
    return site.browser()
