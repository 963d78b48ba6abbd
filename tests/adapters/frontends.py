"""The front ends, each behind one protocol: a request in, in process, and an answer out.

A view is a function of a :class:`Page`, which is the framework's own session together with
that framework's words for what is done with one. Adding a front end means one class here and
one row of ``FRONT_ENDS``; the scenarios stay as they are.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from wsgiref.util import setup_testing_defaults

import adapters.django_site  # noqa: F401 - lets Django be imported
import django.contrib.messages
import flask
import flask_wtf.csrf
import pyramid.config
import pyramid.csrf
import pyramid.response
import starlette.applications
import starlette.middleware
import starlette.responses
import starlette.routing
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.middleware.csrf import CsrfViewMiddleware, get_token
from django.test import override_settings
from django.urls import path
from werkzeug.wrappers import Response as WerkzeugResponse

from tieredsession import Request, Session, SessionMiddleware, SessionStore
from tieredsession.adapters import django as django_sessions
from tieredsession.adapters.asgi import SessionMiddleware as AsyncSessionMiddleware
from tieredsession.adapters.flask import TieredSession as FlaskSessions
from tieredsession.adapters.pyramid import session_factory as pyramid_sessions
from tieredsession.contracts import Observer
from tieredsession.wsgi import SESSION_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

VISIT = "test.visit"
"""Where a request carries its :class:`Visit`: a key of the environ, or of the ASGI scope."""

TEXT = ("Content-Type", "text/plain")


class Page:
    """What a view is given: *session*, and the rest in the words of the framework.

    As it stands, it is that of a framework with our session as ``request.session``.
    """

    def __init__(self, request: Any) -> None:
        self.request = request

    @property
    def session(self) -> MutableMapping[str, Any]:
        """The session, as views of the framework reach it."""
        session: MutableMapping[str, Any] = self.request.session
        return session

    @property
    def ours(self) -> Session:
        """The session, for what the framework has no word for."""
        assert isinstance(self.session, Session)
        return self.session

    def renew(self) -> None:
        """Go on under a new id."""
        self.ours.renew()

    def destroy(self) -> None:
        """Log out."""
        self.ours.destroy()

    def bind(self, principal: str) -> None:
        """Log in."""
        self.ours.bind(principal)

    @property
    def principal(self) -> str | None:
        """Who is logged in."""
        return self.ours.principal

    def persist(self, seconds: int) -> None:
        """Let the session and its cookie live that long: "stay logged in"."""
        self.ours.lifetime = seconds
        self.ours.persistent = True

    def flash(self, message: str) -> None:
        """Keep a message for the next page."""
        self.ours.flash(message)

    def flashes(self) -> list[str]:
        """The messages that wait, once."""
        return [message for _, message in self.ours.flashes()]

    def csrf_token(self) -> str:
        """What a form carries."""
        return self.ours.csrf_token()

    def check_csrf(self, token: str) -> bool:
        """Whether a form may be believed."""
        return self.ours.check_csrf_token(token)


View = Callable[[Page], Any]


def nothing(page: Page) -> None:
    """A view that leaves the session alone."""


@dataclass
class Visit:
    """What the application does with one request.

    *view* runs before the response starts, *middle* between the two chunks of a streamed
    body. *result* is what the view returned. *watch* is shown the headers when they reach the
    server, before anything of the body does.
    """

    view: View
    middle: View | None = None
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    watch: Callable[[Answer], Any] | None = None
    result: Any = None

    def begin(self, page: Page) -> None:
        self.result = self.view(page)

    def body(self, page: Page) -> Iterator[bytes]:
        assert self.middle is not None
        yield b"pa"
        self.middle(page)
        yield b"ge"


class SetCookie(NamedTuple):
    """A ``Set-Cookie`` line. The names of *attributes* are in lower case."""

    name: str
    value: str
    attributes: dict[str, str]

    @property
    def deletes(self) -> bool:
        """Whether it tells the browser to forget the cookie."""
        return self.attributes.get("max-age") == "0"


@dataclass
class Answer:
    """What a server was given for one request.

    *error* is the exception that reached the server, if one did. Before the first byte it
    makes a server answer 500, and so it does here.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    error: BaseException | None = None

    @property
    def set_cookies(self) -> list[SetCookie]:
        """The cookies that it sets."""
        found = []
        for line in self.values("Set-Cookie"):
            pair, *rest = line.split(";")
            name, _, value = pair.partition("=")
            attributes = [part.strip().partition("=") for part in rest]
            name = name.strip()  # Django writes a space before it
            found.append(SetCookie(name, value, {key.lower(): text for key, _, text in attributes}))
        return found

    def start(self, visit: Visit, status: int, headers: list[tuple[str, str]]) -> None:
        """Take the headers of the response."""
        self.status, self.headers = status, headers
        if visit.watch is not None:
            visit.watch(self)

    def fail(self, error: BaseException) -> None:
        """Do with an exception as servers do."""
        self.error = error
        if not self.body:
            self.status, self.headers = 500, []

    def values(self, name: str) -> list[str]:
        """The values of every header *name*."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


Difference = Literal[
    "acts at once",
    "another age",
    "assigning sets a cookie",
    "emptied lives on",
    "forms outlive renewal",
    "loads ahead",
    "lost is 400",
    "only changes extend",
    "own cookie parser",
    "says nothing to caches",
    "streams are not saved",
    "takes subclasses",
    "unavailable is 500",
]

AS_JSON = "its own sessions are JSON, which takes a value of a subclass for one of the type"

DIFFERENCES: dict[str, dict[Difference, str]] = {
    "Flask": {
        "another age": "Flask's PERMANENT_SESSION_LIFETIME is the age, and is 31 days by default",
        "forms outlive renewal": "Flask-WTF's token is data of the session like any other",
        "takes subclasses": AS_JSON,
    },
    "Django": {
        "acts at once": "Django documents cycle_key() and flush() as done when they are called",
        "assigning sets a cookie": "Django's middleware sets it whenever a key was assigned",
        "emptied lives on": "Django documents that clear() leaves a session, and flush() none",
        "forms outlive renewal": "Django makes another token at a login, and at no other time",
        "lost is 400": "Django's middleware refuses a request whose session ended under it",
        "only changes extend": "Django documents that expiry counts from the last modification",
        "own cookie parser": (
            "Django takes the last of several cookies of a name, unquotes it, does not look up "
            "what has less than eight characters, and deletes all that stands for nothing"
        ),
        "says nothing to caches": "Django's middleware sends Vary with a cookie, and no more",
        "streams are not saved": "Django's middleware saves before a body is streamed, and once",
        "takes subclasses": AS_JSON,
        "unavailable is 500": "to Django an exception of a store is one like any other",
    },
    "Starlette": {
        "loads ahead": "nothing may wait on the event loop, so the store is asked before the view",
        "takes subclasses": AS_JSON,
    },
    "StarletteThreads": {"takes subclasses": AS_JSON},
    "Pyramid": {"takes subclasses": AS_JSON},
}
"""Where a framework's own rules go before the core's, and why. The scenarios hold each front
end to what is said here, and in all else to the same as any other."""


class FrontEnd(ABC):
    """A running application of one framework, over one store.

    Args:
        settings: the site's, under their names in upper case.
        store: goes before the one that the settings name.
        observers: are told what happened.
        clock: seconds since the epoch, UTC.
    """

    @abstractmethod
    def __init__(
        self,
        settings: dict[str, Any],
        store: SessionStore,
        observers: Iterable[Observer],
        clock: Callable[[], float],
    ) -> None: ...

    @abstractmethod
    def send(self, visit: Visit, cookie_header: str) -> Answer:
        """Serve one request to the end of its body."""

    @classmethod
    def differs(cls, difference: Difference) -> bool:
        """Whether its framework's own rules are others there."""
        return difference in DIFFERENCES.get(cls.__name__, {})


