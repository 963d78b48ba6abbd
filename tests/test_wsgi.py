"""The middleware under the rules of PEP 3333, whatever way an application answers."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Request as PlainRequest
from werkzeug.wrappers import Response

from tieredsession import (
    HeadersSentError,
    MissingDependencyError,
    Request,
    Session,
    SessionMiddleware,
    SessionMixin,
    SessionTooLarge,
    Settings,
    StoreError,
    StoreUnavailable,
)
from tieredsession.wsgi import SESSION_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from conftest import Browser, MakeSite, Site

pytestmark = pytest.mark.one_of_each

PLAIN = [("Content-Type", "text/plain")]
SETTINGS = {"SECRET_KEY": "a long enough text, for tests alone: 0123456789"}


def nothing(session: Session) -> None:
    """A step of an application that leaves the session alone."""


class Body:
    """An iterable that counts how often it was closed."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self.closed += 1


class App:
    """An application that answers in one of the ways that PEP 3333 allows.

    It does something *before* its response starts, right *after*, and in the *middle* of
    its body.
    """

    def __init__(
        self,
        way: str = "list",
        *,
        before: Callable[[Session], Any] = nothing,
        after: Callable[[Session], Any] = nothing,
        middle: Callable[[Session], Any] = nothing,
        status: str = "200 OK",
    ) -> None:
        self.way = way
        self.before = before
        self.after = after
        self.middle = middle
        self.status = status
        self.bodies: list[Body] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        session = environ[SESSION_KEY]

        def late() -> Iterator[bytes]:
            self._start(session, start_response)
            yield from self._middle(session)

        if self.way == "late generator":
            return late()
        if self.way == "late iterator":
            return self._body(late())
        write = self._start(session, start_response)
        if self.way == "list":
            return [b"one", b"two"]
        if self.way == "tuple":
            return (b"one", b"two")
        if self.way == "generator":
            return self._middle(session)
        if self.way == "iterator":
            return self._body(self._middle(session))
        if self.way == "write":
            write(b"onetwo")
            return []
        assert self.way == "file"
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"onetwo"))
        return wrapped

    def _start(self, session: Session, start_response: StartResponse) -> Callable[[bytes], object]:
        self.before(session)
        write = start_response(self.status, list(PLAIN))
        self.after(session)
        return write

    def _middle(self, session: Session) -> Iterator[bytes]:
        yield b"one"
        self.middle(session)
        yield b"two"

    def _body(self, chunks: Iterator[bytes]) -> Body:
        body = Body(chunks)
        self.bodies.append(body)
        return body


WAYS = ["list", "generator", "iterator", "late generator", "late iterator", "write", "file"]
STREAMS = ["generator", "iterator", "late generator", "late iterator"]
LATE = ["late generator", "late iterator"]


def put(**data: Any) -> Callable[[Session], None]:
    """A step that adds *data*."""
    return lambda session: session.update(data)


def fail(session: Session) -> None:
    """A step with a bug in it."""
    raise ZeroDivisionError


class Answer:
    """What a server was given for one request."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        self.status, self.headers = status, headers
        return self.write

    def write(self, chunk: bytes) -> None:
        self.body += chunk

    @property
    def cookies(self) -> list[str]:
        """The cookies that the response sets, as a browser sends them back."""
        lines = [value for name, value in self.headers if name == "Set-Cookie"]
        return [line.partition(";")[0] for line in lines]


def environment(cookie: str = "", **more: Any) -> WSGIEnvironment:
    """The environ of a request, complete enough for the standard's validator."""
    environ: WSGIEnvironment = {"QUERY_STRING": "", "wsgi.file_wrapper": FileWrapper, **more}
    if cookie:
        environ["HTTP_COOKIE"] = cookie
    setup_testing_defaults(environ)
    return environ


def serve(site: Site, browser: Browser) -> Answer:
    """Serve one request, to the end of its body; an exception comes out as it is."""
    answer = Answer()
    cookie = site.header(browser.cookie) if browser.cookie else ""
    body = site.middleware(environment(cookie), answer.start_response)
    try:
        for chunk in body:
            answer.write(chunk)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()
    for line in answer.cookies:
        browser.cookie = line.partition("=")[2]
    return answer


