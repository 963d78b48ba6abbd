"""Pyramid's sessions: what ``ISession`` asks for, and what Pyramid does around it."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from pyramid import testing
from pyramid.authentication import SessionAuthenticationHelper
from pyramid.config import Configurator
from pyramid.csrf import (
    LegacySessionCSRFStoragePolicy,
    SessionCSRFStoragePolicy,
    get_csrf_token,
    new_csrf_token,
)
from pyramid.events import NewResponse
from pyramid.exceptions import ConfigurationConflictError
from pyramid.httpexceptions import HTTPBadRequest, HTTPFound, HTTPInternalServerError
from pyramid.interfaces import ISession, ISessionFactory
from pyramid.request import Request
from pyramid.response import FileIter, Response
from pyramid.security import forget, remember
from werkzeug.test import Client, TestResponse
from werkzeug.wsgi import FileWrapper
from zope.interface.verify import verifyObject

from tieredsession import (
    ConfigurationError,
    HeadersSentError,
    MissingDependencyError,
    SessionTooLarge,
    Settings,
    StoreUnavailable,
)
from tieredsession.adapters.pyramid import (
    INI_NAMES,
    PyramidSession,
    SessionFactory,
    SessionUnavailable,
    session_factory,
)
from tieredsession.cookies import MAX_LINE
from tieredsession.settings import SETTINGS

if TYPE_CHECKING:
    from conftest import MakeSite, Site

SECRET = "a long enough text, for tests alone: 0123456789"

View = Callable[[Any], Any]


class Pages:
    """A Pyramid application over the store of *site*, whose page is the view of each visit.

    The view gets the request. What it answers is the response, if it is one, and else in
    ``result``; the response is then ``request.response``. *configure* gets the Configurator.
    """

    def __init__(
        self, site: Site, configure: Callable[[Any], object] | None = None, **options: Any
    ) -> None:
        self.site = site
        self.factory = session_factory(
            site.settings, store=site.store, observers=[site.events], clock=site.clock
        )
        config = Configurator(session_factory=self.factory, **options)
        config.add_view(self._page)
        if configure is not None:
            configure(config)
        self.app = config.make_wsgi_app()
        self.result: Any = None

    def _page(self, request: Any) -> Any:
        self.result = request.environ["test.view"](request)
        if request.is_response(self.result):
            return self.result
        request.response.text = "page"
        return request.response

    def visitor(self, **data: Any) -> Visitor:
        """A browser; one that has been here before if there is *data* to its session."""
        visitor = Visitor(self)
        if data:
            visitor.cookie = self.site.browser(**data).cookie
        return visitor


class Visitor:
    """A browser with a cookie jar."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.client = Client(pages.app)

    @property
    def cookie(self) -> str:
        """The token in the jar, empty if there is none."""
        cookie = self.client.get_cookie(self.pages.site.cookie_name)
        return "" if cookie is None else cookie.value

    @cookie.setter
    def cookie(self, token: str) -> None:
        self.client.set_cookie(self.pages.site.cookie_name, token)

    def visit(self, view: View, **request: Any) -> TestResponse:
        """A request that *view* answers."""
        request.setdefault("method", "GET")
        environ = {"test.view": view, **request.pop("environ", {})}
        return self.client.open(environ_overrides=environ, buffered=True, **request)

    def ask(self, view: View) -> Any:
        """What *view* finds out."""
        self.visit(view)
        return self.pages.result

    def data(self) -> dict[str, Any]:
        """What the session holds when a page looks at it."""
        data: dict[str, Any] = self.ask(lambda request: request.session.copy())
        return data

    def thief(self) -> Visitor:
        """Another browser, with a copy of this one's cookie."""
        other = Visitor(self.pages)
        other.cookie = self.cookie
        return other


@pytest.fixture
def pages(site: Site) -> Pages:
    """The application with nothing configured but the session factory."""
    return Pages(site)


@pytest.fixture
def visitor(pages: Pages) -> Visitor:
    """A new browser."""
    return pages.visitor()


def put(**data: Any) -> View:
    """A view that adds *data* to the session."""
    return lambda request: request.session.update(data)


def count(request: Any) -> int:
    """A view that counts visits."""
    session = request.session
    session["count"] = session.get("count", 0) + 1
    number: int = session["count"]
    return number


# -- a dict that lasts ----------------------------------------------------------------