class OverWSGI(FrontEnd):
    """What front ends have in common that are WSGI applications in the end."""

    app: WSGIApplication

    def send(self, visit: Visit, cookie_header: str) -> Answer:
        environ: WSGIEnvironment = {VISIT: visit, "QUERY_STRING": "", "wsgi.url_scheme": "https"}
        if cookie_header:
            environ["HTTP_COOKIE"] = cookie_header
        setup_testing_defaults(environ)
        return serve_wsgi(self.app, environ)


class EnvironPage(Page):
    """A page of an application that has no request but the environ."""

    @property
    def session(self) -> MutableMapping[str, Any]:
        session: Session = self.request[SESSION_KEY]
        return session


class WSGI(OverWSGI):
    """A bare WSGI application under our middleware, as any other may be."""

    def __init__(
        self,
        settings: dict[str, Any],
        store: SessionStore,
        observers: Iterable[Observer],
        clock: Callable[[], float],
    ) -> None:
        self.app = SessionMiddleware(
            self.application, settings, store=store, observers=observers, clock=clock
        )

    @staticmethod
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        visit, page = environ[VISIT], EnvironPage(environ)
        visit.begin(page)
        start_response(f"{visit.status} As The View Says", [TEXT, *visit.headers])
        return [b"page"] if visit.middle is None else visit.body(page)


class Werkzeug(WSGI):
    """Werkzeug's request and response, with the session on the request."""

    @staticmethod
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        visit, page = environ[VISIT], Page(Request(environ))
        visit.begin(page)
        body = "page" if visit.middle is None else visit.body(page)
        return WerkzeugResponse(body, visit.status, visit.headers)(environ, start_response)


