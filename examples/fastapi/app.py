"""A counter, a login with a new id, and a logout, on FastAPI.

Run it here, on plain http, with sessions in a file::

    pip install "tieredsession[starlette]" fastapi uvicorn
    export SECRET_KEY=$(python3 -c "import secrets; print(secrets.token_hex(32))")
    export SESSION_STORE=tieredsession.stores.SQLiteSessionStore SESSION_COOKIE_SECURE=false
    uvicorn app:app
"""

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.requests import HTTPConnection
from fastapi.responses import PlainTextResponse

from tieredsession.adapters.asgi import Session, SessionMiddleware, session_of

app = FastAPI(default_response_class=PlainTextResponse)
app.add_middleware(SessionMiddleware)  # settings from the environment


def get_session(connection: HTTPConnection) -> Session:
    return session_of(connection)


Visitor = Annotated[Session, Depends(get_session)]


@app.get("/")
async def index(session: Visitor) -> str:
    session["count"] = session.get("count", 0) + 1
    return f"visit {session['count']}, {session.principal or 'stranger'}\n"


@app.post("/login/{name}")
def login(name: str, session: Visitor) -> str:
    # Here a password would be checked. A change of rights is a change of id, and bind() sees to it.
    session.bind(name)
    return "logged in\n"


@app.post("/logout")
def logout(session: Visitor) -> str:
    session.destroy()
    return "logged out\n"