@pytest.mark.any_store
def test_the_interfaces(pages: Pages) -> None:
    """A session is an ``ISession`` and its factory an ``ISessionFactory``, methods and all."""
    session = pages.factory(Request.blank("/"))
    assert verifyObject(ISession, session)
    assert verifyObject(ISessionFactory, pages.factory)
    for name in ("new_csrf_token", "get_csrf_token"):  # of ISession before 1.9
        assert callable(getattr(session, name))


def test_visits_are_counted(visitor: Visitor) -> None:
    """What a view keeps in the session is there at the next visit of that browser alone."""
    assert [visitor.ask(count) for _ in range(3)] == [1, 2, 3]
    assert visitor.pages.visitor().ask(count) == 1


def test_an_untouched_session_costs_nothing(pages: Pages) -> None:
    """A page that asks for the session and does nothing with it reads nothing and sets nothing."""
    visitor = pages.visitor(a=1)
    for view in (lambda request: None, lambda request: request.session):
        response = visitor.visit(view)
        assert set(response.headers.keys()) == {"Content-Type", "Content-Length"}
    assert pages.site.calls == []


def test_a_touched_session_varies(pages: Pages) -> None:
    """A page that read the session varies on the cookie; one with a cookie is private."""
    visitor = pages.visitor(a=1)
    response = visitor.visit(lambda request: request.session.get("a"))
    assert response.headers["Vary"] == "Cookie"
    assert "Cache-Control" not in response.headers

    def view(request: Any) -> None:
        request.response.cache_control.public = True
        request.response.vary = ["Accept"]
        request.session["b"] = 1

    response = pages.visitor().visit(view)
    assert response.headers["Vary"] == "Accept, Cookie"
    assert response.headers["Cache-Control"] == "private"


def test_a_change_inside_a_value_is_found(visitor: Visitor) -> None:
    """A value that is changed in place is saved, and nobody has to call changed()."""
    visitor.visit(put(cart=[1]))
    visitor.visit(lambda request: request.session["cart"].append(2))
    assert visitor.data() == {"cart": [1, 2]}


def test_changed_saves_in_any_case(pages: Pages) -> None:
    """changed() saves a session that is as it was."""
    visitor = pages.visitor(a=1)
    visitor.visit(lambda request: request.session["a"])
    assert pages.site.events.names == []
    visitor.visit(lambda request: request.session.changed())
    assert pages.site.events.names == ["SessionSaved"]


def test_created_is_an_integer_that_stays(pages: Pages) -> None:
    """``created`` is a whole number of seconds, the same in the first request as ever after."""
    visitor = pages.visitor()

    def view(request: Any) -> int:
        created: int = request.session.created
        pages.site.clock.advance(60)  # before it is saved
        request.session["a"] = 1
        return created

    created = visitor.ask(view)
    assert type(created) is int
    pages.site.clock.advance(3600)
    assert visitor.ask(lambda request: request.session.created) == created
    assert visitor.ask(lambda request: type(request.session.created)) is int


def test_asking_for_created_makes_no_session(visitor: Visitor) -> None:
    """A new session that was only looked at is not saved."""
    response = visitor.visit(lambda request: (request.session.created, request.session.new))
    assert visitor.pages.result == (int(visitor.pages.site.clock()), True)
    assert "Set-Cookie" not in response.headers


def test_new_until_it_is_saved(visitor: Visitor) -> None:
    """``new`` is true until the browser comes back with the session's cookie."""
    visitor.visit(put(a=1))
    assert visitor.ask(lambda request: request.session.new) is False


# -- its life -------------------------------------------------------------------------


@pytest.mark.server_stores
def test_invalidate_ends_the_session(pages: Pages) -> None:
    """invalidate() deletes the data and the cookie, and a copy of that opens nothing."""
    visitor = pages.visitor(a=1)
    thief = visitor.thief()
    visitor.visit(lambda request: request.session.invalidate())
    assert visitor.cookie == ""
    assert thief.data() == {}
    assert pages.site.rows == 0


def test_an_invalidated_session_may_be_used(pages: Pages) -> None:
    """What is assigned after invalidate() is kept in another session."""
    visitor = pages.visitor(a=1)
    before = visitor.cookie

    def view(request: Any) -> None:
        request.session.invalidate()
        request.session["b"] = 2

    visitor.visit(view)
    assert visitor.cookie not in ("", before)
    assert visitor.data() == {"b": 2}


