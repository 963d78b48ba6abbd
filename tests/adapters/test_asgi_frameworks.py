"""Applications of Starlette and FastAPI with our sessions in the place of Starlette's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.requests import HTTPConnection
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import Secret
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.sessions import SessionMiddleware as StarlettesOwn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from tieredsession import StoreUnavailable
from tieredsession.adapters.asgi import Session, SessionMiddleware, session_of

if TYPE_CHECKING:
    from conftest import MakeSite, Site

pytestmark = pytest.mark.one_of_each

SECRET = "a long enough text, for tests alone: 0123456789"

Visit = Callable[[httpx.AsyncClient], Awaitable[Any]]


def browse(app: Any, visit: Visit, *, raises: bool = True) -> Any:
    """What *visit* comes back with; its client keeps cookies, as a browser does."""

    async def main() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
        async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as client:
            return await visit(client)

    return anyio.run(main)


def texts(app: Any, *paths: str, raises: bool = True) -> list[str]:
    """The bodies that one visitor gets for *paths*, one after the other."""

    async def visit(client: httpx.AsyncClient) -> list[str]:
        return [(await client.get(path)).text for path in paths]

    result: list[str] = browse(app, visit, raises=raises)
    return result


def sessions(site: Site, **keywords: Any) -> Middleware:
    """Our middleware over the store of *site*, the way an application of Starlette adds it."""
    return Middleware(
        SessionMiddleware,
        site.settings,
        store=site.store,
        observers=[site.events],
        clock=site.clock,
        **keywords,
    )


def read(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def read_async(request: Request) -> Response:
    return JSONResponse(dict(request.session))


READING = [Route("/read", read), Route("/read-async", read_async)]


# -- in the place of Starlette's own --------------------------------------------------


async def view(request: Request) -> Response:
    return JSONResponse({"session": dict(request.session), "empty": not request.session})


async def change(request: Request) -> Response:
    request.session.update(await request.json())
    return JSONResponse({"session": dict(request.session)})


async def clear(request: Request) -> Response:
    request.session.clear()
    return JSONResponse({"session": dict(request.session)})


def pop(request: Request) -> Response:
    popped = request.session.pop("some", None)
    first = request.session.setdefault("first", 1)
    return JSONResponse({"popped": popped, "first": first, "had": "some" in request.session})


OLD_CODE = [
    Route("/view", view),
    Route("/change", change, methods=["POST"]),
    Route("/clear", clear, methods=["POST"]),
    Route("/pop", pop),
]


def starlettes_own() -> Middleware:
    return Middleware(StarlettesOwn, secret_key=SECRET, https_only=True, path="/", max_age=60)


def ours_in_a_cookie() -> Middleware:
    return Middleware(SessionMiddleware, secret_key=Secret(SECRET), max_age=60)


def ours_on_a_server() -> Middleware:
    memory = "tieredsession.stores.MemorySessionStore"
    return Middleware(SessionMiddleware, secret_key=SECRET, max_age=60, SESSION_STORE=memory)


@pytest.mark.parametrize("middleware", [starlettes_own, ours_in_a_cookie, ours_on_a_server])
def test_code_that_was_written_for_starlette_s_sessions(
    middleware: Callable[[], Middleware],
) -> None:
    """An application goes on as it was when our middleware takes the place of Starlette's."""

    async def visit(client: httpx.AsyncClient) -> list[Any]:
        answers = [
            await client.get("/view"),
            await client.post("/change", json={"some": "data"}),
            await client.get("/view"),
            await client.post("/change", json={"more": [1, {"x": None}]}),
            await client.get("/view"),
            await client.get("/pop"),
            await client.get("/view"),
            await client.post("/clear"),
            await client.get("/view"),
        ]
        return [answer.json() for answer in answers]

    both = {"some": "data", "more": [1, {"x": None}]}
    left = {"more": [1, {"x": None}], "first": 1}
    assert browse(Starlette(routes=OLD_CODE, middleware=[middleware()]), visit) == [
        {"session": {}, "empty": True},
        {"session": {"some": "data"}},
        {"session": {"some": "data"}, "empty": False},
        {"session": both},
        {"session": both, "empty": False},
        {"popped": "data", "first": 1, "had": False},
        {"session": left, "empty": False},
        {"session": {}},
        {"session": {}, "empty": True},
    ]


def test_looking_at_the_session(make_site: MakeSite) -> None:
    """A request that looks at ``request.session`` and not into it has not touched it."""

    async def look(request: Request) -> Response:
        return PlainTextResponse(repr(request.session))

    app = Starlette(routes=[Route("/", look)], middleware=[sessions(make_site())])
    answer = browse(app, lambda client: client.get("/"))
    assert answer.text == "<Session, not read yet>"
    assert "vary" not in answer.headers