class FlaskPage(Page):
    """A page in Flask's words, and Flask-WTF's."""

    @property
    def session(self) -> MutableMapping[str, Any]:
        return flask.session

    def persist(self, seconds: int) -> None:
        self.ours.lifetime = seconds
        flask.session.permanent = True

    def flash(self, message: str) -> None:
        flask.flash(message)

    def flashes(self) -> list[str]:
        return [str(message) for message in flask.get_flashed_messages()]

    def csrf_token(self) -> str:
        return str(flask_wtf.csrf.generate_csrf())

    def check_csrf(self, token: str) -> bool:
        try:
            flask_wtf.csrf.validate_csrf(token)
        except flask_wtf.csrf.ValidationError:
            return False
        return True


class Flask(OverWSGI):
    """Flask, with our extension."""

    def __init__(
        self,
        settings: dict[str, Any],
        store: SessionStore,
        observers: Iterable[Observer],
        clock: Callable[[], float],
    ) -> None:
        self.app = app = flask.Flask("app")
        app.config.update(settings)
        FlaskSessions(app, store=store, observers=observers, clock=clock)
        app.add_url_rule("/", view_func=self.view)

    @staticmethod
    def view() -> flask.Response:
        visit, page = flask.request.environ[VISIT], FlaskPage(flask.request)
        visit.begin(page)
        body = "page" if visit.middle is None else flask.stream_with_context(visit.body(page))
        return flask.Response(body, visit.status, visit.headers)


class PyramidPage(Page):
    """A page in Pyramid's words."""

    def destroy(self) -> None:
        self.request.session.invalidate()

    def flash(self, message: str) -> None:
        self.request.session.flash(message)

    def flashes(self) -> list[str]:
        messages: list[str] = self.request.session.pop_flash()
        return messages

    def csrf_token(self) -> str:
        return str(pyramid.csrf.get_csrf_token(self.request))

    def check_csrf(self, token: str) -> bool:
        self.request.headers["X-CSRF-Token"] = token
        return bool(pyramid.csrf.check_csrf_token(self.request, raises=False))


class Pyramid(OverWSGI):
    """Pyramid, with our session factory."""

    def __init__(
        self,
        settings: dict[str, Any],
        store: SessionStore,
        observers: Iterable[Observer],
        clock: Callable[[], float],
    ) -> None:
        factory = pyramid_sessions(settings, store=store, observers=observers, clock=clock)
        with pyramid.config.Configurator(session_factory=factory) as config:
            config.add_route("page", "/")
            config.add_view(self.view, route_name="page")
        self.app = config.make_wsgi_app()

    @staticmethod
    def view(request: Any) -> Any:
        visit, page = request.environ[VISIT], PyramidPage(request)
        visit.begin(page)
        body = [b"page"] if visit.middle is None else visit.body(page)
        return pyramid.response.Response(
            app_iter=body, status=visit.status, headerlist=[TEXT, *visit.headers]
        )


class DjangoPage(Page):
    """A page in Django's words."""

    request: HttpRequest

    def renew(self) -> None:
        self.request.session.cycle_key()

    def destroy(self) -> None:
        self.request.session.flush()

    def bind(self, principal: str) -> None:
        # As django.contrib.auth.login does, for a user that no database knows.
        session = self.request.session
        if session.get(django_sessions.USER, principal) != principal:
            session.flush()
        else:
            session.cycle_key()
        session[django_sessions.USER] = principal

    @property
    def principal(self) -> str | None:
        user: str | None = self.request.session.get(django_sessions.USER)
        return user

    def persist(self, seconds: int) -> None:
        self.request.session.set_expiry(seconds)

    def flash(self, message: str) -> None:
        django.contrib.messages.info(self.request, message)

    def flashes(self) -> list[str]:
        return [str(message) for message in django.contrib.messages.get_messages(self.request)]

    def csrf_token(self) -> str:
        guard = CsrfViewMiddleware(lambda request: HttpResponse())
        guard.process_request(self.request)
        token = get_token(self.request)
        guard.process_response(self.request, HttpResponse())
        return str(token)

    def check_csrf(self, token: str) -> bool:
        guard = CsrfViewMiddleware(lambda request: HttpResponse())
        guard.process_request(self.request)
        self.request.method = "POST"
        self.request.META.update(HTTP_X_CSRFTOKEN=token, HTTP_ORIGIN="https://127.0.0.1")
        return guard.process_view(self.request, None, (), {}) is None