def handle(app: WSGIApplication, method: str = "GET") -> tuple[str, str]:
    """What the standard library's server answers to a request, and what it logs."""
    out, errors = io.BytesIO(), io.StringIO()
    environ = environment(REQUEST_METHOD=method)
    SimpleHandler(io.BytesIO(), out, errors, environ, multithread=False).run(app)
    return out.getvalue().decode("latin-1"), errors.getvalue()


# -- the protocol ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("way", WAYS)
def test_both_sides_keep_to_the_protocol(make_site: MakeSite, way: str, method: str) -> None:
    """Whatever way an application answers, the standard's validator finds no fault."""
    app = App(way, before=put(a=1))
    site = make_site(app=validator(app))
    answer, errors = handle(validator(site.middleware), method)
    assert errors == ""
    assert answer.startswith("HTTP/1.0 200 OK")
    assert answer.count("Set-Cookie: __Host-id=") == 1
    assert answer.endswith("onetwo")
    assert all(body.closed == 1 for body in app.bodies)


@pytest.mark.parametrize("way", WAYS)
def test_an_untouched_session_leaves_no_trace(make_site: MakeSite, way: str) -> None:
    """A request that does not touch its session costs no call and no header (security 75)."""
    site = make_site(app=App(way))
    browser = site.browser(a=1)
    answer = serve(site, browser)
    assert answer.headers == PLAIN
    assert answer.body == b"onetwo"
    assert site.chaos.calls == []
    assert site.events == []


@pytest.mark.parametrize("way", WAYS)
def test_a_change_before_the_response(make_site: MakeSite, way: str) -> None:
    """A change before the response starts is saved, whatever way the application answers."""
    site = make_site(app=App(way, before=put(b=2)))
    browser = site.browser(a=1)
    assert serve(site, browser).body == b"onetwo"
    assert dict(site.open(browser)) == {"a": 1, "b": 2}


def test_the_session_is_saved_before_the_server_hears_of_the_response(
    make_site: MakeSite,
) -> None:
    """When the headers reach the server, another node already reads the new data (I11)."""
    site = make_site(app=App(before=put(a=1)))
    seen: list[dict[str, Any]] = []

    class Watching(Answer):
        def start_response(self, *args: Any, **kwargs: Any) -> Callable[[bytes], None]:
            write = super().start_response(*args, **kwargs)
            seen.append(dict(site.manager.open(self.cookies[0])))
            return write

    site.middleware(environment(), Watching().start_response)
    assert seen == [{"a": 1}]


def test_the_application_keeps_its_headers(make_site: MakeSite) -> None:
    """The list of headers that the application passed in is not written to."""
    headers = list(PLAIN)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        environ[SESSION_KEY]["a"] = 1
        start_response("200 OK", headers)
        return [b""]

    make_site(app=app).middleware(environment(), Answer().start_response)
    assert headers == PLAIN


@pytest.mark.parametrize("way", ["list", "tuple", "file"])
def test_finished_bodies_pass_through(make_site: MakeSite, way: str) -> None:
    """A list, a tuple, or a file for the server to send, reaches the server as it is."""
    made: list[Iterable[bytes]] = []
    inner = App(way, before=put(a=1))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        made.append(inner(environ, start_response))
        return made[0]

    body = make_site(app=app).middleware(environment(), Answer().start_response)
    assert body is made[0]


def test_a_file_wrapper_that_is_a_function(make_site: MakeSite) -> None:
    """Where the server's file wrapper is a plain function, its files are served all the same."""
    site = make_site(app=App("file", before=put(a=1)))
    environ = environment()
    environ["wsgi.file_wrapper"] = lambda file: iter([file.read()])
    body = site.middleware(environ, Answer().start_response)
    assert b"".join(body) == b"onetwo"
    body.close()  # type: ignore[attr-defined]  # as a server does


# -- the end of the body --------------------------------------------------------------