class _Policy:
    """A security policy as Pyramid's documentation shows it."""

    def __init__(self) -> None:
        helper = SessionAuthenticationHelper()
        self.authenticated_userid = helper.authenticated_userid
        self.remember = helper.remember
        self.forget = helper.forget

    def identity(self, request: Any) -> Any:
        return self.authenticated_userid(request)

    def permits(self, request: Any, context: Any, permission: str) -> bool:
        return self.authenticated_userid(request) is not None


@pytest.mark.parametrize("change", ["bind", "renew", "nothing"])
def test_login_and_logout(site: Site, change: str) -> None:
    """With Pyramid's own remember and forget, login changes the id and logout ends the session."""
    pages = Pages(site, security_policy=_Policy())
    visitor = pages.visitor(cart=["tea"])
    anonymous = visitor.thief()

    def login(request: Any) -> None:
        if change == "bind":
            request.session.bind("ada")
        if change == "renew":
            request.session.renew()
        request.response.headerlist.extend(remember(request, "ada"))

    def logout(request: Any) -> Any:
        headers = forget(request)
        request.session.invalidate()
        return HTTPFound("/", headers=headers)

    visitor.visit(login)
    assert visitor.cookie != anonymous.cookie
    assert visitor.ask(lambda request: request.authenticated_userid) == "ada"
    assert visitor.ask(lambda request: request.session["cart"]) == ["tea"]
    if site.store.revocable:
        assert anonymous.data() == {}
    thief = visitor.thief()
    visitor.visit(logout)
    assert visitor.cookie == ""
    assert visitor.ask(lambda request: request.is_authenticated) is False
    if site.store.revocable:
        assert thief.ask(lambda request: request.is_authenticated) is False


def test_forgetting_alone(site: Site) -> None:
    """Pyramid's forget() takes the user out of a session and leaves the rest."""
    pages = Pages(site, security_policy=_Policy())
    visitor = pages.visitor(cart=["tea"])
    visitor.visit(lambda request: remember(request, "ada") and None)
    visitor.visit(lambda request: forget(request) and None)
    assert visitor.data() == {"cart": ["tea"]}


def test_whose_session_it_is(site: Site) -> None:
    """A session is its user's from remember() to forget(), by the name that it was bound to."""
    visitor = Pages(site, security_policy=_Policy()).visitor(cart=["tea"])

    def owner(request: Any) -> Any:
        return request.session.principal

    visitor.visit(lambda request: remember(request, 7) and None)
    assert visitor.ask(owner) == "7"
    visitor.visit(lambda request: forget(request) and None)
    assert visitor.ask(owner) is None

    def login(request: Any) -> None:
        remember(request, 7)
        request.session.bind("user 7")

    visitor.visit(login)
    assert visitor.ask(owner) == "user 7"
    assert visitor.data() == {"cart": ["tea"], "auth.userid": 7}

    def two_logins(request: Any) -> None:
        request.session.invalidate()
        login(request)
        request.session.bind("another")

    visitor.visit(two_logins)
    assert visitor.ask(owner) == "another"
    assert visitor.data() == {}


# -- flash messages -------------------------------------------------------------------


def test_flash_messages_wait_until_they_are_popped(visitor: Visitor) -> None:
    """Messages come in their order and of their queue alone, and are gone once popped."""

    def view(request: Any) -> None:
        request.session.flash("one")
        request.session.flash({"two": 2})
        request.session.flash("other", "errors")

    visitor.visit(view)
    assert visitor.ask(lambda request: request.session.peek_flash()) == ["one", {"two": 2}]
    assert visitor.ask(lambda request: request.session.pop_flash()) == ["one", {"two": 2}]
    assert visitor.ask(lambda request: request.session.pop_flash()) == []
    assert visitor.ask(lambda request: request.session.peek_flash("errors")) == ["other"]
    assert visitor.ask(lambda request: request.session.pop_flash(queue="errors")) == ["other"]
    assert visitor.data() == {}


def test_a_flash_message_twice(visitor: Visitor) -> None:
    """The same message waits twice, unless ``allow_duplicate`` is false."""

    def view(request: Any) -> None:
        flash = request.session.flash
        flash("once", "q", False)
        flash("once", "q", allow_duplicate=False)
        flash("twice", "r")
        flash("twice", "r", True)

    visitor.visit(view)
    assert visitor.ask(lambda request: request.session.pop_flash("q")) == ["once"]
    assert visitor.ask(lambda request: request.session.pop_flash("r")) == ["twice", "twice"]