def test_a_logout_is_final(make_site: MakeSite) -> None:
    """A login gives a new id, and after the logout its cookie opens nothing."""

    def login(request: Request) -> Response:
        session_of(request).bind("ann")
        return PlainTextResponse("in")

    def logout(request: Request) -> Response:
        session_of(request).destroy()
        return PlainTextResponse("out")

    def put(request: Request) -> Response:
        request.session["cart"] = 1
        return PlainTextResponse("")

    async def visit(client: httpx.AsyncClient) -> None:
        async def get(path: str) -> str | None:
            await client.get(path)
            return client.cookies.get("__Host-id")

        anonymous = await get("/put")
        known = await get("/login")
        assert None not in (anonymous, known)
        assert anonymous != known
        assert (await client.get("/read-async")).json()["cart"] == 1
        assert await get("/logout") is None
        if site.store.revocable:
            for cookie in (anonymous, known):
                client.cookies.set("__Host-id", cookie or "", domain="testserver", path="/")
                assert (await client.get("/read-async")).json() == {}
                client.cookies.clear()

    site = make_site()
    routes = [*READING, Route("/put", put), Route("/login", login), Route("/logout", logout)]
    browse(Starlette(routes=routes, middleware=[sessions(site)]), visit)


# -- what stands around an endpoint ---------------------------------------------------


class Around(BaseHTTPMiddleware):
    """Touches the session before and after the endpoint, in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        request.session["before"] = request.session.get("before", 0) + 1
        response = await call_next(request)
        request.session["after"] = request.session.get("after", 0) + 1
        return response


@pytest.mark.parametrize("path", ["/read", "/read-async", "/mounted/read", "/mounted/read-async"])
def test_a_session_that_middleware_and_mounted_applications_share(
    make_site: MakeSite, path: str
) -> None:
    """Middleware around an endpoint, wherever it is mounted, works on the same session."""
    routes = [*READING, Mount("/mounted", Starlette(routes=READING))]
    middleware = [sessions(make_site()), Middleware(Around), Middleware(Around)]
    app = Starlette(routes=routes, middleware=middleware)
    assert texts(app, path, path) == ['{"before":2}', '{"before":4,"after":2}']


def test_sessions_of_a_mounted_application_alone(make_site: MakeSite) -> None:
    """A mounted application may have sessions that the rest does not have."""
    inner = Starlette(routes=READING, middleware=[sessions(make_site()), Middleware(Around)])
    app = Starlette(routes=[Mount("/inner", inner), *READING])
    assert texts(app, "/inner/read", "/inner/read") == ['{"before":1}', '{"before":2,"after":1}']
    with pytest.raises(AssertionError, match="SessionMiddleware"):
        texts(app, "/read")


def test_sessions_of_a_mounted_application_beside_others(make_site: MakeSite) -> None:
    """Middleware around a mounted application with sessions of its own keeps to the site's."""
    inner = Starlette(
        routes=READING, middleware=[sessions(make_site(SESSION_COOKIE_NAME="__Host-inner"))]
    )
    middleware = [sessions(make_site(SESSION_COOKIE_NAME="__Host-outer")), Middleware(Around)]
    app = Starlette(routes=[Mount("/inner", inner), *READING], middleware=middleware)
    seen = texts(app, "/read", "/inner/read", "/read")
    assert seen == ['{"before":1}', "{}", '{"before":3,"after":2}']


@pytest.mark.server_stores
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
def test_a_stream(make_site: MakeSite, asynchronous: bool) -> None:
    """A streamed body, made on the event loop or in threads, may change its session."""

    def chunks(session: Any) -> Iterator[bytes]:
        for number in range(3):
            session["chunks"] = number + 1
            yield b"x"

    async def async_chunks(session: Any) -> AsyncIterator[bytes]:
        for chunk in chunks(session):
            yield chunk

    async def stream(request: Request) -> Response:
        request.session.setdefault("chunks", 0)
        make = async_chunks if asynchronous else chunks
        return StreamingResponse(make(request.session))

    app = Starlette(routes=[*READING, Route("/", stream)], middleware=[sessions(make_site())])
    assert texts(app, "/", "/read") == ["xxx", '{"chunks":3}']


@pytest.mark.server_stores
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
def test_a_background_task(make_site: MakeSite, asynchronous: bool) -> None:
    """What a background task changes is kept."""

    def task(session: Any) -> None:
        session["done"] = True

    async def async_task(session: Any) -> None:
        task(session)

    async def start(request: Request) -> Response:
        request.session["done"] = False
        background = BackgroundTask(async_task if asynchronous else task, request.session)
        return PlainTextResponse("", background=background)

    app = Starlette(routes=[*READING, Route("/", start)], middleware=[sessions(make_site())])
    assert texts(app, "/", "/read") == ["", '{"done":true}']


