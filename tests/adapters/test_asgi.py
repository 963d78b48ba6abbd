"""The ASGI middleware under the protocol's own rules, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import to_thread

from tieredsession import (
    ConfigurationError,
    HeadersSentError,
    MissingDependencyError,
    NotLoadedError,
    SessionTooLarge,
    StoreError,
    StoreUnavailable,
    UnstorableError,
)
from tieredsession.adapters.asgi import (
    Message,
    Receive,
    Scope,
    Send,
    Session,
    SessionMiddleware,
    all_but,
    session_of,
)
from tieredsession.merge import counter
from tieredsession.testing import FakeClock

if TYPE_CHECKING:
    from conftest import Browser, MakeSite, Site

pytestmark = pytest.mark.one_of_each

SECRET = "a long enough text, for tests alone: 0123456789"
PLAIN = [(b"content-type", b"text/plain")]

Step = Callable[[Session], Any]


def nothing(session: Session) -> None:
    """A step of an application that leaves the session alone."""


def put(**data: Any) -> Step:
    """A step that adds *data*."""
    return lambda session: session.update(data)


def fail(session: Session) -> None:
    """A step with a bug in it."""
    raise ZeroDivisionError


def in_thread(step: Step) -> Step:
    """*step* in a worker thread, as Starlette runs a sync endpoint."""
    return lambda session: to_thread.run_sync(step, session)


async def load(session: Session) -> None:
    await session.load()


async def save(session: Session) -> None:
    await session.save()


def each(*steps: Step) -> Step:
    """One step after the other."""

    async def run(session: Session) -> None:
        for step in steps:
            result = step(session)
            if inspect.isawaitable(result):
                await result

    return run


@dataclass
class App:
    """An application that does something before, between and after its messages.

    *before* its response starts, *after* that, in the *middle* of a body that is streamed if
    it is given, and *last*, when the body is complete, as a background task would.
    """

    before: Step = nothing
    after: Step = nothing
    middle: Step | None = None
    last: Step = nothing
    status: int = 200
    headers: Any = field(default_factory=lambda: list(PLAIN))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = scope["session"]
        await each(self.before)(session)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await each(self.after)(session)
        if self.middle is not None:
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await each(self.middle)(session)
            await send({"type": "http.response.body", "body": b"two", "more_body": False})
        else:
            await send({"type": "http.response.body", "body": b"onetwo"})
        await each(self.last)(session)


def at(where: str, step: Step, **more: Any) -> App:
    """An application that takes one *step*, somewhere."""
    return App(**{where: step, **more})


class Answer:
    """What a server was given for one request."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    def of(self, kind: str) -> list[Message]:
        """The messages of one type, without what stands before the first dot."""
        return [message for message in self.messages if message["type"].endswith(kind)]

    @property
    def status(self) -> int | None:
        """The status of the only response that started, if one did."""
        starts = self.of("http.response.start")
        assert len(starts) <= 1
        return starts[0]["status"] if starts else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the response, or of the acceptance of a websocket."""
        (start,) = self.of("http.response.start") or self.of("websocket.accept")
        return [(name, value) for name, value in start.get("headers", [])]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.of("http.response.body"))

    @property
    def cookies(self) -> list[str]:
        """The cookies that the response sets, as a browser sends them back."""
        lines = [value.decode() for name, value in self.headers if name == b"set-cookie"]
        return [line.partition(";")[0] for line in lines]


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


class Server:
    """Serves requests to an application, each on an event loop of its own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """Run *main*, which has to come to an end."""

        async def bounded() -> Any:
            with anyio.fail_after(20):
                return await main()

        return anyio.run(bounded, backend=self.backend)

    def get(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *cookies: str,
        kind: str = "http",
        **scope: Any,
    ) -> Answer:
        """Make a request; each of *cookies* is a header. An exception comes out as it is."""
        answer = Answer()
        self.run(lambda: app(make_scope(*cookies, kind=kind, **scope), receive, answer.send))
        return answer

    def visit(self, app: SessionMiddleware, browser: Browser) -> Answer:
        """Make a request of *browser*, which keeps the cookie that it gets."""
        answer = self.get(app, *browser_header(app, browser))
        for line in answer.cookies:
            browser.cookie = line.partition("=")[2]
        return answer


def make_scope(*cookies: str, kind: str = "http", **more: Any) -> Scope:
    headers = [(b"host", b"testserver"), *((b"cookie", line.encode()) for line in cookies)]
    scope = {"type": kind, "path": "/", "root_path": "", "headers": headers}
    return {**scope, "client": ("127.0.0.1", 1234), **more}


def browser_header(app: SessionMiddleware, browser: Browser) -> list[str]:
    return [f"{app.manager.cookie.name}={browser.cookie}"] if browser.cookie else []


@pytest.fixture(params=["asyncio", "trio"])
def server(request: pytest.FixtureRequest) -> Server:
    """A server on either event loop."""
    return Server(request.param)


def wrap(site: Site, app: Any, store: Any = None, **keywords: Any) -> SessionMiddleware:
    """*app* with the sessions of *site*."""
    return SessionMiddleware(
        app,
        site.settings,
        store=site.store if store is None else store,
        observers=[site.events],
        clock=site.clock,
        **keywords,
    )


def stored(site: Site, browser: Browser) -> dict[str, Any]:
    """What another node reads for *browser*."""
    return dict(site.open(browser))


# -- one request ----------------------------------------------------------------------


@pytest.mark.parametrize("autoload", [True, False])
@pytest.mark.parametrize("middle", [None, nothing], ids=["at once", "streamed"])
def test_an_untouched_session_leaves_no_trace(
    make_site: MakeSite, server: Server, autoload: bool, middle: Step | None
) -> None:
    """Untouched, a session adds no header and costs no call but the one that loads it ahead."""
    site = make_site()
    browser = site.browser(a=1)
    answer = server.visit(wrap(site, App(middle=middle), autoload=autoload), browser)
    assert answer.headers == PLAIN
    assert answer.body == b"onetwo"
    assert site.calls == (["load"] if autoload and site.store.revocable else [])
    assert site.events == []


@pytest.mark.parametrize("middle", [None, nothing], ids=["at once", "streamed"])
@pytest.mark.parametrize("inside", [each, in_thread], ids=["async", "sync"])
def test_a_change_is_saved(
    make_site: MakeSite, server: Server, inside: Callable[[Step], Step], middle: Step | None
) -> None:
    """A change before the response is saved, from the event loop and from a thread."""
    site = make_site()
    for browser, expected in [(site.browser(a=1), {"a": 1, "b": 2}), (site.browser(), {"b": 2})]:
        answer = server.visit(wrap(site, App(inside(put(b=2)), middle=middle)), browser)
        assert answer.body == b"onetwo"
        assert stored(site, browser) == expected


def test_a_change_inside_a_value_is_saved(make_site: MakeSite, server: Server) -> None:
    """A change inside a value that was read, and nothing else, is found and saved."""
    site = make_site()
    browser = site.browser(items=[1])
    server.visit(wrap(site, App(lambda session: session["items"].append(2))), browser)
    assert stored(site, browser) == {"items": [1, 2]}


def test_the_session_is_saved_before_the_server_hears_of_the_response(
    make_site: MakeSite, server: Server
) -> None:
    """When the headers reach the server, another node already reads the new data (I11)."""
    site = make_site()
    seen = []

    class Watching(Answer):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "http.response.start":
                seen.append(dict(site.manager.open(self.cookies[0])))

    app = wrap(site, App(put(a=1)))
    server.run(lambda: app(make_scope(), receive, Watching().send))
    assert seen == [{"a": 1}]


def test_a_session_that_was_read(make_site: MakeSite, server: Server) -> None:
    """A session that was only read makes the response vary, and writes nothing."""
    site = make_site()
    browser = site.browser(a=1)
    answer = server.visit(wrap(site, App(dict)), browser)
    assert answer.headers == [*PLAIN, (b"vary", b"Cookie")]
    assert site.calls == ["load"]


def test_a_session_that_is_due_for_a_refresh(make_site: MakeSite, server: Server) -> None:
    """A session whose expiry has fallen behind is written when it is read, as anywhere."""
    site = make_site()
    browser = site.browser(a=1)
    site.clock.advance(site.settings.session_cookie_age * 0.5)
    server.visit(wrap(site, App(dict)), browser)
    assert site.events.names == ["SessionRefreshed"]
    site.clock.advance(site.settings.session_cookie_age * 0.75)
    assert stored(site, browser) == {"a": 1}


