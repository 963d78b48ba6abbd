"""Flask's sessions as Flask documents them, in our stores; the adapter lists what differs."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Barrier, BrokenBarrierError
from types import ModuleType
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from tieredsession import (
    ConfigurationError,
    HeadersSentError,
    MissingDependencyError,
    SessionManager,
    SessionTooLarge,
    Settings,
    StoreError,
    StoreUnavailable,
    UnstorableError,
)
from tieredsession.adapters.flask import TieredSession, session
from tieredsession.contracts import SessionStore
from tieredsession.events import Event, SessionMerged
from tieredsession.registry import open_store
from tieredsession.stores import MemorySessionStore
from tieredsession.testing import Chaos, FakeClock

SECRET = "a long enough text, for tests alone: 0123456789"
OTHER_SECRET = "another text, as long, for tests alone: 0123456789"
COOKIE = "__Host-id"
DAY = 24 * 3600
STORES = {
    "cookie-signed": "tieredsession.stores.SecureCookieSessionStore",
    "memory": "tieredsession.stores.MemorySessionStore",
}

pytestmark = pytest.mark.one_of_each

View = Callable[[], Any]


class Site:
    """A Flask application over one store, whose every call is counted and may fail.

    A test puts what a request does into a view: a function that reads ``flask.session``.
    """

    def __init__(self, kind: str, **config: Any) -> None:
        self.clock = FakeClock()
        self.chaos = Chaos()
        self.events: list[Event] = []
        named = {"SECRET_KEY": SECRET, "SESSION_STORE": STORES[kind]}
        self.real_store: SessionStore = open_store(Settings(named))
        self.app = flask.Flask("site")
        self.app.config.update(TESTING=True, **named, **config)
        TieredSession(
            self.app,
            store=self.chaos.wrap(self.real_store),
            observers=[self.events.append],
            clock=self.clock,
        )
        self.manager: SessionManager = self.app.extensions["tieredsession"]
        self.view: View = str
        self.app.add_url_rule("/", "view", lambda: self.view(), methods=["GET", "POST"])

    @property
    def calls(self) -> list[str]:
        """The store calls so far. Naming a session in a log is none."""
        return [name for name in self.chaos.calls if name != "label"]

    def browser(self, **data: Any) -> Browser:
        """A visitor; one that has been here before if there is *data* to its session."""
        browser = Browser(self)
        if data:
            browser.visit(lambda: flask.session.update(data))
            self.chaos.calls.clear()
            self.events.clear()
        return browser


class Browser:
    """A visitor with a cookie jar."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.client: FlaskClient = site.app.test_client()

    def visit(self, view: View, **request: Any) -> TestResponse:
        """A request that *view* answers; what is no response of Flask's becomes "page"."""

        def answer() -> Any:
            made = view()
            known = isinstance(made, (str, tuple, flask.Response, Iterator))
            return made if known else "page"

        self.site.view = answer
        return self.client.open("/", buffered=True, **request)

    def data(self) -> dict[str, Any]:
        """What the session holds when a page looks at it."""
        found: dict[str, Any] = {}
        self.visit(lambda: found.update(flask.session))
        return found

    @property
    def cookie(self) -> str:
        """The token in the jar, empty if there is none."""
        cookie = self.client.get_cookie(COOKIE)
        return "" if cookie is None else cookie.value

    @cookie.setter
    def cookie(self, token: str) -> None:
        self.client.set_cookie(COOKIE, token)


@pytest.fixture
def site(kind: str) -> Site:
    """A site with the settings that one has without choosing any."""
    return Site(kind)


@pytest.fixture
def browser(site: Site) -> Browser:
    """A visitor who has been there before."""
    return site.browser(a=1)


def put(**data: Any) -> View:
    """A view that adds *data*."""
    return lambda: flask.session.update(data)


def request_session() -> Any:
    """``request.session``, of which Flask's types know nothing."""
    return vars(flask.request)["session"]


def plain_app(**config: Any) -> flask.Flask:
    """An application without any session of ours yet, with a counter."""
    app = flask.Flask("site")
    app.config.update({"TESTING": True, "SECRET_KEY": SECRET, **config})

    @app.get("/")
    def index() -> str:
        flask.session["n"] = flask.session.get("n", 0) + 1
        return str(flask.session["n"])

    return app


def set_cookie(app: flask.Flask) -> str:
    """The ``Set-Cookie`` line of the counter's first page."""
    return app.test_client().get("/").headers["Set-Cookie"]


# -- the session ----------------------------------------------------------------------


def test_a_counter(site: Site) -> None:
    """What one request puts into ``flask.session`` the next one finds there."""
    browser, other = site.browser(), site.browser()

    def count() -> str:
        flask.session["n"] = flask.session.get("n", 0) + 1
        return str(flask.session["n"])

    assert [browser.visit(count).text for _ in range(3)] == ["1", "2", "3"]
    assert other.visit(count).text == "1"


def test_one_object(browser: Browser) -> None:
    """``flask.session`` and ``request.session`` are one object, which is a session to Flask."""

    def view() -> None:
        session: Any = flask.session
        assert session._get_current_object() is flask.request.session  # type: ignore[attr-defined]  # a mixin's
        assert isinstance(request_session(), flask.sessions.SessionMixin)

    assert browser.visit(view).text == "page"