@pytest.mark.one_of_each
def test_an_empty_flash_queue(pages: Pages) -> None:
    """Popping a queue that is empty saves nothing."""
    visitor = pages.visitor(a=1)
    visitor.visit(lambda request: request.session.pop_flash())
    assert pages.site.events.names == []


# -- cross-site request forgery -------------------------------------------------------

POLICIES = [LegacySessionCSRFStoragePolicy, SessionCSRFStoragePolicy]


def _guarded(site: Site, policy: type) -> Pages:
    def configure(config: Any) -> None:
        config.set_csrf_storage_policy(policy())
        config.set_default_csrf_options(require_csrf=True, check_origin=False)

    return Pages(site, configure)


@pytest.mark.one_of_each
@pytest.mark.parametrize("policy", POLICIES)
def test_csrf_tokens(site: Site, policy: type) -> None:
    """Under either of Pyramid's session policies a form needs the token of its own session."""
    visitor = _guarded(site, policy).visitor()

    def post(token: str) -> int:
        form = {"csrf_token": token}
        return visitor.visit(lambda request: None, method="POST", data=form).status_code

    token = visitor.ask(get_csrf_token)
    assert visitor.ask(get_csrf_token) == token
    assert post(token) == 200
    assert post("") == post("x" + token) == post(token[1:]) == 400
    fresh = visitor.ask(new_csrf_token)
    assert fresh != token
    assert post(token) == 400
    assert post(fresh) == 200


@pytest.mark.one_of_each
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("change", ["renew", "bind"])
def test_a_new_id_has_a_new_csrf_token(site: Site, policy: type, change: str) -> None:
    """A token from before the login is worth nothing after it, under either policy."""
    visitor = _guarded(site, policy).visitor()
    token = visitor.ask(get_csrf_token)
    if change == "bind":
        visitor.visit(lambda request: request.session.bind("ada"))
    else:
        visitor.visit(lambda request: request.session.renew())
    assert visitor.ask(get_csrf_token) != token


# -- which response saves -------------------------------------------------------------


def _raise(error: Exception) -> Any:
    raise error


RESPONSES: dict[str, View] = {
    "request.response": lambda request: None,
    "another": lambda request: Response("other"),
    "returned exception": lambda request: HTTPFound("/"),
    "raised redirect": lambda request: _raise(HTTPFound("/")),
    "raised 4xx": lambda request: _raise(HTTPBadRequest()),
    "exception view": lambda request: _raise(LookupError("an application's own")),
}


def _lookup_error(config: Any) -> None:
    config.add_exception_view(lambda error, request: Response("lost"), context=LookupError)


@pytest.mark.one_of_each
@pytest.mark.parametrize("way", RESPONSES)
def test_every_response_saves(site: Site, way: str) -> None:
    """Whichever response it comes to, changes are saved, and its body is what it was."""
    visitor = Pages(site, _lookup_error).visitor()
    plain = visitor.visit(RESPONSES[way])

    def view(request: Any) -> Any:
        request.session["a"] = 1
        return RESPONSES[way](request)

    response = visitor.visit(view)
    assert "Set-Cookie" in response.headers
    assert (response.status, response.data) == (plain.status, plain.data)
    assert response.content_length == len(response.data) > 0
    assert visitor.data() == {"a": 1}


FAILURES: dict[str, View] = {
    "returned": lambda request: HTTPInternalServerError(),
    "raised": lambda request: _raise(HTTPInternalServerError()),
    "exception view": lambda request: _raise(LookupError("an application's own")),
}


def _server_error(config: Any) -> None:
    def view(error: Any, request: Any) -> Any:
        request.response.status = 500
        return request.response

    config.add_exception_view(view, context=LookupError)


@pytest.mark.one_of_each
@pytest.mark.parametrize("way", FAILURES)
def test_a_server_error_saves_nothing(site: Site, way: str) -> None:
    """A response of 5xx saves no change and sets no cookie, wherever it comes from."""
    visitor = Pages(site, _server_error).visitor(a=1)

    def view(request: Any) -> Any:
        request.session["a"] = 2
        return FAILURES[way](request)

    response = visitor.visit(view)
    assert response.status_code == 500
    assert "Set-Cookie" not in response.headers
    assert visitor.data() == {"a": 1}


