"""The front ends, each behind one protocol: a request in, in process, and an answer out.

A view is a function of a :class:`Page`, which is the framework's own session together with
that framework's words for what is done with one. Adding a front end means one class here and
one row of ``FRONT_ENDS``; the scenarios stay as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.util import setup_testing_defaults

from werkzeug.wrappers import Response as WerkzeugResponse

from tieredsession import Request, Session, SessionMiddleware, SessionStore
from tieredsession.contracts import Observer
from tieredsession.wsgi import SESSION_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

VISIT = "test.visit"
"""Where a request carries its :class:`Visit`: a key of the environ, or of the ASGI scope."""


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
    body. *result* is what the view returned.
    """

    view: View
    middle: View | None = None
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
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
            found.append(SetCookie(name, value, {key.lower(): text for key, _, text in attributes}))
        return found

    def fail(self, error: BaseException) -> None:
        """Do with an exception as servers do."""
        self.error = error
        if not self.body:
            self.status, self.headers = 500, []

    def values(self, name: str) -> list[str]:
        """The values of every header *name*."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


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
        headers = [("Content-Type", "text/plain"), *visit.headers]
        start_response(f"{visit.status} As The View Says", headers)
        return [b"page"] if visit.middle is None else visit.body(page)


class Werkzeug(WSGI):
    """Werkzeug's request and response, with the session on the request."""

    @staticmethod
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        visit, page = environ[VISIT], Page(Request(environ))
        visit.begin(page)
        body = "page" if visit.middle is None else visit.body(page)
        return WerkzeugResponse(body, visit.status, visit.headers)(environ, start_response)


def serve_wsgi(app: WSGIApplication, environ: WSGIEnvironment) -> Answer:
    """Do with *app* as a WSGI server does."""
    answer = Answer()

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and answer.body:
            raise exc_info[1]
        answer.status, answer.headers = int(status[:3]), headers
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
    except Exception as error:
        answer.fail(error)
    return answer


FRONT_ENDS: dict[str, type[FrontEnd]] = {
    "wsgi": WSGI,
    "werkzeug": Werkzeug,
}
"""Every front end that the scenarios run through."""