def test_an_untouched_session_leaves_no_trace(browser: Browser) -> None:
    """A request that leaves its session alone asks no store and gets no header."""
    response = browser.visit(lambda: "page")
    assert {"Vary", "Set-Cookie", "Cache-Control"}.isdisjoint(response.headers.keys())
    assert browser.site.calls == []
    assert browser.site.events == []


def test_reading_varies_on_cookie(browser: Browser) -> None:
    """A page that read its session varies on ``Cookie`` and sets none."""
    response = browser.visit(lambda: str(len(flask.session)))
    assert response.headers["Vary"] == "Cookie"
    assert "Set-Cookie" not in response.headers


def test_what_flask_handed_out_is_accessed(browser: Browser) -> None:
    """A page for which Flask handed out the session varies on ``Cookie``, and asks no store."""

    def view() -> None:
        assert not request_session().accessed
        request_session().accessed = True  # as the request context of Flask 3.1.3 does

    assert browser.visit(view).headers["Vary"] == "Cookie"
    assert browser.site.calls == []


def test_writing_keeps_shared_caches_out(browser: Browser) -> None:
    """A response with a cookie is for nobody else, whatever headers the view has set."""

    def view() -> Any:
        flask.session["b"] = 2
        flask.session.permanent = True
        headers = {"Cache-Control": "public, max-age=60", "Vary": "Accept"}
        return "page", headers

    headers = browser.visit(view).headers
    assert headers["Cache-Control"] == "max-age=60, private"
    assert headers["Vary"] == "Accept, Cookie"
    assert headers["Set-Cookie"].startswith(f"{COOKIE}=")


def test_what_a_session_says_of_itself(site: Site) -> None:
    """``new``, ``accessed`` and ``modified`` say what was there, was used and has changed."""
    browser = site.browser()
    told: list[tuple[bool, bool, bool]] = []

    def view() -> None:
        session = request_session()
        assert not session.accessed
        new = session.new
        assert session.accessed
        before = session.modified
        session.setdefault("list", []).append(1)
        told.append((new, before, session.modified))

    browser.visit(view)
    browser.visit(view)
    assert told == [(True, False, True), (False, False, True)]
    assert browser.data() == {"list": [1, 1]}


def test_a_session_that_says_it_was_modified(site: Site) -> None:
    """``session.modified = True`` saves it, changed or not, as code for Flask's sessions does."""
    browser = site.browser(a=1)
    browser.visit(lambda: setattr(flask.session, "modified", True))
    assert site.calls == ["load", "update"]


def test_a_session_that_was_emptied(browser: Browser) -> None:
    """An emptied session is deleted, and its cookie with it."""
    response = browser.visit(lambda: flask.session.clear())
    assert "Max-Age=0" in response.headers["Set-Cookie"]
    assert browser.cookie == ""


def test_a_value_that_cannot_be_kept(browser: Browser) -> None:
    """A value that no session can hold is refused where it is assigned."""

    def view() -> None:
        with pytest.raises(UnstorableError, match=r"session\['x'\] is a object"):
            flask.session["x"] = object()

    browser.visit(view)
    assert browser.data() == {"a": 1}


# -- permanent sessions ---------------------------------------------------------------


def be_permanent() -> None:
    """What many an application does before each request."""
    flask.session.permanent = True


def test_a_permanent_session(site: Site) -> None:
    """A permanent session's cookie outlives the browser, for the lifetime that Flask documents."""
    browser = site.browser()
    assert "Max-Age" not in browser.visit(put(a=1)).headers["Set-Cookie"]
    line = browser.visit(be_permanent).headers["Set-Cookie"]
    assert f"; Max-Age={31 * DAY};" in line
    assert browser.visit(lambda: str(flask.session.permanent)).text == "True"


def test_no_longer_permanent(site: Site) -> None:
    """A session that is permanent no more gets a cookie that ends with the browser."""
    browser = site.browser(a=1)
    browser.visit(be_permanent)

    def view() -> None:
        assert flask.session.permanent
        flask.session.permanent = False
        assert not flask.session.permanent

    assert "Max-Age" not in browser.visit(view).headers["Set-Cookie"]


def test_permanent_before_each_request(site: Site) -> None:
    """Saying before each request that a session is permanent writes it once."""
    browser = site.browser(a=1)
    browser.visit(be_permanent)
    site.chaos.calls.clear()
    assert "Set-Cookie" not in browser.visit(be_permanent).headers
    assert site.calls == ["load"]


@pytest.mark.parametrize("lifetime", [600, timedelta(minutes=10)], ids=["seconds", "timedelta"])
@pytest.mark.parametrize("permanent", [True, False], ids=["permanent", "of the browser"])
def test_a_lifetime(kind: str, lifetime: Any, permanent: bool) -> None:
    """``PERMANENT_SESSION_LIFETIME`` ends a session that is not used for so long."""
    site = Site(kind, PERMANENT_SESSION_LIFETIME=lifetime)
    browser = site.browser(a=1)
    browser.visit(lambda: setattr(flask.session, "permanent", permanent))
    site.clock.advance(599)
    assert browser.data()["a"] == 1
    site.clock.advance(600)
    assert browser.data() == {}