async def own_page(request: Request, error: Exception) -> Response:
    return PlainTextResponse("back soon", 503)


@pytest.mark.parametrize("handled", [True, False])
@pytest.mark.parametrize(
    ("path", "method"), [("/read", "load"), ("/read-async", "load"), ("/count", "update")]
)
def test_a_store_that_does_not_answer(
    make_site: MakeSite, path: str, method: str, handled: bool
) -> None:
    """An application may have a page of its own for what it could not read; else it is ours."""

    async def count(request: Request) -> Response:
        request.session["count"] = request.session.get("count", 0) + 1
        return PlainTextResponse(str(request.session["count"]))

    async def visit(client: httpx.AsyncClient) -> None:
        await client.get("/count")
        # A sync endpoint asks once more by itself, after what was tried ahead of it.
        site.chaos.fail(method, 2 if path == "/read" and site.store.revocable else 1)
        answer = await client.get(path)
        own = handled and method == "load"
        assert (answer.status_code, answer.text) == (
            503,
            "back soon" if own else "Service Unavailable\n",
        )
        assert (await client.get("/count")).text == "2"

    site = make_site()
    app = Starlette(
        routes=[*READING, Route("/count", count)],
        middleware=[sessions(site)],
        exception_handlers={StoreUnavailable: own_page} if handled else None,
    )
    browse(app, visit)


# -- FastAPI --------------------------------------------------------------------------


def get_session(connection: HTTPConnection) -> Session:
    return session_of(connection)


Visitor = Annotated[Session, Depends(get_session)]

router = APIRouter()


@router.get("/sync")
def sync_endpoint(request: Request) -> int:
    request.session["count"] = request.session.get("count", 0) + 1
    return int(request.session["count"])


@router.get("/async")
async def async_endpoint(request: Request) -> int:
    request.session["count"] = request.session.get("count", 0) + 1
    return int(request.session["count"])


@router.get("/depends")
async def dependent_endpoint(session: Visitor) -> int:
    await session.load()
    session["count"] = session.get("count", 0) + 1
    await session.save()
    return int(session["count"])


@router.get("/background")
async def background_endpoint(session: Visitor, tasks: BackgroundTasks) -> int:
    session["count"] = session.get("count", 0)
    tasks.add_task(lambda: session.update(count=session["count"] + 1))
    return int(session["count"]) + 1


@router.get("/all")
async def all_of_it(request: Request) -> Any:
    return dict(request.session)


@router.websocket("/socket")
async def socket_endpoint(websocket: WebSocket, session: Visitor) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        session["text"] = text
        await session.save()
        await websocket.send_text(f"{websocket.session['text']} saved")


def fastapi_app(site: Site) -> FastAPI:
    app = FastAPI()
    app.include_router(router, prefix="/api")
    app.add_middleware(
        SessionMiddleware,
        site.settings,
        store=site.store,
        observers=[site.events],
        clock=site.clock,
    )
    return app


def test_endpoints_of_fastapi(make_site: MakeSite) -> None:
    """Endpoints of FastAPI, sync, async and by dependency, share a visitor's session."""
    paths = ["/api/sync", "/api/async", "/api/depends", "/api/all"]
    answers = texts(fastapi_app(make_site()), *paths, *paths)
    assert answers == ["1", "2", "3", '{"count":3}', "4", "5", "6", '{"count":6}']


@pytest.mark.server_stores
def test_background_tasks_of_fastapi(make_site: MakeSite) -> None:
    """What a background task of FastAPI changes is kept."""
    assert texts(fastapi_app(make_site()), *["/api/background"] * 3) == ["1", "2", "3"]


@pytest.mark.server_stores
def test_a_websocket_of_fastapi(make_site: MakeSite) -> None:
    """A websocket of FastAPI reads its visitor's session, and saves by itself."""
    site = make_site()
    browser = site.browser(a=1)
    said: list[str] = []
    incoming: list[dict[str, Any]] = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "one"},
        {"type": "websocket.receive", "text": "two"},
        {"type": "websocket.disconnect", "code": 1000},
    ]

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        said.append(message.get("text", message["type"]))
        if "text" in message:
            said.append(dict(site.open(browser))["text"])

    scope = {
        "type": "websocket",
        "path": "/api/socket",
        "raw_path": b"/api/socket",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"cookie", site.header(browser.cookie).encode())],
        "subprotocols": [],
    }
    anyio.run(lambda: fastapi_app(site)(scope, receive, send))
    assert said == ["websocket.accept", "one saved", "one", "two saved", "two"]