@pytest.mark.parametrize("way", ["iterator", "late iterator"])
@pytest.mark.parametrize("chunks", [0, 1, 2], ids=["not at all", "in part", "to the end"])
def test_the_body_is_closed_once(make_site: MakeSite, way: str, chunks: int) -> None:
    """However far the server reads a body, the application's close() runs exactly once."""
    app = App(way, before=put(a=1))
    body = make_site(app=app).middleware(environment(), Answer().start_response)
    iterator = iter(body)
    for _ in range(chunks):
        next(iterator)
    body.close()  # type: ignore[attr-defined]  # as a server does
    del iterator, body
    assert [made.closed for made in app.bodies] == [1]


@pytest.mark.server_stores
@pytest.mark.parametrize("way", STREAMS)
def test_a_change_in_the_middle_of_a_body(make_site: MakeSite, way: str) -> None:
    """A server store keeps what a streamed body changed, from when the body is closed."""
    site = make_site(app=App(way, before=put(b=2), middle=put(c=3)))
    browser = site.browser(a=1)
    assert serve(site, browser).body == b"onetwo"
    assert dict(site.open(browser)) == {"a": 1, "b": 2, "c": 3}
    assert site.calls.count("update") == 2


@pytest.mark.server_stores
def test_a_session_first_used_in_the_middle_of_a_body(make_site: MakeSite) -> None:
    """A body may be the first to use its session, and to change it."""
    site = make_site(app=App("generator", middle=put(b=2)))
    browser = site.browser(a=1)
    answer = serve(site, browser)
    assert answer.headers == PLAIN
    assert dict(site.open(browser)) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_visitor_who_leaves_early(make_site: MakeSite) -> None:
    """What a body changed is kept when the visitor does not wait for its end."""
    app = App("generator", after=put(b=2))
    site = make_site(app=app)
    browser = site.browser(a=1)
    environ = environment(site.header(browser.cookie))
    body = site.middleware(environ, Answer().start_response)
    next(iter(body))
    body.close()  # type: ignore[attr-defined]  # as a server does
    assert dict(site.open(browser)) == {"a": 1, "b": 2}


@pytest.mark.parametrize("way", STREAMS)
def test_reading_in_the_middle_of_a_body(make_site: MakeSite, way: str) -> None:
    """A body may read its session to its end, saved or new, on every store."""
    read: list[object] = []
    site = make_site(app=App(way, before=put(b=2), middle=lambda s: read.append(dict(s))))
    for browser, expected in [(site.browser(a=1), {"a": 1, "b": 2}), (site.browser(), {"b": 2})]:
        serve(site, browser)
        assert read.pop() == expected


@pytest.mark.cookie_stores
@pytest.mark.parametrize("way", STREAMS)
def test_the_cookie_store_refuses_late_changes(make_site: MakeSite, way: str) -> None:
    """A change that needs a cookie is refused where it is made, once the headers have left."""
    site = make_site(app=App(way, before=put(b=2), middle=put(c=3)))
    browser = site.browser(a=1)
    with pytest.raises(HeadersSentError, match="before the response starts"):
        serve(site, browser)


@pytest.mark.parametrize("way", STREAMS)
def test_a_new_session_cannot_begin_late(make_site: MakeSite, way: str) -> None:
    """A visitor without a session cannot get one in the middle of a body, nor a row (R23)."""
    site = make_site(app=App(way, middle=put(c=3)))
    with pytest.raises(HeadersSentError):
        serve(site, site.browser())
    assert site.rows == 0


@pytest.mark.parametrize(
    "late",
    [
        lambda session: session.destroy(),
        lambda session: session.renew(),
        lambda session: session.bind("ann"),
    ],
    ids=["destroy", "renew", "bind"],
)
def test_the_id_cannot_change_late(make_site: MakeSite, late: Any) -> None:
    """Logout, renewal and login need a cookie on every store, so late ones are refused."""
    site = make_site(app=App("generator", middle=late))
    browser = site.browser(a=1)
    with pytest.raises(HeadersSentError):
        serve(site, browser)
    assert dict(site.open(browser)) == {"a": 1}


def test_binding_to_the_same_principal_late(make_site: MakeSite) -> None:
    """A bind() that changes nothing is never too late."""
    site = make_site(
        app=App("generator", before=lambda s: s.bind("ann"), middle=lambda s: s.bind("ann"))
    )
    assert serve(site, site.browser(a=1)).body == b"onetwo"