class Django(OverWSGI):
    """Django with our session engine, and its own middleware, which writes the cookie.

    Django's own defaults for that cookie are weaker than ours; here they are set to ours.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        store: SessionStore,
        observers: Iterable[Observer],
        clock: Callable[[], float],
    ) -> None:
        self.settings = {
            "SESSION_COOKIE_NAME": "__Host-id",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_EXPIRE_AT_BROWSER_CLOSE": True,
            **settings,
            "SESSION_ENGINE": "tieredsession.adapters.django",
            "MIDDLEWARE": [
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware",
            ],
            "MESSAGE_STORAGE": "django.contrib.messages.storage.session.SessionStorage",
            "CSRF_USE_SESSIONS": True,
            "ALLOWED_HOSTS": ["*"],
            "ROOT_URLCONF": (path("", self.view),),
        }
        with override_settings(**self.settings):
            self.manager = django_sessions.make_manager(
                store=store, observers=observers, clock=clock
            )
            self.app = WSGIHandler()

    def send(self, visit: Visit, cookie_header: str) -> Answer:
        with override_settings(**self.settings), self.in_charge():
            return super().send(visit, cookie_header)

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Let this manager serve; one request may be served while another is under way."""
        before = django_sessions._given
        django_sessions.use_manager(self.manager)
        try:
            yield
        finally:
            django_sessions.use_manager(before)

    @staticmethod
    def view(request: HttpRequest) -> Any:
        visit, page = request.META[VISIT], DjangoPage(request)
        visit.begin(page)
        if visit.middle is None:
            return HttpResponse("page", status=visit.status, headers=dict(visit.headers))
        return StreamingHttpResponse(
            visit.body(page), status=visit.status, headers=dict(visit.headers)
        )


class Starlette(FrontEnd):
    """Starlette with our middleware, and views on the event loop."""

    autoload = True

    def __init__(
        self,
        settings: dict[str, Any],
        store: SessionStore,
        observers: Iterable[Observer],
        clock: Callable[[], float],
    ) -> None:
        self.app = starlette.applications.Starlette(
            routes=[starlette.routing.Route("/", self.view)],
            middleware=[
                starlette.middleware.Middleware(
                    AsyncSessionMiddleware,
                    settings=settings,
                    store=store,
                    observers=observers,
                    clock=clock,
                    autoload=self.autoload,
                )
            ],
        )

    def send(self, visit: Visit, cookie_header: str) -> Answer:
        headers = [(b"host", b"127.0.0.1")]
        if cookie_header:
            headers.append((b"cookie", cookie_header.encode("latin-1")))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "https",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 443),
            VISIT: visit,
        }
        return serve_asgi(self.app, scope)

    async def view(self, request: Any) -> Any:
        visit, page = request.scope[VISIT], Page(request)
        visit.begin(page)
        return self.respond(visit, page)

    @staticmethod
    def respond(visit: Visit, page: Page) -> Any:
        headers = dict(visit.headers)
        if visit.middle is None:
            return starlette.responses.Response("page", visit.status, headers)

        async def body() -> AsyncIterator[bytes]:
            for chunk in visit.body(page):
                yield chunk

        return starlette.responses.StreamingResponse(body(), visit.status, headers)


class StarletteThreads(Starlette):
    """Starlette, with views in worker threads, which may wait for a store when they need it."""

    autoload = False

    def view(self, request: Any) -> Any:
        visit, page = request.scope[VISIT], Page(request)
        visit.begin(page)
        if visit.middle is None:
            return self.respond(visit, page)
        return starlette.responses.StreamingResponse(
            visit.body(page), visit.status, dict(visit.headers)
        )


def serve_asgi(app: Any, scope: dict[str, Any]) -> Answer:
    """Do with *app* as an ASGI server does, from whatever thread."""
    answer = Answer()

    async def receive() -> dict[str, Any]:
        if not asked:
            asked.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()  # the visitor stays
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not answer.status, "the headers came twice"
            headers = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message["headers"]
            ]
            answer.start(scope[VISIT], message["status"], headers)
        else:
            assert answer.status, "a body came before its headers"
            answer.body += message.get("body", b"")

    async def serve() -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:  # as a server takes it
            answer.fail(error)

    asked: list[bool] = []
    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    thread.join()
    return answer


def serve_wsgi(app: WSGIApplication, environ: WSGIEnvironment) -> Answer:
    """Do with *app* as a WSGI server does."""
    answer = Answer()

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and answer.body:
            raise exc_info[1]
        answer.start(environ[VISIT], int(status[:3]), headers)
        return write

    def write(chunk: bytes) -> None:
        assert answer.status, "a body came before its headers"
        answer.body += chunk

    try:
        body = app(environ, start_response)
        try:
            for chunk in body:
                write(chunk)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
    except Exception as error:  # as a server takes it
        answer.fail(error)
    return answer


FRONT_ENDS: dict[str, type[FrontEnd]] = {
    "wsgi": WSGI,
    "werkzeug": Werkzeug,
    "flask": Flask,
    "django": Django,
    "starlette": Starlette,
    "starlette-threads": StarletteThreads,
    "pyramid": Pyramid,
}
"""Every front end that the scenarios run through."""