def test_a_response_that_is_sent_twice(make_site: MakeSite, server: Server) -> None:
    """A response that an application keeps for everybody takes no visitor's cookie along."""
    site = make_site()
    start = {"type": "http.response.start", "status": 200, "headers": list(PLAIN)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/login":
            scope["session"]["user"] = "ann"
        await send(start)
        await send({"type": "http.response.body"})

    middleware = wrap(site, app)
    assert len(server.get(middleware, path="/login").cookies) == 1
    assert server.get(middleware).headers == PLAIN


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], {b"vary": [b"Cookie"], b"cache-control": [b"private"]}),
        (
            [(b"Vary", b"Accept"), (b"VARY", b"Origin"), (b"Cache-Control", b"public, max-age=60")],
            {b"vary": [b"Accept, Origin, Cookie"], b"cache-control": [b"max-age=60, private"]},
        ),
        (
            [[b"vary", b"*"], [b"cache-control", b"no-store"], [b"x-name", b"J\xfcrgen"]],
            {b"vary": [b"*"], b"cache-control": [b"no-store"], b"x-name": [b"J\xfcrgen"]},
        ),
        (
            ((b"set-cookie", b"other=1"), (b"x-odd", b"\xff\xc3\xbc")),
            {b"vary": [b"Cookie"], b"x-odd": [b"\xff\xc3\xbc"]},
        ),
    ],
    ids=["none", "merged", "stricter", "foreign"],
)
def test_the_headers_of_the_application(
    make_site: MakeSite, server: Server, headers: Any, expected: dict[bytes, list[bytes]]
) -> None:
    """Headers are merged as the rules of caches want, and every other byte stays as it is."""
    site = make_site()
    answer = server.get(wrap(site, App(put(a=1), headers=headers)))
    for name, values in expected.items():
        assert [value for key, value in answer.headers if key == name] == values
    assert len([line for line in answer.cookies if line.startswith("__Host-id=")]) == 1


def test_a_response_without_headers(make_site: MakeSite, server: Server) -> None:
    """A response that names no headers, as the protocol allows, gets its cookie."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["session"]["a"] = 1
        await send({"type": "http.response.start", "status": 200})

    assert len(server.get(wrap(make_site(), app)).cookies) == 1


def test_a_cookie_header_in_pieces(make_site: MakeSite, server: Server) -> None:
    """A Cookie header that HTTP/2 has split is read as one."""
    site = make_site()
    browser = site.browser(a=1)
    seen: list[Any] = []
    app = wrap(site, App(lambda session: seen.append(dict(session))))
    server.get(app, "theme=dark", site.header(browser.cookie), "lang=en")
    assert seen == [{"a": 1}]


def test_a_dead_cookie_is_taken_away(make_site: MakeSite, server: Server) -> None:
    """A cookie that stands for nothing is deleted, once its session is touched."""
    site = make_site()
    browser = site.browser()
    browser.cookie = "forged"
    assert server.get(wrap(site, App()), site.header(browser.cookie)).cookies == []
    assert server.visit(wrap(site, App(dict)), browser).cookies == ["__Host-id="]


@pytest.mark.parametrize("kind", ["memory"])
@pytest.mark.parametrize("protocol", ["lifespan", "something new"])
def test_other_scopes_pass_through(make_site: MakeSite, server: Server, protocol: str) -> None:
    """A scope that is no connection reaches the application untouched."""
    calls = []

    async def app(*call: Any) -> None:
        calls.append(call)

    scope = {"type": protocol}
    send = Answer().send
    server.run(lambda: wrap(make_site(), app)(scope, receive, send))
    assert calls == [(scope, receive, send)]
    assert scope == {"type": protocol}


# -- the event loop -------------------------------------------------------------------


AGE = 14 * 24 * 3600


class Slow:
    """A store whose *methods* wait until somebody lets them go on, and that notes who calls."""

    def __init__(self, store: Any, *methods: str) -> None:
        self._store = store
        self._methods = methods
        self.waiting = threading.Event()
        self.go_on = threading.Event()
        self.late = False
        self.threads: list[int] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name not in ("load", "create", "update", "delete"):
            return attribute

        def call(*args: Any) -> Any:
            self.threads.append(threading.get_ident())
            if name in self._methods:
                self.waiting.set()
                self.late |= not self.go_on.wait(10)
            return attribute(*args)

        return call


class Prompt(Slow):
    """A store that never waits, and says so."""

    blocking = False


@pytest.mark.server_stores
@pytest.mark.parametrize(
    ("method", "app"),
    [
        ("load", App(dict)),
        ("update", App(put(b=2))),
        ("update", App(put(b=2), middle=nothing)),
        ("update", App(each(put(b=2), save))),
        ("update", App(dict, after=put(b=2))),
        ("update", App(dict, middle=put(b=2))),
        ("update", App(dict, last=put(b=2))),
        ("delete", App(lambda session: session.destroy())),
        ("delete", App(lambda session: session.renew())),
    ],
    ids=["load", "save", "stream", "save()", "after", "middle", "last", "destroy", "renew"],
)
def test_the_event_loop_goes_on(make_site: MakeSite, server: Server, method: str, app: App) -> None:
    """While a store takes its time, the event loop turns a hundred times, and waits for nobody."""
    site = make_site()
    slow = Slow(site.store, method)
    middleware = wrap(site, app, slow)
    header = site.header(site.browser(a=1).cookie)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(middleware, make_scope(header), receive, Answer().send)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            for _ in range(100):
                await anyio.sleep(0)
            slow.go_on.set()

    server.run(main)
    assert not slow.late
    assert threading.get_ident() not in slow.threads


async def occupy_all_threads(session: Session | None = None) -> None:
    """From now on nobody gets a worker thread."""
    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    await limiter.acquire_on_behalf_of(object())


def get_without_threads(server: Server, app: SessionMiddleware, *cookies: str) -> Answer:
    """Make a request that would wait for ever if it needed a thread."""
    answer = Answer()

    async def main() -> None:
        await occupy_all_threads()
        with anyio.fail_after(5):
            await app(make_scope(*cookies), receive, answer.send)

    server.run(main)
    return answer


@pytest.mark.parametrize("step", [dict, nothing, load], ids=["read", "untouched", "load()"])
@pytest.mark.parametrize("token", [None, "forged", "A" * 32], ids=["none", "malformed", "forged"])
def test_who_has_no_session_needs_no_thread(
    make_site: MakeSite, server: Server, token: str | None, step: Step
) -> None:
    """Without a cookie, or with a forged one, a request is served while all threads are busy."""
    site = make_site()
    cookies = [] if token is None else [site.header(token)]
    assert get_without_threads(server, wrap(site, App(step)), *cookies).body == b"onetwo"


@pytest.mark.cookie_stores
@pytest.mark.parametrize(
    "step",
    [dict, put(b=2), lambda session: session.renew(), each(put(b=2), save)],
    ids=["read", "changed", "renewed", "save()"],
)
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_the_cookie_store_needs_no_thread(
    make_site: MakeSite, server: Server, known: bool, step: Step
) -> None:
    """Sessions in cookies are read and written while all threads are busy."""
    site = make_site()
    cookies = [site.header(site.browser(a=1).cookie)] if known else []
    assert get_without_threads(server, wrap(site, App(step)), *cookies).body == b"onetwo"


@pytest.mark.server_stores
def test_what_was_only_read_needs_no_second_thread(make_site: MakeSite, server: Server) -> None:
    """A session that was loaded and then only read ends while all threads are busy."""
    site = make_site()
    app = App(each(dict, occupy_all_threads))
    assert server.visit(wrap(site, app), site.browser(a=1)).body == b"onetwo"


@pytest.mark.server_stores
def test_an_unread_session_on_the_event_loop(make_site: MakeSite, server: Server) -> None:
    """Touching an unread session on the event loop is an error that says what to do."""
    site = make_site()
    browser = site.browser(a=1)
    app = wrap(site, App(dict), autoload=False)
    with pytest.raises(NotLoadedError, match=r"await request\.session\.load\(\)"):
        server.visit(app, browser)
    assert site.calls == []


@pytest.mark.parametrize("first", [load, in_thread(len)], ids=["load()", "thread"])
def test_a_session_that_is_read_by_hand(make_site: MakeSite, server: Server, first: Step) -> None:
    """Without autoload, load() or a worker thread reads the session, once."""
    site = make_site()
    browser = site.browser(a=1)
    app = App(each(first, load, put(b=2), in_thread(len)))
    server.visit(wrap(site, app, autoload=False), browser)
    assert stored(site, browser) == {"a": 1, "b": 2}
    assert site.calls[:-1].count("load") == 1


def test_loading_is_not_touching(make_site: MakeSite, server: Server) -> None:
    """A session that was loaded and not used adds nothing to the response."""
    site = make_site()
    answer = server.visit(wrap(site, App(load), autoload=False), site.browser(a=1))
    assert answer.headers == PLAIN


@pytest.mark.parametrize("kind", ["memory"])
@pytest.mark.parametrize(
    ("autoload", "path", "loads"),
    [
        (True, "/health", True),
        (False, "/", False),
        (lambda scope: scope["path"] == "/account", "/account", True),
        (lambda scope: scope["path"] == "/account", "/", False),
        (all_but("/health", "/static/{path:path}"), "/health", False),
        (all_but("/health", "/static/{path:path}"), "/static/a/b.css", False),
        (all_but("/health", "/static/{path:path}"), "/healthy", True),
    ],
)
def test_where_sessions_are_loaded_ahead(
    make_site: MakeSite, server: Server, autoload: Any, path: str, loads: bool
) -> None:
    """Loading ahead is off as a whole, by path or by route, as one says."""
    site = make_site()
    app = wrap(site, App(), autoload=autoload)
    server.get(app, site.header(site.browser(a=1).cookie), path=path)
    assert site.calls == (["load"] if loads else [])


@pytest.mark.parametrize(
    ("routes", "path", "loads"),
    [
        ((), "/", True),
        (("/",), "/", False),
        (("/items/{id}",), "/items/7", False),
        (("/items/{id}",), "/items/7/parts", True),
        (("/items/{id:int}.json",), "/items/7.json", False),
        (("/items/{id:int}.json",), "/items/7xjson", True),
        (("/a/{b}/c/{d:path}",), "/a/1/c/2/3", False),
        (("/a/{b}/c/{d:path}",), "/a/1/d/2/3", True),
        (("/a+b", "/c"), "/a+b", False),
        (("/a+b", "/c"), "/aab", True),
        (("/a", "/c"), "/c", False),
    ],
)
def test_routes_are_named_as_they_are_declared(
    routes: tuple[str, ...], path: str, loads: bool
) -> None:
    """all_but() takes routes as Starlette and FastAPI take them, under a root path as well."""
    autoload = all_but(*routes)
    assert autoload(make_scope(path=path)) is loads
    assert autoload(make_scope(path="/mounted" + path, root_path="/mounted")) is loads


@pytest.mark.server_stores
def test_threads_that_touch_at_once(make_site: MakeSite, server: Server) -> None:
    """Threads of one request that touch its session at the same time load it once."""
    site = make_site()
    slow = Slow(site.store, "load")
    header = site.header(site.browser(a=1).cookie)
    seen = []

    async def touch(session: Session) -> None:
        async def one() -> None:
            seen.append(await to_thread.run_sync(dict, session))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(one)
            tasks.start_soon(session.load)
            # All nine have their thread; the first waits in the store.
            while to_thread.current_default_thread_limiter().borrowed_tokens < 9:
                await anyio.sleep(0)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            slow.go_on.set()

    server.get(wrap(site, App(touch), slow, autoload=False), header)
    assert seen == [{"a": 1}] * 8
    assert len(slow.threads) == 1


VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.mark.parametrize("kind", ["memory"])
def test_context_variables(make_site: MakeSite, server: Server) -> None:
    """A store sees the context of the request that asks it, and leaves nothing behind in it."""
    site = make_site()
    seen: list[str] = []

    def note() -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set("the store's")

    def before(session: Session) -> None:
        VARIABLE.set("the request's")
        session["b"] = 2

    for method in ("load", "update"):
        site.chaos.before(method, note)
    app = App(before, after=lambda session: seen.append(VARIABLE.get()))
    server.get(wrap(site, app), site.header(site.browser(a=1).cookie))
    assert seen == ["unset", "the request's", "the request's"]


# -- load() and save() ----------------------------------------------------------------


@pytest.mark.parametrize("inside", [each, in_thread], ids=["async", "sync"])
def test_saving_at_once(
    make_site: MakeSite, server: Server, inside: Callable[[Step], Step]
) -> None:
    """What save() kept, awaited or in a thread, outlives an error that comes after it."""

    def sync_save(session: Session) -> None:
        session.save()

    site = make_site()
    store_it = save if inside is each else inside(sync_save)
    app = App(each(put(saved=1), store_it, put(unsaved=2)), status=500)
    browser = site.browser()
    server.visit(wrap(site, app), browser)
    assert stored(site, browser) == {"saved": 1}


def test_what_save_answers_in_a_thread(make_site: MakeSite, server: Server) -> None:
    """Code that is for both may await what save() answers in a thread as well."""

    def sync(session: Session) -> None:
        session["a"] = 1
        steps = session.save().__await__()
        assert list(iter(steps)) == []

    site = make_site()
    browser = site.browser()
    server.visit(wrap(site, App(in_thread(sync), status=500)), browser)
    assert stored(site, browser) == {"a": 1}


def test_saving_what_was_not_touched(make_site: MakeSite, server: Server) -> None:
    """save() of a session that nobody touched does nothing."""
    site = make_site()
    answer = server.visit(wrap(site, App(save), autoload=False), site.browser(a=1))
    assert answer.headers == PLAIN
    assert site.calls == []


@pytest.mark.server_stores
@pytest.mark.parametrize(
    ("meanwhile", "expected", "principal", "same_id"),
    [
        (put(c=3), {"a": 1, "b": [2], "c": 3}, None, True),
        (lambda session: session["b"].append(3), {"a": 1, "b": [2, 3]}, None, True),
        (lambda session: session.renew(), {"a": 1, "b": [2]}, None, False),
        (lambda session: session.bind("ann"), {"a": 1, "b": [2]}, "ann", False),
        (lambda session: session.destroy(), {}, None, False),
        (lambda session: session.__delitem__("a"), {"b": [2]}, None, True),
    ],
    ids=["change", "nested", "renew", "bind", "destroy", "delete"],
)
@pytest.mark.parametrize("others", [False, True], ids=["alone", "merging"])
def test_a_change_during_a_save(
    make_site: MakeSite,
    server: Server,
    meanwhile: Step,
    expected: dict[str, Any],
    principal: str | None,
    same_id: bool,
    others: bool,
) -> None:
    """A change that another task makes while the session is saved is not lost."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    old = browser.cookie

    async def before(session: Session) -> None:
        session["b"] = [2]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            if others:
                other_request()
            meanwhile(session)
            slow.go_on.set()

    def other_request() -> None:
        session = site.manager.open(site.header(old))
        session["other"] = True
        site.manager.close(session)

    server.visit(wrap(site, App(before), slow), browser)
    found = stored(site, browser)
    assert site.open(browser).principal == principal
    if others and expected:
        assert found.pop("other") is True
    assert found == expected
    assert (browser.cookie == old) is same_id
    if not same_id:
        assert dict(site.manager.open(site.header(old))) == {}