@pytest.mark.parametrize(("passed", "sent"), [(149, False), (150, True)])
def test_a_use_moves_the_expiry_now_and_then(kind: str, passed: int, sent: bool) -> None:
    """A permanent session's cookie is sent again once a quarter of its lifetime has passed."""
    site = Site(kind, PERMANENT_SESSION_LIFETIME=600)
    browser = site.browser(a=1)
    browser.visit(be_permanent)
    site.clock.advance(passed)
    response = browser.visit(lambda: str(flask.session["a"]))
    assert ("Set-Cookie" in response.headers) is sent


def test_a_refresh_with_each_request(kind: str) -> None:
    """With ``SESSION_REFRESH = 0`` each use of a permanent session sends its cookie."""
    site = Site(kind, PERMANENT_SESSION_LIFETIME=600, SESSION_REFRESH=0)
    browser = site.browser(a=1)
    browser.visit(be_permanent)
    site.clock.advance(1)
    assert "Set-Cookie" in browser.visit(lambda: str(flask.session["a"])).headers


def test_a_refresh_by_changes_alone(kind: str) -> None:
    """With ``SESSION_REFRESH_EACH_REQUEST`` false, reading sends no cookie and a change does."""
    site = Site(kind, PERMANENT_SESSION_LIFETIME=600, SESSION_REFRESH_EACH_REQUEST=False)
    browser = site.browser(a=1)
    browser.visit(be_permanent)
    site.clock.advance(599)
    assert "Set-Cookie" not in browser.visit(lambda: str(flask.session["a"])).headers
    assert "; Max-Age=600;" in browser.visit(put(b=2)).headers["Set-Cookie"]
    site.clock.advance(599)
    assert browser.data()["b"] == 2
    site.clock.advance(1)
    assert browser.data() == {}


def test_a_failed_page_refreshes_nothing(kind: str) -> None:
    """With changes alone to refresh it, a session is not looked at by a response of 5xx either."""
    site = Site(kind, SESSION_REFRESH_EACH_REQUEST=False)
    browser = site.browser(list=[])

    def view() -> Any:
        flask.session["list"].append(object())
        return "broken", 500

    assert browser.visit(view).text == "broken"
    assert browser.data() == {"list": []}


def test_an_absolute_lifetime_begins_with_a_login(kind: str) -> None:
    """Both lifetimes begin anew when Flask-Login says whose session it is."""
    site = Site(kind, PERMANENT_SESSION_LIFETIME=100, SESSION_ABSOLUTE_AGE=100)
    browser = site.browser(a=1)
    site.clock.advance(60)
    browser.visit(put(_user_id="ada"))
    site.clock.advance(60)
    assert browser.data() == {"a": 1, "_user_id": "ada"}


# -- the request ----------------------------------------------------------------------


def test_functions_around_the_view(site: Site) -> None:
    """What runs before and after the view writes to the same session."""

    @site.app.before_request
    def before() -> None:
        flask.session["before"] = 1

    @site.app.after_request
    def after(response: flask.Response) -> flask.Response:
        flask.session["after"] = 3
        return response

    def view() -> None:
        @flask.after_this_request
        def once(response: flask.Response) -> flask.Response:
            flask.session["once"] = 2
            return response

    browser = site.browser()
    browser.visit(view)
    assert browser.data() == {"before": 1, "once": 2, "after": 3}


@pytest.mark.parametrize(("status", "kept"), [(200, 2), (404, 2), (499, 2), (500, 1), (503, 1)])
def test_a_failed_response_saves_nothing(browser: Browser, status: int, kept: int) -> None:
    """A response of 5xx saves nothing, and any other response does."""

    def view() -> Any:
        flask.session["a"] = 2
        return "page", status

    response = browser.visit(view)
    assert response.status_code == status
    assert browser.data() == {"a": kept}


def test_a_view_that_raises(browser: Browser) -> None:
    """An exception that becomes Flask's 500 saves nothing."""
    browser.site.app.config["PROPAGATE_EXCEPTIONS"] = False

    def view() -> None:
        flask.session["a"] = 2
        raise ZeroDivisionError

    assert browser.visit(view).status_code == 500
    assert browser.data() == {"a": 1}


def test_an_exception_that_is_handled(site: Site) -> None:
    """A change is kept if the application turns the exception after it into an answer."""

    @site.app.errorhandler(ZeroDivisionError)
    def handle(error: ZeroDivisionError) -> str:
        flask.session["b"] = 3
        return "handled"

    def view() -> None:
        flask.session["a"] = 2
        raise ZeroDivisionError

    browser = site.browser(a=1)
    browser.visit(view)
    assert browser.data() == {"a": 2, "b": 3}


def test_a_failure_after_the_session_was_saved(browser: Browser) -> None:
    """A 500 that is made after the save carries the cookie of what was saved."""
    browser.site.app.config["PROPAGATE_EXCEPTIONS"] = False

    def fail(sender: object, response: flask.Response, **kwargs: Any) -> None:
        if response.status_code == 200:
            raise ZeroDivisionError

    with flask.request_finished.connected_to(fail, browser.site.app):
        response = browser.visit(lambda: request_session().renew())
    assert response.status_code == 500
    assert "Set-Cookie" in response.headers
    assert browser.data() == {"a": 1}


