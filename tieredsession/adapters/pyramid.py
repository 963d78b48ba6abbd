"""Pyramid: ``request.session`` in the tiers of your choice.

::

    config.include("tieredsession.adapters.pyramid")          # settings from the ini file

    factory = session_factory(settings)                       # or as with any session factory
    config.set_session_factory(factory)

In an ini file each setting has its name in lower case behind ``session.``: ``session.store``,
``session.cookie_age``, ``session.secret_key``. The upper-case names work as well. A name of
``session.`` that is no setting stops the start. ``includeme`` also reads the environment,
where a secret is better kept than in a file; the file goes before it.

A login has to change the id, or whoever had planted the old one would be logged in as well, and
a logout ends the session, beside Pyramid's own ``remember`` and ``forget``::

    request.session.bind(userid)        # or renew(), if nobody asks for a user's sessions
    headers = remember(request, userid)

    headers = forget(request)
    request.session.invalidate()

With ``SessionAuthenticationHelper``, unless it has another prefix than Pyramid's, ``remember`` does
the first by itself, and after ``forget`` the session is nobody's; a ``bind`` in the same request
goes before its name of the user.

The manager, to list and to end a user's sessions, is ``factory.manager``; under ``include``,
``request.registry.getUtility(ISessionFactory).manager``.

What differs from Pyramid's own ``SignedCookieSessionFactory``:

- A session is not a ``dict`` but a ``MutableMapping``, and its keys are text: JSON would have
  made text of other keys anyway. Values may be more than JSON knows; of a subclass of what it
  knows, such as an ``OrderedDict``, the plain value comes back, as with JSON.
- A change inside a value is found without ``changed()``. ``changed()`` saves in any case.
- ``invalidate()`` does not only empty the session: its cookie is deleted, and with a store on
  the server a copy of that opens nothing.
- A response of 5xx saves nothing, the one of an exception view included. There is no
  ``set_on_exception``: the others always save.
- If a store does not answer, ``SessionUnavailable`` is raised, which Pyramid's default exception
  view answers with 503; an exception view for ``StoreUnavailable`` goes before it. It is also
  what a visitor gets if the session cannot be saved, instead of the response that was ready.
  Raised in a response callback of somebody else's, it goes to the server as any error there.
- The session is saved in a response callback that lets the others go first. What changes it
  after that, as a subscriber of ``NewResponse`` may, gets a ``HeadersSentError``, unless the
  body is streamed and the store needs no cookie: then it is saved at the body's end. A stream
  that uses ``request.session`` has to take it in the view: one that is first asked for in
  the middle of a body can be read and not be changed.
- Reading refreshes the expiry now and then (``SESSION_REFRESH``) and not each time, and
  reading an empty flash queue changes nothing. A flash queue keeps its last 50 messages.
- ``renew()`` and ``bind()`` take a new CSRF token, also under ``SessionCSRFStoragePolicy`` if
  that has its default key.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

try:
    from pyramid.httpexceptions import HTTPException, HTTPNotFound, HTTPServiceUnavailable
    from pyramid.interfaces import ISession, ISessionFactory
    from pyramid.security import NO_PERMISSION_REQUIRED
    from pyramid.wsgi import wsgiapp
    from zope.interface import implementer
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("Pyramid", "pyramid") from None

from tieredsession.contracts import Observer, SessionStore
from tieredsession.cookies import add_headers
from tieredsession.cron import PurgeView
from tieredsession.errors import ConfigurationError, HeadersSentError, StoreUnavailable
from tieredsession.frontend import PlainHTTPWatch
from tieredsession.login import LoginSession
from tieredsession.manager import SessionManager
from tieredsession.registry import open_manager
from tieredsession.settings import SETTINGS, Settings
from tieredsession.state import CSRF, State
from tieredsession.wsgi import is_finished

INI_NAMES = {
    "session." + setting.name.removeprefix("SESSION_").lower(): setting.name for setting in SETTINGS
}
"""What an ini file calls each setting."""

_TOO_LATE = (
    "the response has what it has of the session, and nobody would save this change: use "
    "request.session in the view, and change it before the response starts"
)

_PURGE = "tieredsession.purge"  # the name of its route

_POLICY_CSRF = "_csrft_"  # the default key of Pyramid's SessionCSRFStoragePolicy


class SessionUnavailable(StoreUnavailable, HTTPServiceUnavailable):  # type: ignore[misc]
    """A :class:`StoreUnavailable` that Pyramid answers with ``503 Service Unavailable``.

    The visitor is not told the *reason*.
    """

    def __init__(self, reason: str) -> None:
        headers = [("Cache-Control", "no-store"), ("Retry-After", "5")]
        HTTPServiceUnavailable.__init__(self, headers=headers)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@implementer(ISession)
class PyramidSession(LoginSession):
    """A session with the methods of Pyramid's ``ISession``."""

    __slots__ = ("_last", "_manager", "_over")

    _login_key = "auth.userid"  # of SessionAuthenticationHelper

    def __init__(self, manager: SessionManager, cookie_header: str | None) -> None:
        super().__init__(manager, cookie_header)
        self._manager = manager
        self._last = False  # it has let the other response callbacks go first
        self._over = False  # nobody will save what changes from now on

    @property
    def created(self) -> int:
        """When the session began, seconds UTC: now, if it is new."""
        state = self._state or self._touch()
        if state.created is None:
            # Kept, so that what is saved is what was said.
            state.created = float(int(self._manager.clock()))
        return int(state.created)

    def invalidate(self) -> None:
        """End the session: what is assigned afterwards begins another one."""
        self.destroy()

    def changed(self) -> None:
        """Save in any case. A change inside a value is found without it."""
        self.modified = True

    def renew(self, *, restart: bool = False) -> None:
        """Go on under a new id, and with a new CSRF token, as :meth:`Session.renew`."""
        super().renew(restart=restart)
        self.pop(_POLICY_CSRF, None)

    def flash(  # type: ignore[override]  # Pyramid's own signature
        self, msg: Any, queue: str = "", allow_duplicate: bool = True
    ) -> None:
        """Add *msg* to the flash messages of *queue*."""
        super().flash(msg, queue=queue, duplicate=allow_duplicate)

    def pop_flash(self, queue: str = "") -> list[Any]:
        """The flash messages of *queue*, oldest first, which are removed."""
        return [message for _, message in self.flashes(queue)]

    def peek_flash(self, queue: str = "") -> list[Any]:
        """The flash messages of *queue*, oldest first, which stay."""
        return [message for _, message in self.flashes(queue, peek=True)]

    def new_csrf_token(self) -> str:
        """Make another CSRF token, which is the one from then on."""
        self.pop(CSRF, None)
        return self.csrf_token()

    def get_csrf_token(self) -> str:
        """The CSRF token; it is made when first asked for."""
        return self.csrf_token()

    def save(self) -> None:
        """Save now instead of with the response, as :meth:`Session.save`."""
        try:
            super().save()
        except StoreUnavailable as error:
            raise SessionUnavailable(str(error)) from error

    def _touch(self) -> State:
        try:
            return super()._touch()
        except StoreUnavailable as error:
            raise SessionUnavailable(str(error)) from error

    def _changeable(self, *, needs_cookie: bool = False) -> State:
        if self._over:
            raise HeadersSentError(_TOO_LATE)
        return super()._changeable(needs_cookie=needs_cookie)

    def _respond(self, request: Any, response: Any) -> None:
        """The response callback: save, and put into *response* what it owes."""
        if request.response_callbacks and not self._last:
            self._last = True  # once: another callback may want the same
            request.add_response_callback(self._respond)
            return
        try:
            reply = self._manager.close(self, response.status_int)
        except StoreUnavailable as error:
            # What a callback raises goes past the exception views, to the server.
            _replace(response, _unavailable(request, error), request.environ)
            reply = self._manager.close(self, 503)
            if reply is not None and not reply.set_cookies:
                return  # it shows nothing of the session
        if reply is not None:
            add_headers(response.headerlist, reply)
        body = response.app_iter
        if is_finished(body, request.environ):
            self._over = True
        else:
            length = response.content_length  # which goes with the old body
            response.app_iter = _Body(body, self._manager, self)
            response.content_length = length

    def _finished(self, request: Any) -> None:
        """The finished callback: no change is lost in silence."""
        # Either an error is on its way, or the response callbacks had run before we came.
        if self._status is None and self.modified and sys.exc_info()[0] is None:
            raise HeadersSentError(_TOO_LATE)


