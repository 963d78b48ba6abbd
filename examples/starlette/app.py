"""A counter, a login with a new id, and a logout, on Starlette.

Run it here, on plain http, with sessions in a file::

    pip install "tieredsession[starlette]" starlette uvicorn
    export SECRET_KEY=$(python3 -c "import secrets; print(secrets.token_hex(32))")
    export SESSION_STORE=tieredsession.stores.SQLiteSessionStore SESSION_COOKIE_SECURE=false
    uvicorn app:app
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tieredsession.adapters.asgi import SessionMiddleware, session_of


async def index(request: Request) -> Response:
    session = request.session
    session["count"] = session.get("count", 0) + 1
    name = session_of(request).principal or "stranger"
    return PlainTextResponse(f"visit {session['count']}, {name}\n")


async def login(request: Request) -> Response:
    # Here a password would be checked. A change of rights is a change of id, and bind() sees to it.
    session_of(request).bind(request.path_params["name"])
    return PlainTextResponse("logged in\n")


async def logout(request: Request) -> Response:
    session_of(request).destroy()
    return PlainTextResponse("logged out\n")


app = Starlette(
    routes=[
        Route("/", index),
        Route("/login/{name}", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
    ],
    middleware=[Middleware(SessionMiddleware)],  # settings from the environment
)