@pytest.mark.server_stores
def test_a_change_in_a_thread_while_a_save_is_merged(make_site: MakeSite, server: Server) -> None:
    """What a thread adds or changes is not lost, even while those of two requests are merged."""

    def rule(base: int, mine: int, theirs: int) -> Any:
        if threading.get_ident() == main_thread:  # what came during the save is merged there
            thread = threading.Thread(target=put(late=True, known=2), args=[scope["session"]])
            thread.start()
            thread.join()
        return counter(base, mine, theirs)

    site = make_site(SESSION_MERGE_RULES={"n": rule})
    slow = Slow(site.store, "update")
    browser = site.browser(n=0, known=1)
    scope = make_scope(site.header(browser.cookie))
    main_thread = threading.get_ident()

    async def before(session: Session) -> None:
        session["n"] += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            await to_thread.run_sync(other_request)
            session["n"] += 1
            slow.go_on.set()

    def other_request() -> None:
        other = site.manager.open(site.header(browser.cookie))
        other["n"] += 1
        site.manager.close(other)

    server.run(lambda: wrap(site, App(before), slow)(scope, receive, Answer().send))
    assert stored(site, browser) == {"n": 3, "known": 2, "late": True}


@pytest.mark.server_stores
def test_another_principal_during_a_save(make_site: MakeSite, server: Server) -> None:
    """Who takes over a session while it is being saved gets nothing of its last owner."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser()
    server.visit(wrap(site, App(each(put(a=1), lambda session: session.bind("ann")))), browser)
    header = site.header(browser.cookie)

    async def before(session: Session) -> None:
        session["b"] = 2
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            other = site.manager.open(header)
            other["ann's"] = True
            site.manager.close(other)
            session.bind("bob")
            session["bob's"] = True
            slow.go_on.set()

    server.visit(wrap(site, App(before), slow), browser)
    assert stored(site, browser) == {"bob's": True}
    assert site.open(browser).principal == "bob"


@pytest.mark.parametrize("inside", [each, in_thread], ids=["async", "sync"])
def test_what_is_known_after_a_save(
    make_site: MakeSite, server: Server, inside: Callable[[Step], Step]
) -> None:
    """After a save the session knows what became of it: when it began and when it will end."""
    site = make_site()
    seen = []

    def look(session: Session) -> None:
        seen.append((session.new, session.modified, session.created, session.expires))

    store_it: Step = save if inside is each else in_thread(lambda session: session.save())
    server.get(wrap(site, App(each(put(a=1), store_it, look))))
    now = int(site.clock())
    assert seen == [(False, False, now, now + site.settings.session_cookie_age)]


@pytest.mark.server_stores
@pytest.mark.parametrize(
    "view",
    [App(lambda session: session["a"]), App(in_thread(lambda session: session["a"]))],
    ids=["async", "sync"],
)
def test_a_look_at_what_cannot_change(
    make_site: MakeSite, server: Server, monkeypatch: pytest.MonkeyPatch, view: App
) -> None:
    """A page that reads text and numbers alone encodes nothing, for there is nothing to compare."""
    site = make_site()
    browser = site.browser(a=1)
    middleware = wrap(site, view)
    encoded: list[Any] = []
    monkeypatch.setattr(middleware.manager.codec, "encode", encoded.append)
    assert server.visit(middleware, browser).status == 200
    assert encoded == []


@pytest.mark.server_stores
def test_a_store_that_never_waits(make_site: MakeSite, server: Server) -> None:
    """A store that says that it never waits is called where it is needed, in no thread."""
    site = make_site()
    prompt = Prompt(site.store)
    browser = site.browser(a=1)
    server.visit(wrap(site, App(each(load, put(b=2))), prompt), browser)
    assert stored(site, browser) == {"a": 1, "b": 2}
    assert set(prompt.threads) == {threading.get_ident()}


@pytest.mark.server_stores
def test_a_change_while_the_response_is_saved(make_site: MakeSite, server: Server) -> None:
    """What changes while a response is being saved is saved at its end, and in a thread too."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    app = wrap(site, App(put(b=[2])), slow)
    scope = make_scope(site.header(browser.cookie))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, scope, receive, Answer().send)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            scope["session"]["b"].append(3)
            slow.go_on.set()

    server.run(main)
    assert stored(site, browser) == {"a": 1, "b": [2, 3]}
    assert threading.get_ident() not in slow.threads