@implementer(ISessionFactory)
class SessionFactory:
    """Makes the session of a request. *manager* is the manager of them all."""

    def __init__(self, manager: SessionManager, watch: PlainHTTPWatch) -> None:
        self.manager = manager
        self._watch = watch

    def __call__(self, request: Any) -> PyramidSession:
        environ = request.environ
        if self._watch.active:
            self._watch.look_at(environ.get("REMOTE_ADDR", ""))
        session = PyramidSession(self.manager, environ.get("HTTP_COOKIE"))
        attributes = request.__dict__
        if "traversed" in attributes and "context" not in attributes:
            # The router is done with this request: its callbacks have run.
            session._status = 200
            session._over = True
        else:
            request.add_response_callback(session._respond)
            request.add_finished_callback(session._finished)
        return session


def session_factory(
    settings: object = None,
    *,
    store: SessionStore | None = None,
    observers: Iterable[Observer] = (),
    clock: Callable[[], float] = time.time,
    **overrides: Any,
) -> SessionFactory:
    """What ``Configurator.set_session_factory`` wants.

    Args:
        settings: a :class:`Settings`, or what makes one: a module or its name, a mapping
            (also with the names of an ini file), an object, or ``None`` for the environment.
        store: use this store instead of the one that the settings name.
        observers: are told what happened.
        clock: seconds since the epoch, UTC.
        overrides: settings that go before those of *settings*.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    if isinstance(settings, Mapping):
        settings = _translate(settings)
    if not isinstance(settings, Settings) or overrides:
        settings = Settings(settings, **overrides)
    manager = open_manager(settings, store=store, observers=observers, clock=clock, subclasses=True)
    return SessionFactory(manager, PlainHTTPWatch(settings))


def includeme(config: Any) -> None:
    """Set the session factory by the settings of *config*, over those of the environment.

    A ``StoreUnavailable`` that the manager raises in a view is answered with 503 as well, and
    cron may call the purge at ``SESSION_PURGE_URL`` (:mod:`tieredsession.cron`).
    """
    settings = Settings({**os.environ, **_translate(config.get_settings())})
    factory = session_factory(settings)
    config.set_session_factory(factory)
    config.add_exception_view(_answer_unavailable, context=StoreUnavailable)
    if settings.session_purge_url is not None:
        view = wsgiapp(PurgeView(factory.manager.store, settings, clock=factory.manager.clock))
        config.add_route(_PURGE, settings.session_purge_url)
        config.add_view(
            view, route_name=_PURGE, require_csrf=False, permission=NO_PERMISSION_REQUIRED
        )


def _translate(settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """*settings* of an ini file, under their names of everywhere else."""
    translated = {}
    for key, value in settings.items():
        name = INI_NAMES.get(key, key)
        if name is key and isinstance(key, str) and key.startswith("session."):
            close = get_close_matches(key, INI_NAMES, 1)
            hint = f"did you mean {close[0]}?" if close else "see the list in the README"
            raise ConfigurationError(f"{key} is not a setting: {hint}")
        if settings.get(name, value) != value:
            raise ConfigurationError(f"{key} and {name} say different things: keep one of them")
        translated[name] = value
    return translated


def _answer_unavailable(error: StoreUnavailable, request: Any) -> Any:
    """The exception view of :class:`StoreUnavailable`."""
    return SessionUnavailable(str(error))


def _unavailable(request: Any, cause: StoreUnavailable) -> Any:
    """What the application, or else Pyramid, answers to *cause*."""
    error = SessionUnavailable(str(cause))
    error.__cause__ = cause
    try:
        return request.invoke_exception_view((type(error), error, cause.__traceback__))
    except HTTPNotFound:  # there is no view for it
        return error


def _replace(response: Any, other: Any, environ: dict[str, Any]) -> None:
    """Make of *response*, which the router holds, what *other* is."""
    if isinstance(other, HTTPException):
        other.prepare(environ)  # its body
    close = getattr(response.app_iter, "close", None)
    if close is not None:
        close()
    response.status = other.status
    response.app_iter = other.app_iter
    response.headerlist = list(other.headerlist)


class _Body:
    """A streamed body, at whose end is saved what changed while it was sent."""

    __slots__ = ("_body", "_manager", "_session")

    def __init__(
        self, body: Iterable[bytes], manager: SessionManager, session: PyramidSession
    ) -> None:
        self._body = body
        self._manager = manager
        self._session = session

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            self._manager.finish(self._session)