@pytest.mark.cookie_stores
@pytest.mark.parametrize(
    "save", [nothing, lambda session: session.save()], ids=["unsaved", "saved"]
)
@pytest.mark.parametrize("way", STREAMS)
def test_a_late_nested_change_is_not_lost_in_silence(
    make_site: MakeSite, way: str, save: Callable[[Session], None]
) -> None:
    """A late change inside a value, which no assignment shows, is an error and not a loss."""

    def change(session: Session) -> None:
        session["list"].append(2)
        save(session)

    site = make_site(app=App(way, before=put(list=[1]), middle=change))
    with pytest.raises(HeadersSentError):
        serve(site, site.browser())


# -- between start_response and return ------------------------------------------------


@pytest.mark.server_stores
@pytest.mark.parametrize("way", WAYS)
def test_a_change_after_start_response(make_site: MakeSite, way: str) -> None:
    """A server store keeps what changed between start_response() and the body."""
    site = make_site(app=App(way, after=put(b=2)))
    browser = site.browser(a=1)
    assert serve(site, browser).body == b"onetwo"
    assert dict(site.open(browser)) == {"a": 1, "b": 2}


@pytest.mark.cookie_stores
@pytest.mark.parametrize("way", WAYS)
def test_a_nested_change_after_start_response(make_site: MakeSite, way: str) -> None:
    """What needs a cookie is an error when it is found after start_response()."""
    site = make_site(app=App(way, before=put(a=[]), after=lambda session: session["a"].append(1)))
    with pytest.raises(HeadersSentError):
        serve(site, site.browser())


@pytest.mark.cookie_stores
def test_a_file_is_closed_when_its_request_fails(make_site: MakeSite) -> None:
    """A file whose request fails after start_response() is closed by nobody else, so here."""
    file = io.BytesIO(b"x")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[SESSION_KEY]["a"] = []
        start_response("200 OK", list(PLAIN))
        environ[SESSION_KEY]["a"].append(1)
        return FileWrapper(file)

    with pytest.raises(HeadersSentError):
        make_site(app=app).middleware(environment(), Answer().start_response)
    assert file.closed


# -- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("way", WAYS)
def test_a_server_error_saves_nothing(make_site: MakeSite, way: str, known: bool) -> None:
    """A 5xx response saves no change and sets no cookie."""
    site = make_site(app=App(way, before=put(b=[2]), after=lambda s: s.get("b"), status="500 Oops"))
    browser = site.browser(a=1) if known else site.browser()
    answer = serve(site, browser)
    assert answer.body == b"onetwo"
    assert answer.cookies == []
    assert dict(site.open(browser)) == ({"a": 1} if known else {})
    assert site.rows == (1 if known and site.store.revocable else 0)


@pytest.mark.parametrize("status", ["204 No Content", "302 Found", "404 Not Found", "499 Huh"])
def test_every_other_status_saves(make_site: MakeSite, status: str) -> None:
    """A response of any other status saves what changed."""
    site = make_site(app=App(before=put(b=2), status=status))
    browser = site.browser(a=1)
    serve(site, browser)
    assert dict(site.open(browser)) == {"a": 1, "b": 2}


