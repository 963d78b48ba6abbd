"""Starlette, FastAPI and any other ASGI application: ``request.session``, ``websocket.session``.

::

    from tieredsession.adapters.asgi import SessionMiddleware

    app = Starlette(routes=..., middleware=[Middleware(SessionMiddleware, settings="settings")])
    app.add_middleware(SessionMiddleware, secret_key=SECRET_KEY)  # or as Starlette's own is set up

Nothing waits on the event loop. The cookie store waits for nobody, so its sessions are read when
they are first touched. A store that may take a while is asked in a worker thread:

- where there is an authentic id, *before* the application runs, unless ``autoload`` says no; so
  code that was written for Starlette's sessions works as it is. What was loaded ahead and not
  used leaves no trace in the response.
- by ``await request.session.load()``, where it was not.
- when it is first touched, in a sync endpoint, which runs in a worker thread anyway.

Touching an unread session on the event loop raises :class:`~tieredsession.NotLoadedError`.
Changes are saved before ``http.response.start``, those of a streamed body before its last chunk,
and those of a background task at its end. ``await request.session.save()`` saves at once; in a
sync endpoint ``request.session.save()`` does.

A websocket can set cookies while it is accepted and at no other time. ``await
websocket.session.save()`` saves what changed afterwards. What was left unsaved is saved when the
application closes the socket or returns, as at the end of a body. Where the cookie is the data,
a change after the acceptance raises :class:`~tieredsession.HeadersSentError`. However long it
lives, a websocket sees the session as it was when it was read; a save merges, as any does.

A login has to give the session a new id, by ``request.session.bind(user)`` or ``renew()``: where
the data is on a server, whoever had planted the old cookie would be logged in as well. Code that
was written for Starlette's sessions need not have known that.

It differs from Starlette's own sessions in this, each time for a reason:

- ``secret_key`` has to be strong, ``https_only`` is on unless it is set to false, and the cookie
  is called ``__Host-id`` unless ``session_cookie`` says otherwise: safe is what one gets without
  choosing. Over plain http, which Starlette's test client speaks too, give ``https_only=False``.
- An expiry counts from the last use, and a use extends it without a change. ``max_age=None``
  makes a cookie that goes with the browser, not one that is valid for ever.
- The session is a mapping and not a ``dict``, since it is read when it is used; where a dict is
  needed, as by ``JSONResponse``, ``dict(request.session)`` is one. What is stored comes back of
  the same type (a tuple as a tuple, a key of an inner dict as the number it was), and is refused
  when it is assigned if it cannot be kept. Of a subclass of what JSON knows (a member of an enum
  of strings, Authlib's ``UserInfo``) the plain value comes back, as with Starlette's.
- ``Vary: Cookie`` follows from the first touch of the data, not from looking at
  ``request.session``; a cookie goes with ``Cache-Control: private``, so that no cache shares it.
- Changes inside nested values are found. A response of 5xx saves nothing. A store that cannot
  answer makes ``503 Service Unavailable``, if the application does not handle the error.
- The cookie is also set by ``websocket.accept``, where Starlette's changes are lost.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from threading import Lock, get_ident
from types import EllipsisType
from typing import Any, Literal, Protocol, TypeVar, cast

try:
    import anyio
    from anyio import to_thread
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("anyio", "starlette") from None

from tieredsession import session as _core
from tieredsession.contracts import Observer, SessionStore
from tieredsession.cookies import Reply, add_headers
from tieredsession.cron import PurgeView
from tieredsession.errors import (
    ConfigurationError,
    NotLoadedError,
    StoreError,
    StoreUnavailable,
)
from tieredsession.frontend import UNAVAILABLE, PlainHTTPWatch, unavailable_headers
from tieredsession.manager import SessionManager
from tieredsession.registry import open_manager
from tieredsession.settings import Settings
from tieredsession.state import State

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
F = TypeVar("F", bound=Callable[..., None])
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_BODIES = frozenset({"http.response.body", "websocket.http.response.body"})
_CONCERNED = frozenset({b"vary", b"cache-control"})
_VARY = (b"vary", b"Cookie")


class Session(_core.Session):
    """The session of a request or websocket; as everywhere, but for ``load`` and ``save``.

    Raises:
        NotLoadedError: it was touched on the event loop, and a store has to be asked first.
    """

    __slots__ = ("_ahead", "_failure", "_lock", "_loop", "_manager", "_saving", "_turn")

    def __init__(self, manager: SessionManager, cookie_header: str | None) -> None:
        super().__init__(manager, cookie_header)
        self._manager = manager
        self._loop = get_ident()  # the thread of the event loop
        self._lock = Lock()  # threads that touch it at once load it once
        self._ahead: State | None = None  # loaded, and not touched yet
        self._failure: StoreError | None = None  # why it could not be loaded ahead
        self._saving: anyio.Lock | None = None  # tasks save one after the other ...
        self._turn = Lock()  # ... and take turns with threads

    @property
    def manager(self) -> SessionManager:
        """The manager of the site: it lists and ends the sessions of a user."""
        return self._manager

    async def load(self) -> None:
        """Read the session, if that was not done yet, so that it can be used on the event loop.

        Raises:
            StoreError: the store could not answer.
        """
        unread = self._state is None and self._ahead is None
        if unread and self._manager.load_blocks(self._header):
            await to_thread.run_sync(self._load)

    def save(self) -> Awaitable[None]:  # type: ignore[override] # a thread may ignore it
        """Save now: ``await session.save()`` on the event loop, ``session.save()`` in a thread.

        Raises:
            StoreError: the changes are not saved, and still here.
            HeadersSentError: saving them needs a cookie, and it is too late for one.
        """
        if get_ident() == self._loop:
            return self._save()
        with self._turn:
            super().save()
        return _DONE

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}

    def __ior__(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Session:
        self.update(other)
        return self

    # -- inside -----------------------------------------------------------------------

    def _touch(self) -> State:
        manager = self._manager
        if (
            manager.blocking
            and self._ahead is None
            and get_ident() == self._loop
            and manager.load_blocks(self._header)
        ):
            raise self._failure or NotLoadedError(
                "reading this session would keep the event loop waiting for its store: "
                "first  await request.session.load()"
            )
        with self._lock:
            return self._state or self._take(self._ahead or manager.load(self._header))

    def _load(self) -> None:
        with self._lock:
            if self._state is None and self._ahead is None:
                self._ahead = self._manager.load(self._header)

    async def _load_ahead(self) -> None:
        """As :meth:`load`; who never touches the session need not know that it failed."""
        try:
            await self.load()
        except StoreError as error:
            self._failure = error

    async def _save(self) -> None:
        """Save what changed, in a worker thread if a store may take a while.

        The thread has a copy, so that it meets no change half made, and none of its own is
        seen by whoever goes on meanwhile. Once begun it runs to its end, cancelled or not.
        """
        state, manager = self._state, self._manager
        if state is None:
            return
        if not manager.blocking:
            super().save()
            return
        first = not self._turn.locked()
        if first and not manager.save_blocks(state):
            return
        async with self._alone() as own:
            # Whoever may have waited looks now, at what the others have left to be saved.
            if first or manager.save_blocks(state):
                save = manager.save_late if self.headers_sent else manager.save
                fork = manager.fork(state)
                try:
                    await _run_to_its_end(partial(save, fork.copy), own)
                finally:
                    fork.join()

    async def _wait_for_saves(self) -> None:
        """Let the saves that are under way come to their end, for they may owe a cookie."""
        if self._turn.locked():
            async with self._alone():
                pass

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[anyio.CapacityLimiter]:
        """While no other task and no thread saves this session; with a thread to do so.

        A thread may wait for this, too, and so this waits for none once it has its turn.
        """
        self._saving = self._saving or anyio.Lock()
        async with self._saving:
            own, threads = anyio.CapacityLimiter(1), to_thread.current_default_thread_limiter()
            try:
                threads.acquire_on_behalf_of_nowait(own)  # which spares a turn of the loop
            except anyio.WouldBlock:
                await threads.acquire_on_behalf_of(own)
            try:
                while not self._turn.acquire(blocking=False):
                    await to_thread.run_sync(self._wait_for_thread, limiter=own)
                try:
                    yield own
                finally:
                    self._turn.release()
            finally:
                threads.release_on_behalf_of(own)

    def _wait_for_thread(self) -> None:
        with self._turn:
            pass


async def _run_to_its_end(work: Callable[[], None], limiter: anyio.CapacityLimiter) -> None:
    """Run *work* in a worker thread. Once that has begun, nothing ends the wait for it.

    A scope of anyio's that is cancelled does not, and a task that asyncio cancels does so
    only in here: what the thread is at work on belongs to nobody else until it is done.
    """
    turn: Future[None] = Future()

    def run() -> None:
        if turn.set_running_or_notify_cancel():
            try:
                work()
            finally:
                turn.set_result(None)

    try:
        await to_thread.run_sync(run, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        while not (turn.cancel() or turn.done()):
            with suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
                await to_thread.run_sync(wait, [turn], limiter=limiter)
        raise


class _Done:
    """What is there to await after it was done."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()