@pytest.mark.one_of_each
def test_an_exception_that_nobody_answers(pages: Pages) -> None:
    """An exception without a view goes on to the server, and nothing is saved."""
    visitor = pages.visitor(a=1)

    def view(request: Any) -> Any:
        request.session["a"] = 2
        raise LookupError("an application's own")

    with pytest.raises(LookupError):
        visitor.visit(view)
    assert visitor.data() == {"a": 1}


def test_a_later_callback_may_change_the_session(visitor: Visitor) -> None:
    """What another response callback changes is saved, although it was added later."""

    def callback(request: Any, response: Any) -> None:
        request.session["late"] = response.status_code

    def view(request: Any) -> None:
        request.session["a"] = 1
        request.add_response_callback(callback)

    visitor.visit(view)
    assert visitor.data() == {"a": 1, "late": 200}


def test_two_that_want_to_be_the_last(visitor: Visitor) -> None:
    """A callback that lets all others go first does not wait for ours for ever, nor we for it."""
    turns: list[int] = []

    def rival(request: Any, response: Any) -> None:
        turns.append(len(request.response_callbacks))
        if request.response_callbacks and len(turns) < 10:
            request.add_response_callback(rival)

    def view(request: Any) -> None:
        request.session["a"] = 1
        request.add_response_callback(rival)

    visitor.visit(view)
    assert turns == [1, 0]
    assert visitor.data() == {"a": 1}


def test_a_callback_may_be_the_first_to_ask(visitor: Visitor) -> None:
    """A session that is first asked for in a response callback is saved."""

    def callback(request: Any, response: Any) -> None:
        request.session["a"] = 1

    visitor.visit(lambda request: request.add_response_callback(callback))
    assert visitor.data() == {"a": 1}


