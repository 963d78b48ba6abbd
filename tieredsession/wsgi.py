"""Sessions for any WSGI application (PEP 3333)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tieredsession.contracts import Observer, SessionStore
from tieredsession.cookies import add_headers
from tieredsession.errors import StoreUnavailable
from tieredsession.frontend import UNAVAILABLE, PlainHTTPWatch, unavailable_headers
from tieredsession.manager import SessionManager
from tieredsession.registry import open_manager
from tieredsession.session import Session
from tieredsession.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SESSION_KEY = "tieredsession.session"
"""The key of the WSGI environ under which an application finds its :class:`Session`."""


class SessionMiddleware:
    """Gives *app* a session in ``environ["tieredsession.session"]``.

    Changes are saved when the application starts its response, before a byte leaves. A
    change in the middle of a streamed body is saved at its end. If a store cannot answer,
    the visitor gets ``503 Service Unavailable``, and no change is claimed that was not made.
    Cron may call the purge at ``SESSION_PURGE_URL`` (:mod:`tieredsession.cron`).

    Args:
        app: any WSGI application.
        settings: a :class:`Settings`, or what makes one: a module or its name, a mapping,
            an object, or ``None`` for the environment.
        store: use this store instead of the one that the settings name.
        observers: are told what happened.
        clock: seconds since the epoch, UTC.
        overrides: settings that go before those of *settings*.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    def __init__(
        self,
        app: WSGIApplication,
        settings: object = None,
        *,
        store: SessionStore | None = None,
        observers: Iterable[Observer] = (),
        clock: Callable[[], float] = time.time,
        **overrides: Any,
    ) -> None:
        if not isinstance(settings, Settings) or overrides:
            settings = Settings(settings, **overrides)
        observers = tuple(observers)
        self.manager = open_manager(settings, store=store, observers=observers, clock=clock)
        self._app = app
        self._watch = PlainHTTPWatch(settings)
        self._purge_url = settings.session_purge_url
        if self._purge_url is not None:
            from tieredsession.cron import PurgeView

            self._purge = PurgeView(self.manager.store, settings, observers=observers, clock=clock)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._watch.active:
            self._watch.look_at(environ.get("REMOTE_ADDR", ""))
        if environ.get("PATH_INFO", "") == self._purge_url:
            return self._purge(environ, start_response)
        manager = self.manager
        session = environ[SESSION_KEY] = Session(manager, environ.get("HTTP_COOKIE"))

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            # All that is asked of the status is whether it is one of 5xx.
            code = 500 if status >= "5" else 200
            if session._state is None:
                session._status = code  # as manager.close would do
            elif (reply := manager.close(session, code)) is not None:
                headers = list(headers)
                add_headers(headers, reply)
            if exc_info is not None:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        try:
            body = self._app(environ, start)
        except StoreUnavailable:
            if session.headers_sent:
                raise
            return _unavailable(manager, session, start_response)
        if session._status is not None and (type(body) is list or is_finished(body, environ)):
            if session._state is not None:
                self._finish(session, body)
            return body
        return _Body(body, manager, session, start_response)

    def _finish(self, session: Session, body: Iterable[bytes]) -> None:
        try:
            self.manager.finish(session)
        except BaseException:
            _close(body)  # which nobody else will get to see
            raise


class SessionMixin:
    """``session`` for a request class that has the WSGI environ in ``self.environ``.

    As in ``class MyRequest(SessionMixin, werkzeug.Request)``.
    """

    environ: WSGIEnvironment

    @property
    def session(self) -> Session:
        """The visitor's session; nothing is read before it is used."""
        try:
            session: Session = self.environ[SESSION_KEY]
        except KeyError:
            raise RuntimeError(
                "this request has no session: wrap the application in "
                "tieredsession.SessionMiddleware"
            ) from None
        return session


class _Body:
    """A response body that saves what changed while it was sent."""

    __slots__ = ("_body", "_manager", "_session", "_start_response")

    def __init__(
        self,
        body: Iterable[bytes],
        manager: SessionManager,
        session: Session,
        start_response: StartResponse,
    ) -> None:
        self._body = body
        self._manager = manager
        self._session = session
        self._start_response = start_response

    def __iter__(self) -> Iterator[bytes]:
        # A started response needs nothing between the server and the chunks.
        started = self._session._status is not None
        return iter(self._body) if started else self._start_late()

    def _start_late(self) -> Iterator[bytes]:
        """An application that starts its response with its first chunk, as a generator."""
        try:
            # Not "yield from", which would close the body, too.
            for chunk in self._body:  # noqa: UP028
                yield chunk
        except StoreUnavailable:
            if self._session.headers_sent:
                raise
            yield from _unavailable(self._manager, self._session, self._start_response)

    def close(self) -> None:
        try:
            _close(self._body)
        finally:
            self._manager.finish(self._session)


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def is_finished(body: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Whether nothing of the application runs while *body* is sent."""
    if type(body) in (list, tuple):
        return True
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _unavailable(
    manager: SessionManager, session: Session, start_response: StartResponse
) -> Iterable[bytes]:
    headers = unavailable_headers(manager.close(session, 503))
    start_response("503 Service Unavailable", headers)
    return [UNAVAILABLE]