def test_an_error_page_that_wants_no_session(make_site: MakeSite) -> None:
    """An error page may throw the unread session away: nothing is read or raised (R26)."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        del environ[SESSION_KEY]
        start_response("503 Maintenance", list(PLAIN))
        return [b"back soon"]

    site = make_site(app=app)
    answer = serve(site, site.browser(a=1))
    assert answer.headers == PLAIN
    assert site.chaos.calls == []


def test_what_was_saved_before_a_server_error(make_site: MakeSite) -> None:
    """What save() kept before a 5xx response has its cookie; what came after it is lost."""

    def before(session: Session) -> None:
        session["saved"] = 1
        session.save()
        session["unsaved"] = 2

    site = make_site(app=App(before=before, status="500 Oops"))
    browser = site.browser()
    serve(site, browser)
    assert dict(site.open(browser)) == {"saved": 1}


def _second_start(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    session = environ[SESSION_KEY]
    session["a"] = [1]
    start_response("200 OK", list(PLAIN))
    try:
        session["a"].append(2)
        fail(session)
    except ZeroDivisionError:
        start_response("500 Oops", list(PLAIN), sys.exc_info())
    return [b"sorry"]


def test_a_second_start_response(make_site: MakeSite) -> None:
    """An error page that replaces a response keeps the cookie of what that one had saved."""
    site = make_site(app=validator(_second_start))
    answer, errors = handle(validator(site.middleware))
    assert errors == ""
    assert answer.startswith("HTTP/1.0 500 Oops")
    (cookie,) = [line for line in answer.splitlines() if line.startswith("Set-Cookie: ")]
    header = cookie.removeprefix("Set-Cookie: ").partition(";")[0]
    assert dict(site.manager.open(header)) == {"a": [1]}


@pytest.mark.parametrize("way", ["list", *LATE])
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_an_exception_before_the_response(make_site: MakeSite, way: str, known: bool) -> None:
    """An exception passes through as it is, and nothing is saved."""

    def before(session: Session) -> None:
        session["b"] = 2
        fail(session)

    site = make_site(app=App(way, before=before))
    browser = site.browser(a=1) if known else site.browser()
    with pytest.raises(ZeroDivisionError):
        serve(site, browser)
    assert dict(site.open(browser)) == ({"a": 1} if known else {})
    assert site.rows == (1 if known and site.store.revocable else 0)


@pytest.mark.parametrize("way", STREAMS)
def test_an_exception_in_the_middle_of_a_body(make_site: MakeSite, way: str) -> None:
    """An exception in the middle of a body passes through, and the body is closed once."""
    app = App(way, before=put(b=2), middle=fail)
    site = make_site(app=app)
    with pytest.raises(ZeroDivisionError):
        serve(site, site.browser(a=1))
    assert all(body.closed == 1 for body in app.bodies)


# -- a store that does not answer -----------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["load", "update"])
def test_a_store_that_does_not_answer(make_site: MakeSite, way: str, method: str) -> None:
    """A store that cannot answer makes a 503, which tells and claims nothing (security 77)."""
    app = App(way, before=put(b=2))
    site = make_site(app=app)
    browser = site.browser(a=1)
    site.chaos.fail(method)
    answer = serve(site, browser)
    assert answer.status == "503 Service Unavailable"
    assert answer.body == b"Service Unavailable\n"
    assert answer.headers == [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", "20"),
        ("Cache-Control", "no-store"),
        ("Retry-After", "5"),
    ]
    assert all(body.closed == 1 for body in app.bodies)
    assert dict(site.open(browser)) == {"a": 1}
    assert site.events.names.count("StoreFailed") == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_new_session_that_cannot_be_saved(make_site: MakeSite, way: str) -> None:
    """A session that could not be created is a 503 and no cookie, whatever way one answers."""
    site = make_site(app=App(way, before=put(b=2)))
    site.chaos.fail("create")
    answer = serve(site, site.browser())
    assert answer.status == "503 Service Unavailable"
    assert answer.cookies == []


@pytest.mark.parametrize("way", WAYS)
def test_a_503_after_a_save(make_site: MakeSite, way: str) -> None:
    """What was saved before the store failed has its cookie beside the 503."""

    def before(session: Session) -> None:
        session.renew()
        session.save()
        session["b"] = 2
        site.chaos.fail("update")

    site = make_site(app=App(way, before=before))
    browser = site.browser(a=1)
    answer = serve(site, browser)
    assert answer.status == "503 Service Unavailable"
    (line,) = answer.cookies
    browser.cookie = line.partition(";")[0].partition("=")[2]
    assert dict(site.open(browser)) == {"a": 1}
    assert [value for name, value in answer.headers if name == "Cache-Control"] == ["no-store"]


@pytest.mark.parametrize("way", ["list", *LATE])
def test_the_503_keeps_to_the_protocol(make_site: MakeSite, way: str) -> None:
    """The standard's validator finds no fault with the 503 either."""
    site = make_site(app=validator(App(way, before=put(b=2))))
    site.chaos.fail("create")
    answer, errors = handle(validator(site.middleware))
    assert errors == ""
    assert answer.startswith("HTTP/1.0 503 Service Unavailable")