def test_a_tween_may_be_the_first_to_ask(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tween changes after the view is saved, whoever asked for the session first."""

    def tween(handler: Any, registry: Any) -> Any:
        def handle(request: Any) -> Any:
            response = handler(request)
            request.session["tween"] = response.status_code
            return response

        return handle

    module = ModuleType("tweens_of_a_test")
    vars(module)["tween"] = tween
    monkeypatch.setitem(sys.modules, module.__name__, module)  # tweens have dotted names
    visitor = Pages(site, lambda config: config.add_tween(f"{module.__name__}.tween")).visitor()
    visitor.visit(lambda request: None)
    assert visitor.data() == {"tween": 200}


def test_what_changes_after_the_save(site: Site) -> None:
    """A subscriber of NewResponse that changes the session gets an error, not silence."""

    def subscriber(event: Any) -> None:
        event.request.session["late"] = 1

    visitor = Pages(site, lambda config: config.add_subscriber(subscriber, NewResponse)).visitor()
    for view in (put(a=1), lambda request: None):
        with pytest.raises(HeadersSentError, match="before the response starts"):
            visitor.visit(view)


@pytest.mark.one_of_each
def test_a_subrequest_has_a_session_of_its_own(pages: Pages) -> None:
    """What a subrequest changes is saved with its own response."""
    visitor = pages.visitor(a=1)

    def view(request: Any) -> Any:
        inner = Request.blank("/", environ={"test.view": put(b=2)}, cookies=request.cookies)
        return request.invoke_subrequest(inner, use_tweens=True)

    visitor.visit(view)
    assert visitor.data() == {"a": 1, "b": 2}


# -- streamed bodies ------------------------------------------------------------------


def _stream(*steps: Callable[[], object]) -> Iterator[bytes]:
    for step in steps:
        step()
        yield b"chunk"


@pytest.mark.server_stores
@pytest.mark.parametrize("touched", [True, False], ids=["touched", "asked for"])
def test_a_change_while_streaming(pages: Pages, touched: bool) -> None:
    """What a stream changes is saved at its end, and its length is still declared."""
    visitor = pages.visitor(a=[])

    def view(request: Any) -> Any:
        session = request.session
        if touched:
            session["b"] = 1
        body = _stream(lambda: session["a"].append(1), lambda: session.update(c=1))
        return Response(app_iter=body, content_length=10)

    response = visitor.visit(view)
    assert response.data == b"chunkchunk"
    assert response.content_length == 10
    assert visitor.data() == {"a": [1], "c": 1, **({"b": 1} if touched else {})}


@pytest.mark.cookie_stores
def test_a_change_while_streaming_that_needs_a_cookie(pages: Pages) -> None:
    """A stream that changes what lives in the cookie gets an error."""
    visitor = pages.visitor(a=1)

    def view(request: Any) -> Any:
        session = request.session
        return Response(app_iter=_stream(lambda: session.update(a=2)))

    with pytest.raises(HeadersSentError):
        visitor.visit(view)
    assert visitor.data() == {"a": 1}


@pytest.mark.server_stores
def test_a_stream_of_a_server_error(pages: Pages) -> None:
    """What the stream of a 5xx response changes is not saved."""
    visitor = pages.visitor(a=1)

    def view(request: Any) -> Any:
        session = request.session
        return Response(app_iter=_stream(lambda: session.update(a=2)), status=500)

    visitor.visit(view)
    assert visitor.data() == {"a": 1}


def test_a_stream_that_asks_first(pages: Pages) -> None:
    """A session that is first asked for in a stream can be read, and not be changed."""
    visitor = pages.visitor(a=1)
    seen: list[Any] = []

    def reading(request: Any) -> Any:
        steps = (
            lambda: seen.append(request.session["a"]),
            lambda: seen.append(request.session.headers_sent),
        )
        return Response(app_iter=_stream(*steps))

    def changing(request: Any) -> Any:
        return Response(app_iter=_stream(lambda: request.session.update(a=2)))

    visitor.visit(reading)
    assert seen == [1, True]
    with pytest.raises(HeadersSentError, match=r"use request\.session in the view"):
        visitor.visit(changing)
    assert visitor.data() == {"a": 1}


@pytest.mark.any_store
def test_a_body_that_is_closed(pages: Pages) -> None:
    """A streamed body is closed, also when the visitor wants nothing but its headers."""
    for method in ("GET", "HEAD"):
        file = io.BytesIO(b"text")

        def view(request: Any, file: io.BytesIO = file) -> Any:
            request.session["a"] = request.method
            return Response(app_iter=FileIter(file))

        pages.visitor().visit(view, method=method)
        assert file.closed


@pytest.mark.any_store
def test_the_file_wrapper_of_the_server(pages: Pages) -> None:
    """A body in the server's own wrapper reaches the server as it is, so that it may sendfile."""
    visitor = pages.visitor(a=1)
    sent: list[Any] = []

    def server(environ: Any, start_response: Any) -> Any:
        body = pages.app(environ, start_response)
        sent.append(type(body))
        return body

    def view(request: Any) -> Any:
        request.session["b"] = 1
        return Response(app_iter=request.environ["wsgi.file_wrapper"](io.BytesIO(b"text")))

    visitor.client = Client(server)
    assert visitor.visit(view, environ={"wsgi.file_wrapper": FileWrapper}).data == b"text"
    assert sent == [FileWrapper]


# -- stores that do not answer --------------------------------------------------------


def test_a_store_that_cannot_be_read(site: Site) -> None:
    """A visitor whose session cannot be read gets 503, no cookie, and no word of the reason."""
    site.chaos.fail("load")
    pages = Pages(site)
    visitor = pages.visitor()
    visitor.cookie = "x" * 32
    response = visitor.visit(count)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers
    assert "load" not in response.text
    assert site.events.names == ["StoreFailed"]


def test_a_store_that_cannot_be_written(pages: Pages) -> None:
    """A redirect whose session cannot be saved becomes 503, and nothing of it is left."""
    visitor = pages.visitor(a=1)
    file = io.BytesIO(b"done")

    def view(request: Any) -> Any:
        request.session["a"] = 2
        response = HTTPFound("/done", headers=[("X-Done", "yes")])
        response.app_iter = FileIter(file)
        return response

    pages.site.chaos.fail("update")
    response = visitor.visit(view)
    assert response.status_code == 503
    assert set(response.headers.keys()) == {
        *("Content-Type", "Content-Length", "Cache-Control", "Retry-After")
    }
    assert "unavailable" in response.text
    assert response.content_length == len(response.data)
    assert file.closed
    assert visitor.data() == {"a": 1}


def test_a_save_in_the_view_that_fails(pages: Pages) -> None:
    """A save() that fails in the view raises what is answered with 503."""
    visitor = pages.visitor(a=1)

    def view(request: Any) -> None:
        request.session["a"] = 2
        request.session.save()

    pages.site.chaos.fail("update")
    assert visitor.visit(view).status_code == 503
    assert visitor.data() == {"a": 1}


@pytest.mark.one_of_each
def test_a_503_after_a_save(pages: Pages) -> None:
    """What was saved before the store failed has its cookie beside the 503."""
    visitor = pages.visitor(a=1)

    def view(request: Any) -> None:
        request.session.renew()
        request.session.save()
        request.session["a"] = 2
        pages.site.chaos.fail("update")

    response = visitor.visit(view)
    assert response.status_code == 503
    assert response.headers["Cache-Control"] == "no-store"
    assert visitor.data() == {"a": 1}


@pytest.mark.one_of_each
@pytest.mark.parametrize("call", ["load", "update"])
def test_an_exception_view_of_ones_own(site: Site, call: str) -> None:
    """An exception view for StoreUnavailable answers both reading and saving, and may use flash."""
    seen: list[Exception] = []

    def view(error: Exception, request: Any) -> Any:
        seen.append(error)
        if call == "update":
            request.session.flash("in vain")
        return Response("back soon", status=503, headers={"X-Own": "yes"})

    def configure(config: Any) -> None:
        config.add_exception_view(view, context=StoreUnavailable)

    visitor = Pages(site, configure).visitor(count=1)
    site.chaos.fail(call)
    response = visitor.visit(count)
    assert (response.status_code, response.data) == (503, b"back soon")
    assert response.headers["X-Own"] == "yes"
    assert "Set-Cookie" not in response.headers
    (error,) = seen
    assert isinstance(error, SessionUnavailable)
    assert str(error) == f"{call} was made to fail"
    assert isinstance(error.__cause__, StoreUnavailable)
    assert visitor.data() == {"count": 1}


@pytest.mark.any_store
def test_without_any_exception_view(site: Site) -> None:
    """A failed save is 503 even where the application has switched exception views off."""
    visitor = Pages(site, exceptionresponse_view=None).visitor(count=1)
    site.chaos.fail("update")
    assert visitor.visit(count).status_code == 503


@pytest.mark.cookie_stores
def test_too_much_for_a_cookie(pages: Pages) -> None:
    """A session that outgrows its cookie is an error that goes to the server, as Pyramid's does."""
    noise = "".join(chr(0x4E00 + number) for number in range(MAX_LINE))
    with pytest.raises(SessionTooLarge):
        pages.visitor().visit(put(a=noise))


# -- settings -------------------------------------------------------------------------


def _included(**settings: Any) -> Any:
    with testing.testConfig(settings=settings) as config:
        config.include("tieredsession.adapters.pyramid")
        return config.registry.getUtility(ISessionFactory)


def test_an_ini_file_names_settings() -> None:
    """Includeme reads each setting by its ini name and as text."""
    settings = {
        "pyramid.debug_all": "false",
        "session.secret_key": SECRET,
        "session.store": "tieredsession.stores.MemorySessionStore",
        "session.cookie_age": "3600",
        "session.cookie_secure": "false",
        "session.cookie_name": "visitor",
    }
    manager = _included(**settings).manager
    assert type(manager.store).__name__ == "MemorySessionStore"
    assert manager.lifetimes.idle == 3600
    assert manager.cookie.name == "visitor"
    assert "Secure" not in manager.cookie.expire()


def test_upper_case_names() -> None:
    """Includeme reads the names that are used everywhere else, too."""
    manager = _included(SECRET_KEY=SECRET, SESSION_COOKIE_AGE=60).manager
    assert manager.lifetimes.idle == 60


def test_the_environment_is_under_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Includeme takes from the environment what the ini file does not say, and nothing else."""
    monkeypatch.setenv("SECRET_KEY", SECRET)
    monkeypatch.setenv("SESSION_COOKIE_AGE", "60")
    monkeypatch.setenv("SESSION_COOKIE_NAME", "visitor")
    manager = _included(**{"session.cookie_age": "90"}).manager
    assert (manager.lifetimes.idle, manager.cookie.name) == (90, "visitor")


def test_a_factory_by_hand_reads_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """session_factory(settings) reads the mapping of main(), keywords before it."""
    monkeypatch.setenv("SESSION_COOKIE_AGE", "60")
    settings = {"session.secret_key": SECRET, "session.refresh": "0.5"}
    lifetimes = session_factory(settings, SESSION_ABSOLUTE_AGE=10**8).manager.lifetimes
    assert (lifetimes.idle, lifetimes.refresh) == (14 * 24 * 3600, 0.5)
    assert lifetimes.absolute == 10**8
    ready = Settings(SECRET_KEY=SECRET)
    assert session_factory(ready).manager.lifetimes.idle == 60
    assert session_factory(ready, SESSION_COOKIE_AGE=90).manager.lifetimes.idle == 90


def test_a_factory_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """session_factory() reads the environment."""
    monkeypatch.setenv("SECRET_KEY", SECRET)
    monkeypatch.setenv("SESSION_COOKIE_AGE", "60")
    assert session_factory().manager.lifetimes.idle == 60


def test_every_setting_has_an_ini_name() -> None:
    """Each setting has an ini name of its own, behind the same prefix."""
    assert set(INI_NAMES.values()) == {setting.name for setting in SETTINGS}
    assert all(name.startswith("session.") and name.islower() for name in INI_NAMES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"session.stoer": "x"}, r"session\.stoer is not a setting: did you mean session\.store\?"),
        ({"session.type": "file"}, r"session\.type is not a setting"),
        ({"session.": "x"}, r"session\. is not a setting"),
        ({"session.STORE": "x"}, r"session\.STORE is not a setting"),
        ({"SESSION_STOER": "x"}, "SESSION_STOER is not a setting: did you mean SESSION_STORE"),
        ({"session.cookie_age": "soon"}, "SESSION_COOKIE_AGE must be a number of seconds"),
        (
            {"session.cookie_age": "60", "SESSION_COOKIE_AGE": "90"},
            r"session\.cookie_age and SESSION_COOKIE_AGE say different things",
        ),
    ],
    ids=["typo", "another library's", "empty", "case", "upper", "value", "twice"],
)
def test_wrong_settings_stop_the_start(wrong: dict[str, Any], message: str) -> None:
    """A name of ours that is no setting, or says two things, stops the start with one sentence."""
    with pytest.raises(ConfigurationError, match=message):
        _included(**{"session.secret_key": SECRET, **wrong})


def test_the_manager_under_include() -> None:
    """Under include, a store that fails a call of the manager is answered with 503 as well."""

    def view(request: Any) -> Any:
        factory = request.registry.getUtility(ISessionFactory)
        assert isinstance(factory, SessionFactory)
        raise StoreUnavailable("as end_all may")

    config = Configurator(settings={"session.secret_key": SECRET})
    config.include("tieredsession.adapters.pyramid")
    config.add_view(view)
    response = Client(config.make_wsgi_app()).get("/")
    assert response.status_code == 503
    assert "end_all" not in response.text


def test_an_application_goes_before_the_include() -> None:
    """An application's own exception view takes the place of the included one."""
    config = Configurator(settings={"session.secret_key": SECRET})
    config.include("tieredsession.adapters.pyramid")
    own = Response("own", status=503)
    config.add_exception_view(lambda error, request: own, context=StoreUnavailable)
    config.add_view(lambda request: _raise(StoreUnavailable("as end_all may")))
    try:
        app = config.make_wsgi_app()
    except ConfigurationConflictError as conflict:
        pytest.fail(str(conflict))
    assert Client(app).get("/").text == "own"


@pytest.mark.any_store
def test_plain_http_from_elsewhere(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Without Secure, a session that is asked for from another machine is logged once."""
    visitor = Pages(make_site(SESSION_COOKIE_SECURE=False)).visitor()
    for address in ("127.0.0.1", "203.0.113.9", "203.0.113.9"):
        visitor.visit(lambda request: request.session, environ={"REMOTE_ADDR": address})
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "203.0.113.9" in record.getMessage()


# -- tests and tools ------------------------------------------------------------------


@pytest.mark.any_store
def test_a_dummy_request(pages: Pages) -> None:
    """The factory serves Pyramid's own DummyRequest, for unit tests of views."""
    request = testing.DummyRequest()
    session = pages.factory(request)
    session.flash("hello")
    assert isinstance(session, PyramidSession)
    assert session.pop_flash() == ["hello"]
    assert len(request.response_callbacks) == 1


def test_without_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pyramid, importing the adapter says what to install."""
    monkeypatch.setitem(sys.modules, "pyramid.httpexceptions", None)
    monkeypatch.delitem(sys.modules, "tieredsession.adapters.pyramid")
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[pyramid\]"'):
        importlib.import_module("tieredsession.adapters.pyramid")