@pytest.mark.server_stores
def test_two_saves_at_once(make_site: MakeSite, server: Server) -> None:
    """Two tasks that save a new session at the same time create it once."""
    site = make_site()
    slow = Slow(site.store, "create")

    async def before(session: Session) -> None:
        session["a"] = 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            for _ in range(10):
                await anyio.sleep(0)
            slow.go_on.set()

    browser = site.browser()
    server.visit(wrap(site, App(before), slow), browser)
    assert site.rows == 1
    assert stored(site, browser) == {"a": 1}


@pytest.mark.server_stores
def test_two_threads_that_save_at_once(make_site: MakeSite, server: Server) -> None:
    """Two threads that save a new session at the same time create it once."""
    site = make_site()
    slow = Slow(site.store, "create")
    both = threading.Barrier(2)

    def sync_save(session: Session) -> None:
        both.wait(10)
        session.save()

    async def before(session: Session) -> None:
        session["a"] = 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_thread(sync_save), session)
            tasks.start_soon(in_thread(sync_save), session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            for _ in range(1000):
                await anyio.sleep(0)
            slow.go_on.set()

    browser = site.browser()
    server.visit(wrap(site, App(before), slow), browser)
    assert site.rows == 1
    assert stored(site, browser) == {"a": 1}


@pytest.mark.server_stores
@pytest.mark.parametrize("loop_first", [True, False], ids=["loop first", "thread first"])
@pytest.mark.parametrize(
    ("method", "data", "change", "expected"),
    [
        ("create", {}, put(a=1), {"a": 1}),
        ("create", {"a": 1}, lambda session: session.renew(), {"a": 1}),
        ("update", {"n": 1}, put(n=2), {"n": 2}),
    ],
    ids=["new", "renewed", "counted"],
)
def test_a_thread_and_a_task_that_save_at_once(
    make_site: MakeSite,
    server: Server,
    loop_first: bool,
    method: str,
    data: dict[str, Any],
    change: Step,
    expected: dict[str, Any],
) -> None:
    """A thread and a task that save at the same time take turns."""
    site = make_site(SESSION_MERGE_RULES={"n": counter})
    slow = Slow(site.store, method)
    saving = threading.Event()

    def sync_save(session: Session) -> None:
        if loop_first:
            slow.late |= not slow.waiting.wait(10)
        saving.set()
        session.save()

    async def before(session: Session) -> None:
        change(session)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_thread(sync_save), session)
            while not (loop_first or slow.waiting.is_set()):
                await anyio.sleep(0)
            tasks.start_soon(save, session)
            while not (slow.waiting.is_set() and saving.is_set()):
                await anyio.sleep(0)
            for _ in range(1000):
                await anyio.sleep(0)
            slow.go_on.set()

    browser = site.browser(**data)
    server.visit(wrap(site, App(before), slow), browser)
    assert not slow.late
    assert site.rows == 1
    assert stored(site, browser) == expected


@pytest.mark.server_stores
def test_a_thread_need_not_wait_for_who_waits_for_a_thread(
    make_site: MakeSite, server: Server
) -> None:
    """The last thread to be had saves, although a task that needs one wants to save as well."""
    site = make_site()
    browser = site.browser(a=1)
    both = threading.Event()

    def sync_save(session: Session) -> None:
        both.wait(10)
        session.save()

    async def before(session: Session) -> None:
        limiter = to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        session["b"] = 2
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(in_thread(sync_save), session)
                while not limiter.borrowed_tokens:
                    await anyio.sleep(0)
                tasks.start_soon(save, session)
                for _ in range(100):
                    await anyio.sleep(0)
                both.set()

    server.visit(wrap(site, App(before)), browser)
    assert stored(site, browser) == {"a": 1, "b": 2}


def unavailable(session: Session) -> None:
    """A step that meets an outage of some other store."""
    raise StoreUnavailable("elsewhere")


@pytest.mark.server_stores
@pytest.mark.parametrize(
    ("status", "last"),
    [(200, nothing), (500, nothing), (503, unavailable)],
    ids=["success", "failure", "outage"],
)
@pytest.mark.parametrize(
    "store_it", [save, in_thread(lambda session: session.save() and None)], ids=["task", "thread"]
)
def test_a_response_waits_for_a_save_that_is_under_way(
    make_site: MakeSite, server: Server, store_it: Step, status: int, last: Step
) -> None:
    """A response that starts while the session is saved elsewhere has the cookie of that save."""
    site = make_site()
    slow = Slow(site.store, "delete")
    browser = site.browser(a=1)
    answer = Answer()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def before(session: Session) -> None:
                session.renew()
                tasks.start_soon(store_it, session)
                while not slow.waiting.is_set():
                    await anyio.sleep(0)

            app = wrap(site, App(each(before, last), status=status), slow)
            tasks.start_soon(app, make_scope(site.header(browser.cookie)), receive, answer.send)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            for _ in range(100):
                await anyio.sleep(0)
            slow.go_on.set()

    server.run(main)
    assert answer.status == status
    (line,) = answer.cookies
    browser.cookie = line.partition("=")[2]
    assert stored(site, browser) == {"a": 1}


@pytest.mark.server_stores
def test_a_save_that_waited_until_the_headers_had_left(make_site: MakeSite, server: Server) -> None:
    """A save that had to wait for that of the response is one after the headers."""
    site = make_site()
    slow = Slow(site.store, "create")
    late: list[Exception] = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            scope = make_scope()
            app = wrap(site, App(put(a=1)), slow)
            tasks.start_soon(app, scope, receive, Answer().send)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            session = scope["session"]
            session.renew()

            async def second() -> None:
                try:
                    await session.save()
                except HeadersSentError as error:
                    late.append(error)
                    session.revert()

            tasks.start_soon(second)
            for _ in range(10):
                await anyio.sleep(0)
            slow.go_on.set()

    server.run(main)
    assert len(late) == 1
    assert site.rows == 1


@pytest.mark.server_stores
def test_objects_stay_the_session_s_own(make_site: MakeSite, server: Server) -> None:
    """A list that was taken out of the session still belongs to it after a save."""

    async def before(session: Session) -> None:
        items = session["items"] = [1]
        await session.save()
        items.append(2)

    site = make_site()
    browser = site.browser(a=1)
    server.visit(wrap(site, App(before)), browser)
    assert stored(site, browser) == {"a": 1, "items": [1, 2]}