@pytest.mark.server_stores
@pytest.mark.parametrize("way", STREAMS)
def test_a_store_that_fails_in_the_middle_of_a_body(make_site: MakeSite, way: str) -> None:
    """A started response cannot become a 503: the error goes to the server."""
    site = make_site(app=App(way, middle=len))
    browser = site.browser(a=1)
    site.chaos.fail("load")
    with pytest.raises(StoreUnavailable):
        serve(site, browser)


@pytest.mark.server_stores
def test_a_store_that_fails_after_start_response(make_site: MakeSite) -> None:
    """An application that started its response gets no second one from the middleware."""
    site = make_site(app=App(after=len))
    browser = site.browser(a=1)
    site.chaos.fail("load")
    with pytest.raises(StoreUnavailable):
        serve(site, browser)


@pytest.mark.server_stores
def test_an_application_that_lives_without_its_session(make_site: MakeSite) -> None:
    """An application may catch the error and answer; the unknown session is not overwritten."""

    def before(session: Session) -> None:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                session["b"] = 2

    site = make_site(app=App(before=before))
    browser = site.browser(a=1)
    site.chaos.fail("load", 2)
    answer = serve(site, browser)
    assert answer.status == "200 OK"
    assert answer.cookies == []
    assert dict(site.open(browser)) == {"a": 1}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_broken_store_is_no_503(make_site: MakeSite) -> None:
    """A store that is broken, not late, is an error for whoever runs the site."""
    site = make_site(app=App(before=put(b=2)))
    browser = site.browser(a=1)
    assert site.database is not None
    with closing(sqlite3.connect(site.database)) as connection:
        connection.execute("DROP TABLE sessions")
    with pytest.raises(StoreError) as caught:
        serve(site, browser)
    assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.cookie_stores
@pytest.mark.parametrize("way", ["list", *LATE])
def test_a_cookie_that_is_too_large(make_site: MakeSite, way: str) -> None:
    """A cookie too large for browsers is an error before a header leaves (security 27, R17)."""
    site = make_site(app=App(way, before=put(large=os.urandom(4096))))
    browser = site.browser(a=1)
    answer = Answer()
    with pytest.raises(SessionTooLarge) as caught:
        list(site.middleware(environment(site.header(browser.cookie)), answer.start_response))
    assert caught.value.size > caught.value.limit == 4096
    assert answer.status == ""
    assert dict(site.open(browser)) == {"a": 1}


# -- requests -------------------------------------------------------------------------


def test_the_first_example() -> None:
    """The request of Werkzeug with a session counts a visitor's visits."""

    @Request.application
    def index(request: Request) -> Response:
        request.session["count"] = request.session.get("count", 0) + 1
        return Response(f"visit {request.session['count']}")

    client = Client(SessionMiddleware(index, SETTINGS))
    assert [client.get("/").text for _ in range(3)] == ["visit 1", "visit 2", "visit 3"]


def test_a_request_class_of_ones_own(make_site: MakeSite) -> None:
    """The mixin gives any request class the session of its environ."""

    class OwnRequest(SessionMixin, PlainRequest):
        pass

    environ = environment()
    make_site(app=App()).middleware(environ, Answer().start_response)
    assert OwnRequest(environ).session is environ[SESSION_KEY]


def test_a_request_outside_the_middleware() -> None:
    """A request without the middleware says what is missing."""
    with pytest.raises(
        RuntimeError, match=r"wrap the application in tieredsession\.SessionMiddleware"
    ):
        _ = Request({}).session