class Connection(Protocol):
    """What has a scope, as Starlette's ``Request`` and ``WebSocket`` have."""

    @property
    def scope(self) -> Scope: ...


def session_of(connection: Connection) -> Session:
    """``connection.session``, for a type checker to know its type.

    Raises:
        RuntimeError: the application is not under :class:`SessionMiddleware`.
    """
    session = connection.scope.get("session")
    if not isinstance(session, Session):
        raise RuntimeError(
            "this request has no session: add tieredsession.adapters.asgi.SessionMiddleware"
        )
    return session


def all_but(*routes: str) -> Callable[[Scope], bool]:
    """For ``autoload``: yes, but for these *routes*, in the words that declare them.

    As in ``all_but("/health", "/items/{id:int}", "/static/{path:path}")``.
    """
    patterns = []
    for route in routes:
        literal, *rest = re.split(r"\{\w+(:\w+)?\}", route)
        # After the first text come pairs: what was written behind a parameter's name, and text.
        kinds, texts = rest[::2], rest[1::2]
        pieces = [re.escape(literal)]
        for kind, text in zip(kinds, texts, strict=True):
            pieces += [".*" if kind == ":path" else "[^/]+", re.escape(text)]
        patterns.append("".join(pieces))
    matches = re.compile("|".join(patterns) or "(?!)", re.DOTALL).fullmatch

    def autoload(scope: Scope) -> bool:
        path, root = scope["path"], scope.get("root_path", "")
        return matches(path.removeprefix(root) if root else path) is None

    return autoload