@pytest.mark.server_stores
@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("create", put(b=2)),
        ("update", put(b=2)),
        ("delete", each(lambda session: session.renew(), put(b=2))),
    ],
    ids=["new", "change", "renew"],
)
def test_a_save_that_is_killed_and_made_again(
    make_site: MakeSite, method: str, change: Step
) -> None:
    """A request whose save asyncio kills, as by a time-out, goes on and saves each change once."""
    site = make_site(SESSION_MERGE_RULES={"b": counter})
    slow = Slow(site.store, method)
    browser = site.browser() if method == "create" else site.browser(a=1)
    expected = {"b": 2, **stored(site, browser)}

    async def before(session: Session) -> None:
        await each(change)(session)
        task = asyncio.ensure_future(save(session))
        while not slow.waiting.is_set():
            await asyncio.sleep(0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.modified

    Server("asyncio").visit(wrap(site, App(before), slow), browser)
    assert stored(site, browser) == expected
    assert site.rows == 1
    assert "SessionGone" not in site.events.names


@pytest.mark.server_stores
def test_a_save_that_is_killed_while_it_waits_for_a_thread(make_site: MakeSite) -> None:
    """A save that asyncio kills before it has begun is not made, and the change is still there."""
    site = make_site()
    browser = site.browser(a=1)
    seen = []

    async def before(session: Session) -> None:
        session["b"] = 2
        await occupy_all_threads()
        task = asyncio.ensure_future(save(session))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        seen.append((session.modified, site.calls.count("update")))
        to_thread.current_default_thread_limiter().total_tokens = 2

    Server("asyncio").visit(wrap(site, App(before)), browser)
    assert seen == [(True, 0)]
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_session_that_ends_during_a_save_takes_everything_along(
    make_site: MakeSite, server: Server
) -> None:
    """What was changed while the save of a dead session was on its way does not revive its data."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(user={"name": "ann"})
    old = browser.copy()

    async def before(session: Session) -> None:
        session["a"] = 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            other = site.open(old)
            other.destroy()
            site.manager.close(other)
            session["user"]["seen"] = True
            slow.go_on.set()
        assert dict(session) == {}

    answer = server.visit(wrap(site, App(before), slow), browser)
    assert answer.cookies == []
    assert site.rows == 0


@pytest.mark.server_stores
def test_a_new_session_after_a_logout_during_a_save(make_site: MakeSite, server: Server) -> None:
    """Who destroys a session while it is saved can begin another, even if it was dead already."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(user="ann")
    old = browser.copy()

    async def before(session: Session) -> None:
        session["a"] = 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            other = site.open(old)
            other.destroy()
            site.manager.close(other)
            session.destroy()
            session["b"] = 2
            slow.go_on.set()

    server.visit(wrap(site, App(before), slow), browser)
    assert stored(site, browser) == {"b": 2}


@pytest.mark.server_stores
def test_the_age_of_a_new_session_after_a_logout_during_a_save(
    make_site: MakeSite, server: Server, clock: FakeClock
) -> None:
    """What begins after a logout is as old as itself, not as what was saved meanwhile."""
    site = make_site()
    slow = Slow(site.store, "create")
    browser = site.browser(a=1)

    async def before(session: Session) -> None:
        session.renew(restart=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            session.destroy()
            session["b"] = 2
            slow.go_on.set()
        clock.advance(60)

    server.visit(wrap(site, App(before), slow), browser)
    session = site.open(browser)
    assert (dict(session), session.created) == ({"b": 2}, clock.now)


@pytest.mark.server_stores
def test_a_new_session_during_a_logout(make_site: MakeSite, server: Server) -> None:
    """What a task keeps while the logout is saved begins another session."""
    site = make_site()
    slow = Slow(site.store, "delete")
    browser = site.browser(user="ann")
    old = browser.copy()

    async def before(session: Session) -> None:
        session.destroy()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            session["b"] = 2
            slow.go_on.set()

    server.visit(wrap(site, App(before), slow), browser)
    assert stored(site, browser) == {"b": 2}
    assert stored(site, old) == {}


@pytest.mark.server_stores
def test_a_revert_during_a_save(make_site: MakeSite, server: Server) -> None:
    """A session that is reverted while it is saved under a new id keeps that id."""
    site = make_site()
    slow = Slow(site.store, "create")
    browser = site.browser(a=1)

    async def before(session: Session) -> None:
        session.renew()
        session["b"] = 2
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            session.revert()
            slow.go_on.set()

    server.visit(wrap(site, App(before), slow), browser)
    assert stored(site, browser) == {"a": 1}
    assert site.rows == 1


@pytest.mark.server_stores
def test_a_value_of_another_type_that_came_during_a_save(
    make_site: MakeSite, server: Server
) -> None:
    """What another request saved first is kept, also if it is equal to ours in Python's eyes."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    header = site.header(browser.cookie)

    async def before(session: Session) -> None:
        session["b"] = 2
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save, session)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            other = site.manager.open(header)
            other["a"] = True
            site.manager.close(other)
            slow.go_on.set()

    server.visit(wrap(site, App(before), slow), browser)
    assert stored(site, browser)["a"] is True


@pytest.mark.server_stores
def test_an_object_of_the_session_after_a_merge(make_site: MakeSite, server: Server) -> None:
    """A list that was taken out of the session still belongs to it when its save was merged."""
    site = make_site()
    browser = site.browser(items=[1])
    header = site.header(browser.cookie)

    async def before(session: Session) -> None:
        items = session["items"]
        session["a"] = 1
        other = site.manager.open(header)
        other["b"] = 2
        site.manager.close(other)
        await session.save()
        items.append(2)

    server.visit(wrap(site, App(before)), browser)
    assert stored(site, browser) == {"a": 1, "b": 2, "items": [1, 2]}


@pytest.mark.server_stores
def test_a_new_id_that_comes_too_late(make_site: MakeSite, server: Server) -> None:
    """Who asks for a new id while the response is saved is told, and nobody loses a session."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    app = wrap(site, App(put(b=2)), slow)
    scope = make_scope(site.header(browser.cookie))

    async def request() -> None:
        with pytest.raises(HeadersSentError):
            await app(scope, receive, Answer().send)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            scope["session"].renew()
            slow.go_on.set()

    server.run(main)
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_another_session_that_comes_too_late(make_site: MakeSite, server: Server) -> None:
    """Who logs out and begins anew while the response is saved is logged out, and leaves no row."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    app = wrap(site, App(put(b=2)), slow)
    scope = make_scope(site.header(browser.cookie))

    async def request() -> None:
        with pytest.raises(HeadersSentError):
            await app(scope, receive, Answer().send)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            scope["session"].destroy()
            scope["session"]["c"] = 3
            slow.go_on.set()

    server.run(main)
    assert site.rows == 0


def test_what_cannot_be_kept(make_site: MakeSite, server: Server) -> None:
    """A value inside another that no session can keep is an error, and no cookie leaves."""
    site = make_site()
    answer = Answer()
    app = wrap(site, App(each(put(a=[]), lambda session: session["a"].append(object()))))
    with pytest.raises(UnstorableError):
        server.run(lambda: app(make_scope(), receive, answer.send))
    assert answer.messages == []


# -- the end of the body --------------------------------------------------------------


@pytest.mark.server_stores
@pytest.mark.parametrize("inside", [each, in_thread], ids=["async", "sync"])
@pytest.mark.parametrize("where", ["after", "middle", "last"])
def test_a_change_after_the_headers(
    make_site: MakeSite, server: Server, where: str, inside: Callable[[Step], Step]
) -> None:
    """A server store keeps what was changed after the response started."""
    site = make_site()
    browser = site.browser(a=1)
    app = at(where, inside(put(c=3)), before=put(b=2))
    assert server.visit(wrap(site, app), browser).body == b"onetwo"
    assert stored(site, browser) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.server_stores
def test_a_body_is_saved_before_its_end(make_site: MakeSite, server: Server) -> None:
    """When a visitor has the last byte of a streamed body, what it changed can be read."""
    site = make_site()
    browser = site.browser(a=1)
    seen = []

    class Watching(Answer):
        async def send(self, message: Message) -> None:
            if message.get("body") == b"two":
                seen.append(stored(site, browser))

    app = wrap(site, App(middle=put(b=2)))
    server.run(lambda: app(make_scope(site.header(browser.cookie)), receive, Watching().send))
    assert seen == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("where", ["after", "middle", "last"])
def test_a_new_session_cannot_begin_late(make_site: MakeSite, server: Server, where: str) -> None:
    """A visitor without a session cannot get one after the headers, nor a row (R23)."""
    site = make_site()
    with pytest.raises(HeadersSentError):
        server.get(wrap(site, at(where, put(c=3))))
    assert site.rows == 0


@pytest.mark.cookie_stores
@pytest.mark.parametrize("where", ["after", "middle", "last"])
def test_a_late_nested_change_is_not_lost_in_silence(
    make_site: MakeSite, server: Server, where: str
) -> None:
    """Where the cookie is the data, a late change inside a value is an error and not a loss."""
    site = make_site()
    app = at(where, lambda session: session["a"].append(2), before=put(a=[1]))
    with pytest.raises(HeadersSentError):
        server.get(wrap(site, app))


@pytest.mark.cookie_stores
def test_saving_too_late(make_site: MakeSite, server: Server) -> None:
    """Where the cookie is the data, save() after the headers is an error if it has to save."""
    site = make_site()

    def change(session: Session) -> None:
        session["a"].append(2)

    with pytest.raises(HeadersSentError):
        server.get(wrap(site, App(put(a=[1]), after=each(save, change, save, fail))))


@pytest.mark.server_stores
def test_a_visitor_who_leaves_early(make_site: MakeSite, server: Server) -> None:
    """What a body changed is kept when its request is cancelled in the middle."""
    site = make_site()
    browser = site.browser(a=1)

    async def main() -> None:
        with anyio.CancelScope() as scope:
            app = wrap(site, App(middle=each(put(b=2), lambda session: scope.cancel(), pause)))
            await app(make_scope(site.header(browser.cookie)), receive, Answer().send)
        assert scope.cancelled_caught

    async def pause(session: Session) -> None:
        await anyio.sleep_forever()

    server.run(main)
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_request_that_is_cancelled_during_its_save(make_site: MakeSite, server: Server) -> None:
    """A save that has begun comes to its end although its request is cancelled."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    answer = Answer()
    app = wrap(site, App(put(b=2)), slow)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            scope = make_scope(site.header(browser.cookie))
            tasks.start_soon(app, scope, receive, answer.send)
            while not slow.waiting.is_set():
                await anyio.sleep(0)
            tasks.cancel_scope.cancel()
            slow.go_on.set()

    server.run(main)
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_task_that_is_killed_during_its_save(make_site: MakeSite) -> None:
    """A save that has begun comes to its end although asyncio kills the task that waits for it."""
    site = make_site()
    slow = Slow(site.store, "update")
    browser = site.browser(a=1)
    answer = Answer()
    app = wrap(site, App(put(b=2)), slow)

    async def main() -> None:
        scope = make_scope(site.header(browser.cookie))
        task = asyncio.ensure_future(app(scope, receive, answer.send))
        while not slow.waiting.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert answer.messages == []
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_request_that_is_cancelled_before_its_save(make_site: MakeSite, server: Server) -> None:
    """A request that is cancelled before it starts its response saves nothing."""
    site = make_site()
    browser = site.browser(a=1)

    async def main() -> None:
        with anyio.CancelScope() as scope:
            app = wrap(site, App(each(put(b=2), lambda session: scope.cancel())))
            await app(make_scope(site.header(browser.cookie)), receive, Answer().send)

    server.run(main)
    assert stored(site, browser) == {"a": 1}
    assert "update" not in site.calls


# -- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("late", [nothing, lambda session: session["b"].append(3)])
def test_a_server_error_saves_nothing(
    make_site: MakeSite, server: Server, known: bool, late: Step
) -> None:
    """A 5xx response saves no change and sets no cookie."""
    site = make_site()
    browser = site.browser(a=1) if known else site.browser()
    answer = server.visit(wrap(site, App(put(b=[2]), last=late, status=500)), browser)
    assert answer.cookies == []
    assert stored(site, browser) == ({"a": 1} if known else {})
    assert site.rows == (1 if known and site.store.revocable else 0)


@pytest.mark.parametrize("status", [204, 302, 404, 499])
def test_every_other_status_saves(make_site: MakeSite, server: Server, status: int) -> None:
    """A response of any other status saves what changed."""
    site = make_site()
    browser = site.browser(a=1)
    server.visit(wrap(site, App(put(b=2), status=status)), browser)
    assert stored(site, browser) == {"a": 1, "b": 2}


def test_an_exception_before_the_response(make_site: MakeSite, server: Server) -> None:
    """An exception passes through as it is, and nothing is saved."""
    site = make_site()
    browser = site.browser(a=1)
    with pytest.raises(ZeroDivisionError):
        server.visit(wrap(site, App(each(put(b=2), fail))), browser)
    assert stored(site, browser) == {"a": 1}


@pytest.mark.parametrize("step", [dict, put(b=2), in_thread(dict), load])
@pytest.mark.parametrize("autoload", [True, False])
def test_a_store_that_does_not_answer(
    make_site: MakeSite, server: Server, step: Step, autoload: bool
) -> None:
    """A store that cannot answer makes a 503, which tells and claims nothing (security 77)."""
    site = make_site()
    browser = site.browser(a=1)
    site.chaos.down()
    app = App(each(step, len)) if autoload else App(each(load, step, len))
    answer = server.get(wrap(site, app, autoload=autoload), site.header(browser.cookie))
    assert answer.status == 503
    assert answer.body == b"Service Unavailable\n"
    assert answer.headers == [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"20"),
        (b"cache-control", b"no-store"),
        (b"retry-after", b"5"),
    ]
    site.chaos.up()
    assert stored(site, browser) == {"a": 1}


@pytest.mark.parametrize("kind_of_scope", ["http", "websocket"])
def test_a_503_after_a_save(make_site: MakeSite, server: Server, kind_of_scope: str) -> None:
    """What was saved before the store failed has its cookie beside the 503."""
    site = make_site()
    browser = site.browser(a=1)
    app = App(
        each(
            lambda session: session.renew(),
            save,
            put(b=2),
            lambda session: site.chaos.fail("update"),
            save,
        )
    )
    scope: dict[str, Any] = {"kind": kind_of_scope, "extensions": {"websocket.http.response": {}}}
    answer = server.get(wrap(site, app), site.header(browser.cookie), **scope)
    assert answer.status == 503
    (line,) = answer.cookies
    browser.cookie = line.partition("=")[2]
    assert stored(site, browser) == {"a": 1}
    assert (b"cache-control", b"no-store") in answer.headers


@pytest.mark.parametrize(("method", "known"), [("update", True), ("create", False)])
def test_a_session_that_cannot_be_saved(
    make_site: MakeSite, server: Server, method: str, known: bool
) -> None:
    """A session that could not be saved is a 503 and no cookie."""
    site = make_site()
    browser = site.browser(a=1) if known else site.browser()
    site.chaos.fail(method)
    answer = server.visit(wrap(site, App(put(b=2))), browser)
    assert answer.status == 503
    assert answer.cookies == []
    assert stored(site, browser) == ({"a": 1} if known else {})


@pytest.mark.server_stores
def test_a_page_that_needs_no_session(make_site: MakeSite, server: Server) -> None:
    """A page that does not touch its session is served while the store is down."""
    site = make_site()
    browser = site.browser(a=1)
    site.chaos.down()
    answer = server.visit(wrap(site, App()), browser)
    assert (answer.status, answer.headers) == (200, PLAIN)


@pytest.mark.server_stores
@pytest.mark.parametrize("again", [load, in_thread(len)], ids=["load()", "thread"])
def test_a_second_try(make_site: MakeSite, server: Server, again: Step) -> None:
    """After a load ahead that failed, load() and a thread ask the store once more."""
    site = make_site()
    browser = site.browser(a=1)
    site.chaos.fail("load")

    def first(session: Session) -> None:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                session["b"] = 2

    server.visit(wrap(site, App(each(first, again, put(c=3)))), browser)
    assert stored(site, browser) == {"a": 1, "c": 3}


@pytest.mark.server_stores
@pytest.mark.parametrize("where", ["after", "middle", "last"])
def test_a_store_that_fails_after_the_headers(
    make_site: MakeSite, server: Server, where: str
) -> None:
    """A started response cannot become a 503: the error goes to the server."""
    site = make_site()
    browser = site.browser(a=1)
    site.chaos.fail("load")
    answer = Answer()
    app = wrap(site, at(where, len))
    with pytest.raises(StoreUnavailable):
        server.run(lambda: app(make_scope(site.header(browser.cookie)), receive, answer.send))
    assert answer.status == 200


@pytest.mark.server_stores
def test_a_save_that_fails_keeps_the_changes(make_site: MakeSite, server: Server) -> None:
    """After a save that failed, the changes are there and can be saved again."""
    site = make_site()
    browser = site.browser(a=1)
    site.chaos.fail("update")

    async def before(session: Session) -> None:
        session["b"] = 2
        with pytest.raises(StoreUnavailable):
            await session.save()

    server.visit(wrap(site, App(before)), browser)
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_save_that_fails_keeps_what_was_asked_for(make_site: MakeSite, server: Server) -> None:
    """A new id that was asked for is made by the next save, if this one cannot do it."""
    site = make_site()
    browser = site.browser(a=1)
    old = browser.cookie

    async def before(session: Session) -> None:
        session.renew()
        site.chaos.fail("delete")
        with pytest.raises(StoreUnavailable):
            await session.save()

    server.visit(wrap(site, App(before)), browser)
    assert browser.cookie != old
    assert stored(site, browser) == {"a": 1}
    assert dict(site.manager.open(site.header(old))) == {}


@pytest.mark.server_stores
@pytest.mark.parametrize(
    ("wish", "event", "spent"),
    [
        (lambda session: setattr(session, "modified", True), "SessionSaved", 60),
        (lambda session: setattr(session, "lifetime", AGE), "SessionRefreshed", 0),
    ],
    ids=["modified", "lifetime"],
)
def test_a_save_that_fails_forgets_no_wish(
    make_site: MakeSite, server: Server, wish: Step, event: str, spent: int
) -> None:
    """A save in any case, and a lifetime from now on, are the next save's if this one fails."""
    site = make_site()
    browser = site.browser(_lifetime=AGE)
    site.clock.advance(60)

    async def before(session: Session) -> None:
        wish(session)
        site.chaos.fail("update")
        with pytest.raises(StoreUnavailable):
            await session.save()

    server.visit(wrap(site, App(before)), browser)
    assert site.events.names[-1] == event
    assert site.open(browser).expires == int(site.clock()) + AGE - spent


def test_a_broken_store_is_no_503(make_site: MakeSite, server: Server) -> None:
    """A store that is broken, not late, is an error for whoever runs the site."""
    site = make_site()
    site.chaos.before("create", partial(broken, StoreError("broken")))
    with pytest.raises(StoreError, match="broken"):
        server.get(wrap(site, App(put(a=1))))


def broken(error: Exception) -> None:
    raise error


@pytest.mark.cookie_stores
def test_a_cookie_that_is_too_large(make_site: MakeSite, server: Server) -> None:
    """A cookie too large for browsers is an error before a header leaves (security 27)."""
    site = make_site(SESSION_COOKIE_COMPRESS=False)
    answer = Answer()
    app = wrap(site, App(put(large="x" * 4096)))
    with pytest.raises(SessionTooLarge):
        server.run(lambda: app(make_scope(), receive, answer.send))
    assert answer.messages == []


# -- several sessions -----------------------------------------------------------------


def test_two_sessions_in_one_request(make_site: MakeSite, server: Server) -> None:
    """Sessions of different cookie names do not touch, inside or around each other (lineage 84)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        both["inner"] = scope["session"]
        both["outer"]["who"] = both["outer"].get("who", 0) + 1
        both["inner"]["who"] = both["inner"].get("who", 10) + 10
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = f"{both['outer']['who']} {both['inner']['who']}".encode()
        await send({"type": "http.response.body", "body": body})

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        both["outer"] = scope["session"]
        await inner(scope, receive, send)
        assert scope["session"] is both["outer"]

    both: dict[str, Session] = {}
    inner = wrap(make_site(SESSION_COOKIE_NAME="__Host-inner"), app)
    outer = wrap(make_site(SESSION_COOKIE_NAME="__Host-outer"), between)
    first = server.get(outer)
    assert sorted(line[:12] for line in first.cookies) == ["__Host-inner", "__Host-outer"]
    assert [value for name, value in first.headers if name == b"vary"] == [b"Cookie"]
    second = server.get(outer, "; ".join(first.cookies))
    assert [first.body, second.body] == [b"1 20", b"2 30"]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(("principal", "loads"), [(None, False), ("ann", True)])
def test_a_hybrid_store(
    make_site: MakeSite, server: Server, principal: str | None, loads: bool
) -> None:
    """A hybrid store is asked in a thread for its ids, and in place for its cookies."""
    site = make_site(
        SESSION_STORE="tieredsession.stores.HybridSessionStore",
        SESSION_STORE_URL="sqlite:///{folder}/hybrid.sqlite3",
    )
    browser = site.browser()
    answer = server.visit(wrap(site, App(each(put(a=1), lambda s: s.bind(principal)))), browser)
    assert answer.status == 200
    slow = Slow(site.store)
    if loads:
        with pytest.raises(NotLoadedError):
            server.visit(wrap(site, App(dict), slow, autoload=False), browser)
    app = App(each(load, put(b=2)))
    server.visit(wrap(site, app, slow, autoload=False), browser)
    assert stored(site, browser) == {"a": 1, "b": 2}
    assert (threading.get_ident() in slow.threads) is not loads
    site.real_store.server.close()  # type: ignore[attr-defined]  # of a hybrid


# -- websockets -----------------------------------------------------------------------


@dataclass
class Socket:
    """A websocket application that does something before and after it accepts, and at the end."""

    before: Step = nothing
    after: Step = nothing
    last: Step = nothing
    answer: str = "accept"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = scope["session"]
        await each(self.before)(session)
        if self.answer == "accept":
            await send({"type": "websocket.accept", "headers": [(b"x-own", b"1")]})
        elif self.answer == "deny":
            start = "websocket.http.response.start"
            await send({"type": start, "status": 401, "headers": list(PLAIN)})
            await send({"type": "websocket.http.response.body", "body": b"no"})
        await each(self.after)(session)
        if self.answer != "deny":
            await send({"type": "websocket.close", "code": 1000})
        await each(self.last)(session)


def test_a_websocket_sets_its_cookie_when_it_is_accepted(
    make_site: MakeSite, server: Server
) -> None:
    """What changed before a websocket is accepted is saved, and its cookie goes with that."""
    site = make_site()
    answer = server.get(wrap(site, Socket(put(a=1))), kind="websocket")
    assert (b"x-own", b"1") in answer.headers
    (cookie,) = answer.cookies
    assert dict(site.manager.open(cookie)) == {"a": 1}


def test_an_untouched_websocket(make_site: MakeSite, server: Server) -> None:
    """A websocket that does not touch its session is accepted as it would be without."""
    site = make_site()
    cookie = site.header(site.browser(a=1).cookie)
    answer = server.get(wrap(site, Socket(), autoload=False), cookie, kind="websocket")
    assert answer.headers == [(b"x-own", b"1")]
    assert site.calls == []


@pytest.mark.server_stores
@pytest.mark.parametrize(
    "app",
    [
        Socket(after=each(put(b=2), save, fail)),
        Socket(after=put(b=2)),
        Socket(last=put(b=2)),
        Socket(last=each(put(b=2), fail)),
    ],
    ids=["save()", "close", "return", "error"],
)
def test_a_websocket_saves_later(make_site: MakeSite, server: Server, app: Socket) -> None:
    """A server store keeps what a websocket changes: at save(), at its close, at its end."""
    site = make_site()
    browser = site.browser(a=1)
    with contextlib.suppress(ZeroDivisionError):
        server.get(wrap(site, app), site.header(browser.cookie), kind="websocket")
    assert stored(site, browser) == {"a": 1, "b": 2}


@pytest.mark.server_stores
def test_a_save_of_a_websocket_is_seen_at_once(make_site: MakeSite, server: Server) -> None:
    """When save() has returned, other requests read what a websocket changed."""
    site = make_site()
    browser = site.browser(a=1)
    seen = []

    def look(session: Session) -> None:
        seen.append(stored(site, browser))

    app = Socket(after=each(put(b=2), save, look))
    server.get(wrap(site, app), site.header(browser.cookie), kind="websocket")
    assert seen == [{"a": 1, "b": 2}]


@pytest.mark.server_stores
def test_a_websocket_is_saved_before_its_close(make_site: MakeSite, server: Server) -> None:
    """When a visitor hears of the close of a websocket, what it changed can be read."""
    site = make_site()
    browser = site.browser(a=1)
    seen = []

    class Watching(Answer):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.close":
                seen.append(stored(site, browser))

    app = wrap(site, Socket(after=put(b=2)))
    scope = make_scope(site.header(browser.cookie), kind="websocket")
    server.run(lambda: app(scope, receive, Watching().send))
    assert seen == [{"a": 1, "b": 2}]


@pytest.mark.cookie_stores
@pytest.mark.parametrize("app", [Socket(after=put(b=2)), Socket(last=put(b=2))])
def test_a_websocket_cannot_set_a_cookie_later(
    make_site: MakeSite, server: Server, app: Socket
) -> None:
    """Where the cookie is the data, a change after the acceptance is an error."""
    site = make_site()
    cookie = site.header(site.browser(a=1).cookie)
    with pytest.raises(HeadersSentError):
        server.get(wrap(site, app), cookie, kind="websocket")


def test_a_websocket_that_is_denied(make_site: MakeSite, server: Server) -> None:
    """A denial that is a response of its own saves, and sets a cookie, as any response does."""
    site = make_site()
    app = wrap(site, Socket(put(a=1), answer="deny"))
    answer = server.get(app, kind="websocket")
    assert answer.status == 401
    (cookie,) = answer.cookies
    assert dict(site.manager.open(cookie)) == {"a": 1}


def test_a_websocket_that_is_refused(make_site: MakeSite, server: Server) -> None:
    """A websocket that is closed instead of accepted keeps what it can keep without a cookie."""
    site = make_site()
    browser = site.browser(a=1)
    app = wrap(site, Socket(put(b=2), answer="close"))
    if site.store.revocable:
        server.get(app, site.header(browser.cookie), kind="websocket")
        assert stored(site, browser) == {"a": 1, "b": 2}
    else:
        with pytest.raises(HeadersSentError):
            server.get(app, site.header(browser.cookie), kind="websocket")


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (None, ["websocket.close"]),
        ({}, ["websocket.close"]),
        (
            {"websocket.http.response": {}},
            ["websocket.http.response.start", "websocket.http.response.body"],
        ),
    ],
    ids=["none", "empty", "denial"],
)
def test_a_websocket_while_the_store_is_down(
    make_site: MakeSite, server: Server, extensions: Any, expected: list[str]
) -> None:
    """A websocket whose session cannot be read is refused, with a 503 where a server can."""
    site = make_site()
    cookie = site.header(site.browser(a=1).cookie)
    site.chaos.fail("load")
    app = wrap(site, Socket(dict))
    answer = server.get(app, cookie, kind="websocket", extensions=extensions)
    assert [message["type"] for message in answer.messages] == expected
    if expected == ["websocket.close"]:
        assert answer.messages[0]["code"] == 1013
    else:
        assert (answer.status, answer.body) == (503, b"Service Unavailable\n")


# -- what it is -----------------------------------------------------------------------


def test_a_websocket_at_the_url_of_the_purge(make_site: MakeSite, server: Server) -> None:
    """A websocket at the path of the purge is the application's own."""
    site = make_site()
    path = site.settings.session_purge_url
    answer = server.get(wrap(site, Socket()), kind="websocket", path=path)
    assert answer.of("websocket.accept")


@dataclass
class Connection:
    """As Starlette's ``Request`` and ``WebSocket``: it has a scope."""

    scope: Scope


def test_the_session_of_a_connection() -> None:
    """session_of() answers the session, or says what is missing."""
    manager = SessionMiddleware(App(), {"SECRET_KEY": SECRET}).manager
    session = Session(manager, None)
    assert session_of(Connection({"session": session})) is session
    assert session.manager is manager
    scopes: list[Scope] = [{}, {"session": {}}]
    for scope in scopes:
        with pytest.raises(RuntimeError, match=r"add tieredsession\.adapters\.asgi"):
            session_of(Connection(scope))


def test_operators_of_a_dict() -> None:
    """The operators of a dict that Starlette's session has work on ours."""
    session = Session(SessionMiddleware(App(), {"SECRET_KEY": SECRET}).manager, None)
    same = session
    session |= {"a": 1}
    session |= [("b", 2)]
    assert session is same
    assert session | {"b": 3} == {"a": 1, "b": 3}
    assert {"b": 3} | session == {"a": 1, "b": 2}
    assert session == {"a": 1, "b": 2}
    assert type(session | {}) is type({} | session) is dict


class Secret:
    """As Starlette's: only str() tells it."""

    def __str__(self) -> str:
        return SECRET

    def __repr__(self) -> str:
        return "Secret('**********')"


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, "__Host-id=; Max-Age=1209600; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"session_cookie": "s"}, "s=; Max-Age=1209600; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"max_age": 60}, "__Host-id=; Max-Age=60; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"max_age": None}, "__Host-id=; Path=/; Secure; HttpOnly; SameSite=Lax"),
        (
            {"path": "/app", "max_age": None},
            "__Secure-id=; Path=/app; Secure; HttpOnly; SameSite=Lax",
        ),
        (
            {"same_site": "strict", "max_age": None},
            "__Host-id=; Path=/; Secure; HttpOnly; SameSite=Strict",
        ),
        ({"https_only": False, "max_age": None}, "id=; Path=/; HttpOnly; SameSite=Lax"),
        (
            {"domain": "example.org", "max_age": None},
            "__Secure-id=; Domain=example.org; Path=/; Secure; HttpOnly; SameSite=Lax",
        ),
        (
            {"partitioned": True, "max_age": None},
            "__Host-id=; Path=/; Secure; HttpOnly; SameSite=Lax; Partitioned",
        ),
        (
            {"SESSION_EXPIRE_AT_BROWSER_CLOSE": True},
            "__Host-id=; Path=/; Secure; HttpOnly; SameSite=Lax",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("secret", [SECRET, SECRET.encode(), Secret()], ids=["str", "bytes", "own"])
def test_the_keywords_of_starlette(
    server: Server, secret: Any, keywords: dict[str, Any], expected: str
) -> None:
    """Each keyword of Starlette's own middleware means what its documentation says."""
    app = SessionMiddleware(App(put(a=1)), secret_key=secret, clock=FakeClock(), **keywords)
    (line,) = [value.decode() for name, value in server.get(app).headers if name == b"set-cookie"]
    name, _, rest = line.partition("=")
    token, _, attributes = rest.partition(";")
    assert len(token) > 20
    assert f"{name}=;{attributes}" == expected


def test_the_keywords_go_with_settings(server: Server) -> None:
    """Keywords go before settings, and leave alone what they do not speak of."""
    settings = {"SECRET_KEY": SECRET, "SESSION_COOKIE_NAME": "a", "SESSION_COOKIE_PATH": "/p"}
    app = SessionMiddleware(App(put(a=1)), settings, secret_key=SECRET, session_cookie="b")
    (line,) = [value for name, value in server.get(app).headers if name == b"set-cookie"]
    assert line.startswith(b"b=")
    assert b"; Path=/p; " in line
    assert b"Max-Age" not in line


def test_the_environment_goes_before_a_default_of_starlette_s(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment says is not undone by a default of Starlette's."""
    monkeypatch.setenv("SESSION_EXPIRE_AT_BROWSER_CLOSE", "true")
    monkeypatch.setenv("SESSION_COOKIE_NAME", "s")
    app = SessionMiddleware(App(put(a=1)), secret_key=SECRET)
    (line,) = [value for name, value in server.get(app).headers if name == b"set-cookie"]
    assert line.startswith(b"s=")
    assert b"Max-Age" not in line


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"secret_key": "short"}, "SECRET_KEY"),
        ({"max_age": 0}, "SESSION_COOKIE_AGE"),
        ({"same_site": "none", "https_only": False}, "SESSION_COOKIE_SAMESITE"),
        ({"same_sight": "lax"}, "same_sight is not a setting"),
        (
            {"session_cookie": "a", "SESSION_COOKIE_NAME": "b"},
            "session_cookie and SESSION_COOKIE_NAME are one setting",
        ),
    ],
    ids=["weak", "age", "contradiction", "unknown", "twice"],
)
def test_keywords_that_stop_the_start(keywords: dict[str, Any], message: str) -> None:
    """A keyword that is weak, wrong, unknown or doubled stops the start and is named."""
    with pytest.raises(ConfigurationError, match=message):
        SessionMiddleware(App(), **{"secret_key": SECRET, **keywords})