def test_werkzeug_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Werkzeug the adapter says how to install it."""
    monkeypatch.setitem(sys.modules, "werkzeug.wrappers", None)
    monkeypatch.delitem(sys.modules, "tieredsession.adapters.werkzeug", raising=False)
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[werkzeug\]"'):
        importlib.import_module("tieredsession.adapters.werkzeug")


# -- several sessions, several sources of settings ------------------------------------


def test_two_sessions_in_one_request(make_site: MakeSite) -> None:
    """Sessions of different cookie names in one request do not touch each other (lineage 84)."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        outer, inner = environ["test.outer"], environ[SESSION_KEY]
        outer["who"], inner["who"] = outer.get("who", 0) + 1, inner.get("who", 10) + 10
        start_response("200 OK", list(PLAIN))
        return [f"{outer['who']} {inner['who']}".encode()]

    inner = make_site(app=app, SESSION_COOKIE_NAME="__Host-inner")

    def between(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["test.outer"] = environ[SESSION_KEY]
        return inner.middleware(environ, start_response)

    outer = make_site(app=between, SESSION_COOKIE_NAME="__Host-outer")
    client = Client(outer.middleware)
    first = client.get("/")
    assert sorted(line[:12] for line in first.headers.getlist("Set-Cookie")) == [
        "__Host-inner",
        "__Host-outer",
    ]
    assert first.headers.getlist("Vary") == ["Cookie"]
    assert [first.text, client.get("/").text, client.get("/").text] == ["1 20", "2 30", "3 40"]
    client.delete_cookie("__Host-outer")
    assert client.get("/").text == "1 50"


def test_settings_and_what_goes_before_them() -> None:
    """A Settings object may be given, and keywords go before what it says (lineage 68)."""
    middleware = SessionMiddleware(
        App(before=put(a=1)),
        Settings(SETTINGS),
        SESSION_COOKIE_PATH="/app",
        COOKIE_NAME="__Secure-s",
    )
    line = Client(middleware).get("/app").headers["Set-Cookie"]
    assert line.startswith("__Secure-s=")
    assert "; Path=/app;" in line


@pytest.mark.parametrize("kind", ["cookie-signed", "cookie-encrypted", "sqlite"])
def test_a_secret_as_text_or_bytes(make_site: MakeSite) -> None:
    """A secret given as bytes opens what the same secret given as text sealed (lineage 62)."""
    text, raw = make_site(), make_site(SECRET_KEY=SETTINGS["SECRET_KEY"].encode())
    assert dict(raw.open(text.browser(a=1))) == {"a": 1}


# -- plain http -----------------------------------------------------------------------


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("peer", "warned"),
    [
        ("203.0.113.9", True),
        ("2001:db8::1", True),
        ("not an address", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("", False),
    ],
)
def test_plain_http_from_elsewhere(
    caplog: pytest.LogCaptureFixture, peer: str, warned: bool
) -> None:
    """Without Secure, the first request from another machine is logged, and no other."""
    middleware = SessionMiddleware(App(), SETTINGS, SESSION_COOKIE_SECURE=False)
    for address in ("127.0.0.1", peer, peer):
        middleware(environment(REMOTE_ADDR=address), Answer().start_response)
    assert len(_warnings(caplog)) == warned
    assert all(
        "SESSION_COOKIE_SECURE is False" in line and peer in line for line in _warnings(caplog)
    )


def test_plain_http_over_a_local_socket(caplog: pytest.LogCaptureFixture) -> None:
    """Of a server that names no peer at all, as on a local socket, nobody is warned."""
    environ = environment()
    assert "REMOTE_ADDR" not in environ
    SessionMiddleware(App(), SETTINGS, SESSION_COOKIE_SECURE=False)(
        environ, Answer().start_response
    )
    assert _warnings(caplog) == []


def test_secure_cookies_watch_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """With Secure there is nothing to warn of."""
    middleware = SessionMiddleware(App(), SETTINGS)
    middleware(environment(REMOTE_ADDR="203.0.113.9"), Answer().start_response)
    assert _warnings(caplog) == []


@pytest.mark.parametrize("name", ["K_SERVICE", "GAE_ENV"])
def test_plain_http_in_the_cloud(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without Secure, a start on Cloud Run or App Engine is logged."""
    SessionMiddleware(App(), SETTINGS, SESSION_COOKIE_SECURE=False)
    assert _warnings(caplog) == []
    monkeypatch.setenv(name, "shop")
    SessionMiddleware(App(), SETTINGS)
    assert _warnings(caplog) == []
    SessionMiddleware(App(), SETTINGS, SESSION_COOKIE_SECURE=False)
    assert len(_warnings(caplog)) == 1
    assert "cloud" in _warnings(caplog)[0]