async def _async_view() -> str:
    flask.session["a"] += 1
    return str(flask.session["a"])


def test_an_async_view(site: Site) -> None:
    """An ``async`` view has the session of its request."""
    site.app.add_url_rule("/async", "async", _async_view)
    browser = site.browser(a=1)
    assert browser.client.get("/async").text == "2"
    assert browser.data() == {"a": 2}


def test_a_request_in_a_request(browser: Browser) -> None:
    """A context for a test inside a request has a session of its own, which is not saved."""

    def view() -> None:
        flask.session["b"] = 2
        with browser.site.app.test_request_context("/"):
            assert dict(flask.session) == {}
            flask.session["c"] = 3
        assert dict(flask.session) == {"a": 1, "b": 2}

    browser.visit(view)
    assert browser.data() == {"a": 1, "b": 2}


def test_a_context_for_another_thread(browser: Browser) -> None:
    """``copy_current_request_context`` takes the same session along, and its writes are kept."""

    def view() -> None:
        mine = request_session()

        @flask.copy_current_request_context
        def work() -> bool:
            flask.session["b"] = 2
            return mine is request_session()

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(work).result()

    browser.visit(view)
    assert browser.data() == {"a": 1, "b": 2}


# -- the test client ------------------------------------------------------------------


def test_session_transaction(site: Site) -> None:
    """A session transaction of the test client puts data there and reads what is there."""
    browser = site.browser()
    with browser.client.session_transaction() as session:
        session["a"] = 1
        session.permanent = True
    assert browser.visit(lambda: str(flask.session["a"])).text == "1"
    with browser.client.session_transaction() as session:
        assert session.permanent
        session.clear()
    assert browser.data() == {}


def test_a_client_that_keeps_the_context(browser: Browser) -> None:
    """Inside ``with client`` a test can read the session of the request that has ended."""
    with browser.client:
        browser.visit(put(b=2))
        assert dict(flask.session) == {"a": 1, "b": 2}


# -- flash messages -------------------------------------------------------------------


def flashed() -> list[Any]:
    """The waiting messages, with what kind of text each is."""
    messages: Any = flask.get_flashed_messages(with_categories=True)
    return [(category, str(text), type(text)) for category, text in messages]


def test_flash(browser: Browser) -> None:
    """Messages flashed on one page are shown on the next one, once; markup stays markup."""

    def flash() -> None:
        flask.flash("<Saved>")
        flask.flash(Markup("<b>Bold</b>"), "error")

    browser.visit(flash)
    seen: list[Any] = []
    browser.visit(lambda: seen.extend(flashed()))
    assert seen == [("message", "<Saved>", str), ("error", "<b>Bold</b>", Markup)]
    browser.visit(lambda: seen.extend(flashed()))
    assert len(seen) == 2


@pytest.mark.any_store
def test_two_requests_that_flash(browser: Browser) -> None:
    """Of two requests at once that flash a message, both messages are shown."""
    site, other = browser.site, Browser(browser.site)
    other.cookie = browser.cookie

    def view() -> None:
        flask.flash("mine")
        other.visit(lambda: flask.flash("theirs"))

    browser.visit(view)
    seen: list[Any] = []
    browser.visit(lambda: seen.extend(flask.get_flashed_messages()))
    assert sorted(seen) == ["mine", "theirs"]
    assert any(isinstance(event, SessionMerged) for event in site.events)


def test_markup_at_rest(site: Site) -> None:
    """Markup that was stored once can be read for ever, by its exact bytes."""
    payload = bytes.fromhex("81a16dc70640") + "<i>\xe9".encode() + b">"
    found = site.manager.codec.decode(payload)["m"]
    assert (found, type(found)) == ("<i>\xe9>", Markup)
    assert site.manager.codec.encode({"m": Markup("<i>\xe9>")}) == payload


# -- after the headers ----------------------------------------------------------------


def streaming(step: View) -> View:
    """A view whose body does *step* between two chunks."""

    def view() -> flask.Response:
        def body() -> Iterator[str]:
            yield "one"
            step()
            yield "two"

        return flask.Response(flask.stream_with_context(body()))

    return view


def test_reading_in_a_stream(browser: Browser) -> None:
    """A body under ``stream_with_context`` reads the session, and what the view put there."""
    read: list[Any] = []

    def view() -> flask.Response:
        flask.session["b"] = 2
        response: flask.Response = streaming(lambda: read.append(dict(flask.session)))()
        return response

    assert browser.visit(view).text == "onetwo"
    assert read == [{"a": 1, "b": 2}]
    assert browser.data() == {"a": 1, "b": 2}


@pytest.mark.any_store
def test_writing_in_a_stream(browser: Browser) -> None:
    """On a server, what a body changed is kept from when it is closed."""
    assert browser.visit(streaming(put(b=2))).text == "onetwo"
    assert browser.data() == {"a": 1, "b": 2}


@pytest.mark.cookie_stores
def test_writing_a_cookie_in_a_stream(browser: Browser) -> None:
    """A change that needs a cookie is refused in a body, where Flask would lose it."""
    with pytest.raises(HeadersSentError):
        browser.visit(streaming(put(b=2)))
    assert browser.data() == {"a": 1}


