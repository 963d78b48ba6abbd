"""A site in Django over one store, for the tests of its session engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from tieredsession.adapters.django import make_manager, use_manager
from tieredsession.events import Event
from tieredsession.stores import MemorySessionStore
from tieredsession.testing import Chaos, FakeClock

SECRET = "a long enough text, for tests alone: 0123456789"
OTHER_SECRET = "another text, as long, for tests alone: 9876543210"
ENGINE = "tieredsession.adapters.django"
COOKIE = "sessionid"
AGE = 14 * 24 * 3600

if not settings.configured:
    settings.configure(SECRET_KEY=SECRET)
    django.setup()

View = Callable[[HttpRequest], Any]


class Visit:
    """What the application does with a request, and what came of it."""

    def __init__(self, views: tuple[View, ...], status: int) -> None:
        self.views = views
        self.status = status
        self.result: Any = None


def _answer(request: HttpRequest) -> HttpResponse:
    visit: Visit = request.META["test.visit"]
    for view in visit.views:
        visit.result = view(request)
    return HttpResponse("page", status=visit.status)


SQLITE = "tieredsession.stores.SQLiteSessionStore"
STORES: dict[str, dict[str, Any]] = {
    "cookie": {},
    "memory": {"SESSION_STORE": "tieredsession.stores.MemorySessionStore"},
    "sqlite": {
        "SESSION_STORE": SQLITE,
        "SESSION_STORE_URL": "sqlite:///{folder}/sessions.sqlite3?synchronous=normal",
    },
    "tiered": {
        "SESSION_STORE": SQLITE,
        "SESSION_STORE_URL": "sqlite:///{folder}/tiered.sqlite3?synchronous=normal",
        "SESSION_CACHE_URL": "memory://",
    },
    "hybrid": {
        "SESSION_STORE": "tieredsession.stores.HybridSessionStore",
        "SESSION_STORE_URL": "sqlite:///{folder}/hybrid.sqlite3?synchronous=normal",
    },
}
"""The settings of each store."""

BASE: dict[str, Any] = {
    "SECRET_KEY": SECRET,
    "SESSION_ENGINE": ENGINE,
    "ALLOWED_HOSTS": ["*"],
    "ROOT_URLCONF": (path("", _answer),),
    "INSTALLED_APPS": ["django.contrib.sessions"],
    "MIDDLEWARE": ["django.contrib.sessions.middleware.SessionMiddleware"],
    "USE_TZ": True,
}


class Browser:
    """A visitor with a cookie jar."""

    def __init__(self, cookie: str = "") -> None:
        self.client = Client()
        if cookie:
            self.cookie = cookie

    @property
    def cookie(self) -> str:
        """The session's cookie, empty if there is none."""
        morsel = self.client.cookies.get(settings.SESSION_COOKIE_NAME)
        return "" if morsel is None else str(morsel.value)

    @cookie.setter
    def cookie(self, value: str) -> None:
        self.client.cookies[settings.SESSION_COOKIE_NAME] = value

    def visit(self, *views: View, status: int = 200) -> Any:
        """A request in which *views* run in turn: the response, with the last one's ``result``."""
        visit = Visit(views, status)
        response = self.client.get("/", **{"test.visit": visit})
        response.result = visit.result
        return response

    def put(self, **data: Any) -> Any:
        """A request that adds *data* to the session."""
        return self.visit(lambda request: request.session.update(data))

    def data(self) -> dict[str, Any]:
        """What the session holds when a page looks at it."""
        data: dict[str, Any] = self.visit(lambda request: dict(request.session.items())).result
        return data

    def copy(self) -> Browser:
        """Another browser with this one's cookie: another tab, or a thief."""
        return Browser(self.cookie)


class Site:
    """A running site: its settings are Django's while it is there."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.chaos = Chaos()
        self.events: list[Event] = []
        self.real_store: Any = None

    @property
    def calls(self) -> list[str]:
        """The calls to the store since last asked."""
        names = [name for name in self.chaos.calls if name != "label"]
        self.chaos.calls.clear()
        return names

    @property
    def event_names(self) -> list[str]:
        """What happened to sessions since last asked."""
        names = [type(event).__name__ for event in self.events]
        self.events.clear()
        return [name for name in names if not name.startswith("Cache")]

    @property
    def database(self) -> str:
        """The SQLite file of the store."""
        path: str = settings.SESSION_STORE_URL
        return path.removeprefix("sqlite:///").partition("?")[0]

    @property
    def rows(self) -> int:
        """How many sessions the store holds, the expired ones included."""
        if isinstance(self.real_store, MemorySessionStore):
            return len(self.real_store)
        with closing(sqlite3.connect(self.database)) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
        return int(rows)

    def browser(self, **data: Any) -> Browser:
        """A visitor; one that has been here before if there is *data* to its session."""
        browser = Browser()
        if data:
            browser.put(**data)
            self.events.clear()
            self.chaos.calls.clear()
        return browser


@contextmanager
def running(**changes: Any) -> Iterator[Site]:
    """A site with these settings."""
    site = Site()
    with override_settings(**{**BASE, **changes}):
        # One manager opens the store, another counts its calls.
        opened = make_manager(observers=[site.events.append], clock=site.clock)
        site.real_store = opened.store
        counted = make_manager(
            store=site.chaos.wrap(opened.store),
            observers=[site.events.append],
            clock=site.clock,
        )
        use_manager(counted)
        try:
            yield site
        finally:
            use_manager(None)
            close = getattr(opened.store, "close", None)
            if close is not None:
                close()