def _app_by_name(init: F) -> F:
    """Let *init* take its ``app`` by name as well, as Starlette 0.40 passes it.

    To type checkers it has no name: they could not tell it from one of the settings.
    """

    @wraps(init)
    def take(self: object, *args: Any, **keywords: Any) -> None:
        if "app" in keywords:
            args = (keywords.pop("app"), *args)
        init(self, *args, **keywords)

    return cast("F", take)


class SessionMiddleware:
    """Gives an ASGI *app* a session in ``scope["session"]``, where Starlette looks for it.

    Of two around each other, with different cookie names, the inner one's session is
    ``request.session`` inside it, and there alone. Other scopes than ``http`` and
    ``websocket`` pass through. Cron may call the purge at ``SESSION_PURGE_URL``
    (:mod:`tieredsession.cron`), which runs in a worker thread.

    Args:
        app: any ASGI application.
        settings: a :class:`Settings`, or what makes one: a module or its name, a mapping,
            an object, or ``None`` for the environment.
        store: use this store instead of the one that the settings name.
        observers: are told what happened.
        clock: seconds since the epoch, UTC.
        autoload: whether to load a session before the application runs; also a function of
            the scope, such as :func:`all_but` makes.
        secret_key: as Starlette's; ``SECRET_KEY``.
        session_cookie: as Starlette's; ``SESSION_COOKIE_NAME``.
        max_age: as Starlette's, seconds or ``None``; ``SESSION_COOKIE_AGE``, in a cookie that
            outlives the browser. Two weeks with *secret_key* and no *settings*.
        path: as Starlette's; ``SESSION_COOKIE_PATH``.
        same_site: as Starlette's; ``SESSION_COOKIE_SAMESITE``.
        https_only: as Starlette's; ``SESSION_COOKIE_SECURE``.
        domain: as Starlette's; ``SESSION_COOKIE_DOMAIN``.
        partitioned: as Starlette's; ``SESSION_COOKIE_PARTITIONED``.
        overrides: settings that go before those of *settings*.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    @_app_by_name
    def __init__(
        self,
        app: ASGIApp,
        /,
        settings: object = None,
        *,
        store: SessionStore | None = None,
        observers: Iterable[Observer] = (),
        clock: Callable[[], float] = time.time,
        autoload: bool | Callable[[Scope], bool] = True,
        secret_key: object = None,
        session_cookie: str | None = None,
        max_age: int | EllipsisType | None = ...,
        path: str | None = None,
        same_site: Literal["lax", "strict", "none"] | None = None,
        https_only: bool | None = None,
        domain: str | None = None,
        partitioned: bool | None = None,
        **overrides: Any,
    ) -> None:
        if secret_key is not None:
            if settings is None:
                # So Starlette's documentation has it; what the environment says goes before.
                settings = {"SESSION_EXPIRE_AT_BROWSER_CLOSE": False, **os.environ}
            if not isinstance(secret_key, (str, bytes)):
                secret_key = str(secret_key)  # a Secret of Starlette's
        if not isinstance(max_age, EllipsisType):
            _add(overrides, "max_age", "SESSION_COOKIE_AGE", max_age)
            _add(overrides, "max_age", "SESSION_EXPIRE_AT_BROWSER_CLOSE", max_age is None)
        _add(overrides, "secret_key", "SECRET_KEY", secret_key)
        _add(overrides, "session_cookie", "SESSION_COOKIE_NAME", session_cookie)
        _add(overrides, "path", "SESSION_COOKIE_PATH", path)
        _add(overrides, "same_site", "SESSION_COOKIE_SAMESITE", same_site)
        _add(overrides, "https_only", "SESSION_COOKIE_SECURE", https_only)
        _add(overrides, "domain", "SESSION_COOKIE_DOMAIN", domain)
        _add(overrides, "partitioned", "SESSION_COOKIE_PARTITIONED", partitioned)
        if not isinstance(settings, Settings) or overrides:
            settings = Settings(settings, **overrides)
        observers = tuple(observers)
        self.manager = open_manager(
            settings, store=store, observers=observers, clock=clock, subclasses=True
        )
        self._app = app
        self._watch = PlainHTTPWatch(settings)
        self._autoload = autoload if self.manager.blocking else False
        self._purge_url = settings.session_purge_url
        self._purge = PurgeView(self.manager.store, settings, observers=observers, clock=clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._watch.active:
            self._watch.look_at((scope.get("client") or ("",))[0])
        if scope["path"].endswith(self._purge_url or "\0") and scope["type"] == "http":
            root = scope.get("root_path", "")
            if scope["path"].removeprefix(root) == self._purge_url:
                await _answer_purge(self._purge, scope, send)
                return
        # HTTP/2 may split the header (RFC 9113, 8.2.3).
        cookies = [value for name, value in scope["headers"] if name == b"cookie"]
        header = b"; ".join(cookies).decode("latin-1") if cookies else None
        if "session" in scope:  # of who stands around us, and goes on with it
            scope = dict(scope)
        session = scope["session"] = Session(self.manager, header)
        autoload = self._autoload
        if autoload and (autoload is True or autoload(scope)):
            await session._load_ahead()
        streaming = False

        async def send_saved(message: Message) -> None:
            nonlocal streaming
            kind = message["type"]
            if kind in _STARTS:
                if session._state is None:
                    session._status = message.get("status", 200)  # as manager.close would do
                else:
                    message = await _start(session, message)
            elif kind in _BODIES:
                if message.get("more_body", False):
                    streaming = True
                elif streaming and session._state is not None:
                    await _finish(session)
            elif kind == "websocket.close":
                if session._status is None:
                    session._status = 403  # what the server makes of it
                await _finish(session)
            await send(message)

        try:
            try:
                await self._app(scope, receive, send_saved)
            finally:
                if session._state is not None:
                    await _finish(session)
        except Exception as error:
            # Starlette takes a save that failed for a response that had started, and says so
            # with an error of its own where the application would handle ours.
            cause = error.__cause__ if type(error) is RuntimeError else error
            unavailable = isinstance(cause, StoreUnavailable)
            if session.headers_sent or not unavailable:
                raise
            await _answer_unavailable(session, scope, send)


def _add(overrides: dict[str, Any], keyword: str, name: str, value: object) -> None:
    """Let a *keyword* of Starlette's say what the setting *name* is, unless it is ``None``."""
    if value is not None:
        if name in overrides:
            raise ConfigurationError(f"{keyword} and {name} are one setting: keep one of them")
        overrides[name] = value