@pytest.mark.any_store
def test_a_failed_stream_saves_nothing(browser: Browser) -> None:
    """What the body of a 5xx changed is not saved."""

    def view() -> Any:
        return streaming(put(b=2))(), 500

    browser.visit(view)
    assert browser.data() == {"a": 1}


@pytest.mark.any_store
def test_writing_in_a_teardown(site: Site) -> None:
    """On a server, what a teardown function changes is kept, though the session was unread."""

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if flask.request.method == "POST":
            flask.session["b"] = 2

    browser = site.browser(a=1)
    browser.visit(lambda: "page", method="POST")
    assert browser.data() == {"a": 1, "b": 2}


# -- a store that does not answer -----------------------------------------------------


def is_unavailable(response: TestResponse) -> bool:
    """Whether this is the 503 that claims nothing, sets no cookie and is kept by nobody."""
    wanted = {"Retry-After": "5", "Cache-Control": "no-store"}
    return (
        response.status_code == 503
        and wanted.items() <= dict(response.headers).items()
        and "Set-Cookie" not in response.headers
        and "Service Unavailable" in response.text
        and "made to fail" not in response.text
    )


@pytest.mark.parametrize("testing", [True, False], ids=["testing", "serving"])
def test_a_session_that_cannot_be_read(browser: Browser, testing: bool) -> None:
    """A store that cannot answer the view makes a 503, and nothing is saved over anything."""
    browser.site.app.testing = testing
    browser.site.chaos.fail("load")
    assert is_unavailable(browser.visit(put(b=2)))
    assert browser.data() == {"a": 1}


@pytest.mark.parametrize("method", ["create", "update"])
@pytest.mark.parametrize("testing", [True, False], ids=["testing", "serving"])
def test_a_session_that_cannot_be_saved(site: Site, method: str, testing: bool) -> None:
    """A response whose session could not be saved becomes a 503, with nothing left of it."""
    site.app.testing = testing
    browser = site.browser() if method == "create" else site.browser(a=1)
    before = browser.data()

    def view() -> Any:
        flask.session["b"] = 2
        headers = {"Location": "/done", "Set-Cookie": "done=1", "Cache-Control": "public"}
        return "saved", 302, headers

    site.chaos.fail(method)
    response = browser.visit(view)
    assert is_unavailable(response)
    assert "Location" not in response.headers
    assert browser.data() == before


def test_an_outage_after_the_view(site: Site) -> None:
    """If the view fails for its session, and what runs after it again, the answer is a 503."""

    @site.app.after_request
    def after(response: flask.Response) -> flask.Response:
        flask.session.setdefault("seen", True)
        return response

    browser = site.browser(a=1)
    before = browser.data()
    site.app.testing = False
    for view in put(b=2), lambda: "page":
        site.chaos.down()
        assert is_unavailable(browser.visit(view))
        site.chaos.up()
        assert browser.data() == before


def test_an_outage_after_a_save(browser: Browser) -> None:
    """What was saved before the store failed has its cookie beside the 503."""

    def view() -> None:
        session.renew()
        session.save()
        flask.session["a"] = 2
        browser.site.chaos.fail("update")

    browser.visit(put(a=1))
    response = browser.visit(view)
    assert response.status_code == 503
    assert response.headers["Cache-Control"] == "no-store"
    assert browser.data() == {"a": 1}


def test_a_session_transaction_that_fails(browser: Browser) -> None:
    """A session transaction that could not save says so."""
    browser.site.chaos.fail("update")
    with pytest.raises(StoreUnavailable), browser.client.session_transaction() as session:
        session["b"] = 2
    assert browser.data() == {"a": 1}


def test_a_body_that_will_not_be_sent(browser: Browser) -> None:
    """A streamed body is closed if a 503 goes out in its place."""
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"saved"

        def close(self) -> None:
            closed.append(True)

    def view() -> flask.Response:
        flask.session["b"] = 2
        return flask.Response(Body(), direct_passthrough=True)

    browser.site.chaos.fail("update")
    assert is_unavailable(browser.visit(view))
    assert closed == [True]


def test_what_was_saved_before_the_store_failed(browser: Browser) -> None:
    """The 503 still carries the cookie of what the view had saved by itself before."""

    def view() -> None:
        request_session().renew()
        request_session().save()
        flask.session["c"] = 3

    browser.site.chaos.before("create", lambda: browser.site.chaos.fail("update"))
    response = browser.visit(view)
    assert response.status_code == 503
    assert "Set-Cookie" in response.headers
    assert browser.data() == {"a": 1}


def saving() -> None:
    """A view that does not leave saving to the response."""
    flask.session["b"] = 2
    request_session().save()


OUTAGES: dict[str, tuple[str, View]] = {
    "read": ("load", put(b=2)),
    "saved by the view": ("update", saving),
    "saved with the response": ("update", put(b=2)),
}