def test_an_application_by_name() -> None:
    """The application may be given by name, as Starlette 0.40 does it."""
    make: Any = SessionMiddleware
    assert make(app=App(), secret_key=SECRET).manager.cookie.name == "__Host-id"
    with pytest.raises(TypeError, match="app"):
        make(secret_key=SECRET)


@pytest.mark.parametrize(
    ("client", "warned"),
    [(("203.0.113.9", 1), 1), (("127.0.0.1", 1), 0), (("::1", 1), 0), (None, 0), (("", 0), 0)],
    ids=["elsewhere", "loopback", "loopback 6", "unknown", "socket"],
)
def test_plain_http_from_elsewhere(
    server: Server, caplog: pytest.LogCaptureFixture, client: Any, warned: int
) -> None:
    """Without Secure, the first request from another machine is logged, and no other."""
    app = SessionMiddleware(App(), secret_key=SECRET, https_only=False)
    for _ in range(2):
        server.get(app, client=client)
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == warned
    assert all("SESSION_COOKIE_SECURE is False" in line for line in lines)


def test_no_framework_is_needed() -> None:
    """The adapter loads no framework, so that any ASGI application can do without."""
    script = "import sys, tieredsession.adapters.asgi; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "anyio" in loaded
    assert not loaded & {"starlette", "fastapi", "stores"}


def test_anyio_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anyio the adapter says how to install it."""
    monkeypatch.setitem(sys.modules, "anyio", None)
    monkeypatch.delitem(sys.modules, "tieredsession.adapters.asgi")
    with pytest.raises(MissingDependencyError, match=r'pip install "tieredsession\[starlette\]"'):
        importlib.import_module("tieredsession.adapters.asgi")