async def _start(session: Session, message: Message) -> Message:
    """Save, and the *message* that starts the response with what it owes to the session."""
    manager, status = session._manager, message.get("status", 200)
    if status >= 500:
        await session._wait_for_saves()
    elif manager.blocking:
        await session._save()
    reply = manager.close(session, status, saved=manager.blocking)
    if reply is not None:
        # Another list: the application may send its own again, to somebody else.
        message = {**message, "headers": _with_reply(message.get("headers", ()), reply)}
    return message


def _with_reply(raw: Iterable[Sequence[bytes]], reply: Reply) -> list[Sequence[bytes]]:
    """The headers *raw* with what *reply* asks for; only what it concerns is decoded."""
    headers = list(raw)
    concerned = [header for header in headers if header[0].lower() in _CONCERNED]
    if not concerned:  # nearly always: what add_headers does where there is nothing to merge
        headers.append(_VARY)
        if lines := reply.set_cookies:
            headers.append((b"cache-control", reply.cache_control.encode("latin-1")))
            headers.extend((b"set-cookie", line.encode("latin-1")) for line in lines)
        return headers
    for header in concerned:
        headers.remove(header)
    asked = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in concerned]
    add_headers(asked, reply)
    return headers + _encode(asked)


def _encode(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _finish(session: Session) -> None:
    """Save what changed since the headers left, also for a visitor who has gone."""
    if not session._manager.blocking:
        session._manager.finish(session)
    elif session._status is not None and session._status < 500:
        with anyio.CancelScope(shield=True):
            await session._save()


async def _answer_purge(view: PurgeView, scope: Scope, send: Send) -> None:
    """Run the purge in a worker thread."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    authorization = headers.get(b"authorization", "")
    cron = headers.get(b"x-appengine-cron", "")
    answer = await to_thread.run_sync(view.answer, scope["method"], authorization, cron)
    status, raw = int(answer.status[:3]), _encode(answer.headers)
    await send({"type": "http.response.start", "status": status, "headers": raw})
    body = b"" if scope["method"] == "HEAD" else answer.body
    await send({"type": "http.response.body", "body": body})


async def _answer_unavailable(session: Session, scope: Scope, send: Send) -> None:
    prefix = ""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1013})  # try again later
            return
        prefix = "websocket."
    await session._wait_for_saves()
    headers = _encode(unavailable_headers(session.manager.close(session, 503)))
    await send({"type": f"{prefix}http.response.start", "status": 503, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": UNAVAILABLE})