@pytest.mark.parametrize(
    "kind_of_error", [StoreUnavailable, StoreError, 503, HTTPException, Exception], ids=str
)
@pytest.mark.parametrize("outage", OUTAGES)
def test_a_handler_of_the_application(kind: str, kind_of_error: Any, outage: str) -> None:
    """A store error reaches the handler that the application has for it, or for a 503."""
    site = Site(kind)

    @site.app.errorhandler(kind_of_error)
    def handle(error: Any) -> Any:
        cause = error if isinstance(error, StoreUnavailable) else error.__cause__
        return f"handled: {cause}", 503

    method, view = OUTAGES[outage]
    browser = site.browser(a=1)
    site.chaos.fail(method)
    assert browser.visit(view).text == f"handled: {method} was made to fail"
    assert browser.data() == {"a": 1}


@pytest.mark.parametrize("late", [False, True], ids=["read", "saved with the response"])
def test_a_handler_that_needs_the_store(site: Site, late: bool) -> None:
    """If the application's handler meets the same outage, the visitor gets the 503."""

    @site.app.errorhandler(StoreUnavailable)
    def handle(error: StoreUnavailable) -> str:
        site.manager.store.load("any", site.clock())
        return "handled"

    def view() -> None:
        if late:
            flask.session["b"] = 2
        site.chaos.down()
        flask.session.get("a")

    browser = site.browser(a=1)
    assert is_unavailable(browser.visit(view))
    site.chaos.up()
    assert browser.data() == {"a": 1}


def test_an_outage_of_the_manager(browser: Browser) -> None:
    """What the manager raises in a view is a 503 as well."""

    def view() -> None:
        raise StoreUnavailable("end_all was made to fail")

    assert is_unavailable(browser.visit(view))


def test_a_view_that_lives_without_its_session(browser: Browser) -> None:
    """A view may catch the error and answer; the unknown session is not written over."""

    def view() -> str:
        with pytest.raises(StoreUnavailable):
            flask.session["b"] = 2
        return "without"

    browser.site.chaos.fail("load")
    assert browser.visit(view).text == "without"
    assert browser.data() == {"a": 1}


@pytest.mark.cookie_stores
def test_a_cookie_that_is_too_large(browser: Browser) -> None:
    """A cookie that browsers would not keep is an error, and the old one stays valid."""
    with pytest.raises(SessionTooLarge):
        browser.visit(put(large=os.urandom(4096)))
    browser.site.app.testing = False
    assert browser.visit(put(large=os.urandom(4096))).status_code == 500
    assert browser.data() == {"a": 1}


# -- no secret ------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, ""], ids=["none", "empty"])
def test_a_null_session(secret: str | None) -> None:
    """Without a secret the session reads as empty, and a write raises Flask's own error."""
    own = plain_app(SECRET_KEY=secret)
    with pytest.raises(RuntimeError) as expected:
        own.test_client().get("/")
    app = plain_app(SECRET_KEY=secret)
    TieredSession(app)
    assert "tieredsession" not in app.extensions

    @app.get("/read")
    def read() -> str:
        assert request_session() is flask.session._get_current_object()  # type: ignore[attr-defined]  # a proxy
        return str(dict(flask.session))

    client = app.test_client()
    assert client.get("/read").text == "{}"
    with pytest.raises(RuntimeError) as raised:
        client.get("/")
    assert str(raised.value) == str(expected.value)
    with (
        pytest.raises(RuntimeError, match="did not open a session"),
        client.session_transaction(),
    ):
        pass


def test_a_null_session_outside_a_request() -> None:
    """A null session can be made where there is no request."""
    app = plain_app(SECRET_KEY=None)
    TieredSession(app)
    interface = app.session_interface
    assert interface.is_null_session(interface.make_null_session(app))


def test_a_secret_that_comes_late() -> None:
    """A secret that is set after a request without one gives the next request a session."""
    app = plain_app(SECRET_KEY=None)
    TieredSession(app)
    with pytest.raises(RuntimeError):
        app.test_client().get("/")
    app.secret_key = SECRET
    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "2"]
    assert isinstance(app.extensions["tieredsession"], SessionManager)


def test_a_secret_that_is_taken_away() -> None:
    """A secret that is gone before the first request seals nothing."""
    app = plain_app()
    TieredSession(app)
    app.secret_key = None
    with pytest.raises(RuntimeError, match="no secret"):
        app.test_client().get("/")
    assert "tieredsession" not in app.extensions


# -- the configuration ----------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {name: flask.Flask.default_config[name] for name in flask.Flask.default_config},
        {"SESSION_COOKIE_NAME": "session", "SESSION_COOKIE_SECURE": False},
    ],
    ids=["nothing", "Flask's defaults", "two of them"],
)
def test_a_cookie_that_is_safe_by_default(config: dict[str, Any]) -> None:
    """Where Flask's defaults stand, the cookie is ``__Host-id``, Secure, HttpOnly and Lax."""
    app = plain_app(**{**config, "SECRET_KEY": SECRET})
    TieredSession(app)
    line = set_cookie(app)
    assert line.startswith("__Host-id=")
    assert line.endswith("; Path=/; Secure; HttpOnly; SameSite=Lax")


@pytest.mark.parametrize(
    ("config", "begin", "attributes"),
    [
        ({"SESSION_COOKIE_NAME": "s"}, "s=", "; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"SESSION_COOKIE_HTTPONLY": False}, "__Host-id=", "; Path=/; Secure; SameSite=Lax"),
        (
            {"SESSION_COOKIE_SAMESITE": "Strict"},
            "__Host-id=",
            "; Path=/; Secure; HttpOnly; SameSite=Strict",
        ),
        (
            {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_PARTITIONED": True},
            "__Host-id=",
            "; Path=/; Secure; HttpOnly; SameSite=None; Partitioned",
        ),
        (
            {"SESSION_COOKIE_DOMAIN": "example.org"},
            "__Secure-id=",
            "; Domain=example.org; Path=/; Secure; HttpOnly; SameSite=Lax",
        ),
        (
            {"SESSION_COOKIE_PATH": "/app"},
            "__Secure-id=",
            "; Path=/app; Secure; HttpOnly; SameSite=Lax",
        ),
        (
            {"APPLICATION_ROOT": "/root"},
            "__Secure-id=",
            "; Path=/root; Secure; HttpOnly; SameSite=Lax",
        ),
        (
            {"APPLICATION_ROOT": "/root", "SESSION_COOKIE_PATH": "/"},
            "__Host-id=",
            "; Path=/; Secure; HttpOnly; SameSite=Lax",
        ),
        ({"SESSION_COOKIE_SECURE": "off"}, "id=", "; Path=/; HttpOnly; SameSite=Lax"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_was_set_is_honoured(config: dict[str, Any], begin: str, attributes: str) -> None:
    """A value that is not Flask's default is the cookie's."""
    app = plain_app(**config)
    TieredSession(app)
    line = set_cookie(app)
    assert line.startswith(begin)
    assert line.endswith(attributes)


def test_plain_http_by_a_keyword() -> None:
    """A keyword goes before the configuration, and may well be Flask's default."""
    app = plain_app(SESSION_COOKIE_NAME="other")
    TieredSession(app, SESSION_COOKIE_SECURE=False, SESSION_COOKIE_NAME="session")
    line = set_cookie(app)
    assert line.startswith("session=")
    assert "Secure" not in line
    app.config["SESSION_COOKIE_SECURE"] = True
    assert "Secure" not in set_cookie(app)


@pytest.mark.parametrize(
    ("late", "begin"),
    [
        ({"SESSION_COOKIE_SECURE": False}, "id="),
        ({"SESSION_COOKIE_NAME": "session"}, "session="),
        ({"SESSION_COOKIE_PATH": "/app"}, "__Secure-id="),
    ],
    ids=["Secure", "name", "path"],
)
def test_what_is_set_after_init_app(late: dict[str, Any], begin: str) -> None:
    """A value that is set after ``init_app`` and before a request is honoured, whatever it is."""
    app = plain_app()
    TieredSession(app)
    app.config.update(late)
    line = set_cookie(app)
    assert line.startswith(begin)
    assert ("Secure;" in line) is ("SESSION_COOKIE_SECURE" not in late)


def test_a_configuration_that_stays_keeps_its_manager() -> None:
    """The manager of ``init_app`` serves the requests unless the configuration changed."""
    app = plain_app(SESSION_STORE=STORES["memory"], SESSION_COOKIE_SECURE="1")
    TieredSession(app)
    manager = app.extensions["tieredsession"]
    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "2"]
    assert app.extensions["tieredsession"] is manager


def test_the_first_request_makes_it_final() -> None:
    """What is changed after the first request changes nothing for those who have a session."""
    app = plain_app()
    TieredSession(app)
    client = app.test_client()
    assert client.get("/").text == "1"
    app.config["SESSION_COOKIE_NAME"] = "late"
    assert client.get("/").text == "2"


def test_the_configuration_shows_what_holds() -> None:
    """``app.config``, and what Flask answers from it, tell the cookie that is really sent."""
    app = plain_app()
    TieredSession(app, SESSION_COOKIE_HTTPONLY=False)
    interface = app.session_interface
    assert interface.get_cookie_name(app) == COOKIE
    assert interface.get_cookie_secure(app) is True
    assert interface.get_cookie_samesite(app) == "Lax"
    assert interface.get_cookie_httponly(app) is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"SECRET_KEY": "short"}, "^SECRET_KEY"),
        ({"SECRET_KEY_FALLBACKS": ["short"]}, "^SECRET_KEY_FALLBACKS"),
        ({"SESSION_TYPE": "redis"}, "^SESSION_TYPE is not a setting"),
        ({"SESSION_COOKE_NAME": "a"}, "^SESSION_COOKE_NAME .* did you mean SESSION_COOKIE_NAME"),
        ({"SESSION_COOKIE_SAMESITE": "lex"}, "^SESSION_COOKIE_SAMESITE must be one of"),
        ({"SESSION_STORE": "nowhere.Store"}, "^SESSION_STORE 'nowhere.Store' cannot be imported"),
        ({"PERMANENT_SESSION_LIFETIME": "long"}, "^PERMANENT_SESSION_LIFETIME must be a number"),
        ({"SESSION_COOKIE_AGE": "long"}, "^SESSION_COOKIE_AGE must be a number"),
        ({"SESSION_ABSOLUTE_AGE": 60}, r"is below PERMANENT_SESSION_LIFETIME \(2678400\)"),
        (
            {"PERMANENT_SESSION_LIFETIME": 60, "SESSION_COOKIE_AGE": 60},
            "^PERMANENT_SESSION_LIFETIME and SESSION_COOKIE_AGE are two names",
        ),
        (
            {"SESSION_REFRESH": 0.5, "SESSION_REFRESH_EACH_REQUEST": False},
            "^SESSION_REFRESH_EACH_REQUEST = False and SESSION_REFRESH",
        ),
        ({"SECRET_KEY": None, "SESSION_TYPE": "redis"}, "^SESSION_TYPE is not a setting"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_stops_the_start(config: dict[str, Any], message: str) -> None:
    """A wrong, weak, unknown or contradictory setting is named by one sentence at the start."""
    with pytest.raises(ConfigurationError, match=message):
        TieredSession(plain_app(**config))


def test_an_unknown_keyword_stops_the_start() -> None:
    """A keyword that is no setting stops the start."""
    with pytest.raises(ConfigurationError, match=r"^SECRET is not a setting"):
        TieredSession(plain_app(), SECRET=SECRET)


def test_a_setting_that_went_wrong_late() -> None:
    """A wrong setting that came after ``init_app`` fails each request until it is right."""
    app = plain_app()
    TieredSession(app)
    store = app.config.get("SESSION_STORE")
    app.config["SESSION_STORE"] = "nowhere.Store"
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="SESSION_STORE"):
            app.test_client().get("/")
    app.config["SESSION_STORE"] = store
    assert set_cookie(app).startswith(f"{COOKIE}=")


def test_a_setting_of_somebody_else() -> None:
    """What is neither Flask's nor of a name that is ours to check is left alone."""
    app = plain_app(SECRET_KEY_OF_ANOTHER="a", COOKIE_NAME="b", WTF_CSRF_ENABLED=False)
    TieredSession(app)
    assert set_cookie(app).startswith(f"{COOKIE}=")


def test_an_age_of_our_name() -> None:
    """``SESSION_COOKIE_AGE`` is the lifetime where Flask's is not set."""
    clock = FakeClock()
    app = plain_app(SESSION_COOKIE_AGE=60)
    TieredSession(app, clock=clock)
    client = app.test_client()
    assert client.get("/").text == "1"
    clock.advance(60)
    assert client.get("/").text == "1"


def test_keys_are_rotated() -> None:
    """A session that was sealed with a key of ``SECRET_KEY_FALLBACKS`` still opens."""
    old = plain_app(SECRET_KEY=OTHER_SECRET)
    TieredSession(old)
    pair = set_cookie(old).partition(";")[0]
    for fallbacks, count in ([OTHER_SECRET], "2"), (None, "1"):
        new = plain_app(SECRET_KEY_FALLBACKS=fallbacks)
        TieredSession(new)
        visitor = new.test_client(use_cookies=False)
        assert visitor.get("/", headers={"Cookie": pair}).text == count


def test_one_object_for_several_applications() -> None:
    """``init_app`` gives each application of a factory a manager and sessions of its own."""
    sessions = TieredSession()
    first, second = plain_app(SESSION_COOKIE_NAME="a"), plain_app(SESSION_COOKIE_NAME="b")
    sessions.init_app(first)
    sessions.init_app(second)
    assert set_cookie(first).startswith("a=")
    assert set_cookie(second).startswith("b=")
    assert first.extensions["tieredsession"] is not second.extensions["tieredsession"]


def test_the_first_requests_agree_on_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two first requests at once of an application that was configured late make one store."""
    both = Barrier(2)
    made: list[SessionStore] = []

    class SlowStore(MemorySessionStore):
        @classmethod
        def from_options(cls, options: Any) -> Any:
            with suppress(BrokenBarrierError):
                both.wait(0.2)
            made.append(super().from_options(options))
            return made[-1]

    module = ModuleType("slow_stores")
    vars(module)["SlowStore"] = SlowStore
    monkeypatch.setitem(sys.modules, "slow_stores", module)
    app = plain_app()
    TieredSession(app)
    app.config["SESSION_STORE"] = "slow_stores.SlowStore"
    with ThreadPoolExecutor(2) as pool:
        clients = [app.test_client() for _ in range(2)]
        assert list(pool.map(lambda client: client.get("/").text, clients)) == ["1", "1"]
    assert len(made) == 1
    assert [client.get("/").text for client in clients] == ["2", "2"]


@pytest.mark.parametrize(
    ("peer", "warnings"), [("203.0.113.9", 1), ("127.0.0.1", 0)], ids=["elsewhere", "here"]
)
def test_plain_http_from_elsewhere(
    caplog: pytest.LogCaptureFixture, peer: str, warnings: int
) -> None:
    """Without Secure, the first request from another machine is logged."""
    app = plain_app()
    TieredSession(app, SESSION_COOKIE_SECURE=False)
    for _ in range(2):
        app.test_client().get("/", environ_base={"REMOTE_ADDR": peer})
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(found) == warnings
    assert all("SESSION_COOKIE_SECURE is False" in line and peer in line for line in found)


@pytest.mark.parametrize("missing", ["flask", "markupsafe"])
def test_flask_is_optional(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without Flask the adapter says how to install it."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "tieredsession.adapters.flask")
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[flask\]"'):
        importlib.import_module("tieredsession.adapters.flask")
