"""Flask: ``flask.session`` and ``request.session``, in a sealed cookie or in the tiers.

::

    app = Flask(__name__)
    app.config.from_prefixed_env()
    TieredSession(app)  # or, in a factory:  sessions.init_app(app)

``app.config`` is where the settings are: ``SECRET_KEY``, ``SESSION_STORE``,
``SESSION_CACHE_URL`` and the other names of the README's table, beside those that Flask has.
Cron may call the purge at ``SESSION_PURGE_URL`` (:mod:`tieredsession.cron`).
Code that was written for Flask's own sessions runs unchanged, Flask-Login and Flask-WTF
included. What differs, and why:

- **The cookie is ``__Host-id``, Secure and SameSite=Lax** where ``SESSION_COOKIE_NAME``,
  ``SESSION_COOKIE_SECURE`` and ``SESSION_COOKIE_SAMESITE`` still are Flask's defaults, which
  are weaker. Any other value is honoured. ``init_app`` puts what holds into ``app.config``,
  so that a value assigned afterwards is honoured in any case; before it, Flask's own default
  written out cannot be told from none. A keyword always can: for plain http on one's own
  machine, ``TieredSession(app, SESSION_COOKIE_SECURE=False)``.
- **The configuration is checked at** ``init_app``, and final with the first request. A short
  ``SECRET_KEY`` or an unknown ``SESSION_*`` name, such as one of Flask-Session, stops the start.
- **``PERMANENT_SESSION_LIFETIME`` is the idle lifetime of every session**, as it is where Flask
  checks a signature's age; ``SESSION_COOKIE_AGE`` is another name of it. ``session.permanent``
  says whether the cookie outlives the browser. It is no key of the session, and assigning what
  it is already costs nothing.
- **``SESSION_REFRESH_EACH_REQUEST`` is throttled**: a use moves the expiry, and the cookie of a
  permanent session, once a quarter of the lifetime has passed (``SESSION_REFRESH``; 0 is each
  request), since on a server each is a write, and a request that leaves its session alone reads
  nothing. ``False`` lets changes alone move them.
- **Changes inside nested values are found**, so ``session.modified = False`` does not hide one:
  ``session.revert()`` forgets it. ``session.new`` tells the truth.
- **A value that cannot be kept is refused where it is assigned**, not when the response is made,
  and keys are strings. All that Flask gives back as it was can be kept, ``Markup`` included, and
  what JSON takes for something plainer (a member of an enum of strings, Authlib's ``UserInfo``,
  which is a ``dict``) comes back so, as with Flask.
- **A response of 5xx saves nothing**, for a view that failed half way is no state to keep.
- **A cookie that browsers would not keep** is ``SessionTooLarge``, where Flask warns in the log.
- **After the headers have left**, in a streamed body or a teardown function, a change that needs
  a cookie raises ``HeadersSentError``; Flask loses it. On a server, others are saved when the
  body is closed.
- **A store that does not answer** raises ``StoreUnavailable``, and unless the application has a
  handler for that, or for a 503, the visitor gets a plain 503. So it is when the response is
  saved, with the view long done: nothing of that response goes out.
- **Flask-Login's login gives the session a new id**, without which whoever had planted the old
  one would be logged in as well, and binds it to the user's id, so that ``HybridSessionStore`` and
  ``SESSION_PRINCIPALS`` know of it; after its logout it is nobody's. A ``session.bind`` in the
  request of the login goes before that id. A login of one's own calls ``session.bind`` or
  ``renew``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from secrets import token_hex
from threading import Lock
from typing import Any, cast

try:
    import flask
    from flask.sessions import NullSession, SessionInterface, SessionMixin
    from markupsafe import Markup
    from werkzeug.exceptions import ServiceUnavailable
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("Flask", "flask") from None

from tieredsession.codec import OwnType
from tieredsession.contracts import Observer, SessionStore
from tieredsession.cookies import add_headers
from tieredsession.cron import PurgeView
from tieredsession.errors import ConfigurationError, StoreUnavailable
from tieredsession.frontend import PlainHTTPWatch
from tieredsession.login import LoginSession
from tieredsession.manager import SessionManager
from tieredsession.merge import union
from tieredsession.registry import open_manager
from tieredsession.settings import Settings

_STRICTER = ("SESSION_COOKIE_NAME", "SESSION_COOKIE_SECURE", "SESSION_COOKIE_SAMESITE")
_REFRESH_EACH = "SESSION_REFRESH_EACH_REQUEST"
_LIFETIME = "PERMANENT_SESSION_LIFETIME"
_SECRETS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS")
_NOT_OURS = frozenset({"SESSION_PROTECTION"})  # of Flask-Login

_FLASHES = "_flashes"  # where flask.flash keeps messages

_MARKUP = OwnType(
    64,
    Markup,
    lambda value: value.encode(),
    lambda data: Markup(data.decode()),  # noqa: S704 - it was markup when it was stored
)


class TieredSession:
    """Gives *app* its sessions; the manager is ``app.extensions["tieredsession"]``.

    There is none while ``SECRET_KEY`` is not set: as with Flask, the session is empty then,
    and whoever assigns to it is told why.

    Args:
        app: the application, or ``None`` to call :meth:`init_app` later.
        store: use this store instead of the one that the settings name.
        observers: are told what happened.
        clock: seconds since the epoch, UTC.
        overrides: settings that go before those of ``app.config``.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        *,
        store: SessionStore | None = None,
        observers: Iterable[Observer] = (),
        clock: Callable[[], float] = time.time,
        **overrides: Any,
    ) -> None:
        self._overrides = overrides
        observers = tuple(observers)
        self._open = partial(
            open_manager,
            store=store,
            observers=observers,
            clock=clock,
            own_types=[_MARKUP],
            subclasses=True,
        )
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Give *app* its sessions. One object may serve several applications."""
        interface = TieredSessionInterface(app, self._open, self._overrides)
        app.session_interface = interface
        app.wsgi_app = _Purge(app.wsgi_app, interface)  # type: ignore[method-assign]
        app.handle_exception = _Outages(app)  # type: ignore[assignment, method-assign]


class FlaskSession(LoginSession, SessionMixin):  # type: ignore[override]  # "new" is not for writing
    """What ``flask.session`` stands for: a ``Session`` with the attributes that Flask knows."""

    _login_key = "_user_id"  # Flask-Login's
    _through_flask = False

    @property
    def accessed(self) -> bool:
        """Whether Flask handed the session out, or anything was read or written yet."""
        return self._through_flask or self._state is not None

    @accessed.setter
    def accessed(self, value: bool) -> None:
        self._through_flask = value

    @property
    def permanent(self) -> bool:
        """Whether this session asked for a cookie that outlives the browser."""
        return bool(self.persistent)

    @permanent.setter
    def permanent(self, value: bool) -> None:
        if self.persistent is not bool(value):
            self.persistent = value

    def restart_if_changed(self) -> None:
        """Let the lifetime count from now if there is anything to save."""
        if self._state is not None and self.modified:
            self._state.restarted = True


session = cast("FlaskSession", flask.session)
"""``flask.session``, for a type checker to know ``bind``, ``renew`` and the rest."""


class TieredSessionInterface(SessionInterface):
    """What Flask calls to open and save the session of a request.

    Args:
        app: the application whose configuration holds the settings.
        open_manager: makes the manager of its settings.
        overrides: settings that go before those of ``app.config``.
    """

    def __init__(
        self,
        app: flask.Flask,
        open_manager: Callable[[Settings], SessionManager],
        overrides: dict[str, Any],
    ) -> None:
        self.purge_url: str | None = None
        self.purge: PurgeView | None = None
        self._open_manager = open_manager
        self._overrides = overrides
        self._lock = Lock()
        self._unset = {name: flask.Flask.default_config[name] for name in _STRICTER}
        self._given: dict[str, Any] = {}
        self._manager: SessionManager | None = None  # from the first request on
        self._watch: PlainHTTPWatch | None = None
        self._on_change_alone = False
        self._configure(app)

    def open_session(self, app: flask.Flask, request: flask.Request) -> FlaskSession | None:
        """The session of *request*, unread; ``None`` if there is no secret."""
        manager = self._manager or self._settle(app)
        if manager is None:
            return None
        environ = request.environ
        if self._watch is not None and self._watch.active:
            self._watch.look_at(environ.get("REMOTE_ADDR", ""))
        session = FlaskSession(manager, environ.get("HTTP_COOKIE"))
        vars(request)["session"] = session
        return session

    def make_null_session(self, app: flask.Flask) -> NullSession:
        """Flask's own, which can be read and not written to."""
        session = super().make_null_session(app)
        if flask.has_request_context():
            vars(flask.request)["session"] = session
        return session

    def save_session(
        self, app: flask.Flask, session: SessionMixin, response: flask.Response
    ) -> None:
        """Save what changed, and give the response its headers."""
        manager, status = self._manager, response.status_code
        # As open_session made them.
        assert isinstance(session, FlaskSession)  # noqa: S101
        assert manager is not None  # noqa: S101
        if self._on_change_alone and status < 500:
            session.restart_if_changed()
        try:
            reply = manager.close(session, status)
        except BaseException:
            response.close()  # for it will not be sent
            raise
        if reply is not None:
            headers = list(response.headers)
            add_headers(headers, reply)
            response.headers[:] = headers
        elif session.accessed:
            response.vary.add("Cookie")
        response.call_on_close(partial(manager.finish, session))

    # -- the configuration ------------------------------------------------------------

    def _settle(self, app: flask.Flask) -> SessionManager | None:
        """At the first request, and until there is a secret: what is configured by now."""
        with self._lock:
            self._configure(app)
            self._manager = app.extensions.get("tieredsession")
        return self._manager

    def _configure(self, app: flask.Flask) -> None:
        given = {
            name: value
            for name, value in app.config.items()
            if (name in _SECRETS or name.startswith("SESSION_"))
            and name not in _NOT_OURS
            and value not in (None, self._unset.get(name))
        }
        given.update(self._overrides)
        lifetime = app.config[_LIFETIME]
        if "SESSION_COOKIE_AGE" in given:
            if lifetime != flask.Flask.default_config[_LIFETIME]:
                raise ConfigurationError(
                    f"{_LIFETIME} and SESSION_COOKIE_AGE are two names of one thing: "
                    "keep one of them"
                )
        else:
            given[_LIFETIME] = lifetime
        if not given.get("SESSION_COOKIE_PATH"):
            given["SESSION_COOKIE_PATH"] = app.config["APPLICATION_ROOT"]
        if given == self._given:
            return

        on_change_alone = not given.get(_REFRESH_EACH, True)
        if on_change_alone and "SESSION_REFRESH" in given:
            raise ConfigurationError(
                f"{_REFRESH_EACH} = False and SESSION_REFRESH say different things: "
                "keep one of them"
            )
        settings = _settings(given)
        if given.get("SECRET_KEY"):
            manager = app.extensions["tieredsession"] = self._open_manager(settings)
            if on_change_alone:
                manager.lifetimes = replace(manager.lifetimes, refresh=1.0)
            self.purge_url = settings.session_purge_url
            self.purge = PurgeView(
                manager.store, settings, observers=manager.observers, clock=manager.clock
            )
        else:
            app.extensions.pop("tieredsession", None)
            self.purge_url = self.purge = None
        self._given = given
        self._on_change_alone = on_change_alone
        self._watch = PlainHTTPWatch(settings)
        self._unset = {
            name: getattr(settings, name.lower()) for name in _STRICTER if name not in given
        }
        app.config.update({**self._unset, **self._overrides})


def _settings(given: dict[str, Any]) -> Settings:
    """Check what is *given*; without a secret, check the rest."""
    named = _LIFETIME if _LIFETIME in given else "SESSION_COOKIE_AGE"
    ours = {name: value for name, value in given.items() if name not in (named, _REFRESH_EACH)}
    ours["SESSION_COOKIE_AGE"] = given[named]
    ours["SECRET_KEY"] = given.get("SECRET_KEY") or token_hex()
    try:
        settings = Settings({}, **ours)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("SESSION_COOKIE_AGE", named)) from None
    settings.session_merge_rules.setdefault(_FLASHES, union)
    return settings


class _Purge:
    """The purge at its URL, before Flask: no hook, login or CSRF protection is meant for cron."""

    def __init__(self, app: Any, interface: TieredSessionInterface) -> None:
        self._app = app
        self._interface = interface

    def __call__(self, environ: Any, start_response: Any) -> Any:
        interface = self._interface
        if environ.get("PATH_INFO", "") == interface.purge_url and interface.purge is not None:
            return interface.purge(environ, start_response)
        return self._app(environ, start_response)


class _Outages:
    """What Flask calls with an exception that nobody has handled, to make a 500 of it.

    The handlers of *app* are asked once more, for Flask asks none of them about what is raised
    after the view.
    """

    def __init__(self, app: flask.Flask) -> None:
        self._app: Any = app
        self._otherwise = app.handle_exception

    def __call__(self, *args: Any) -> flask.Response:
        *context, error = args  # the context is an argument from Flask 3.2 on
        if not isinstance(error, StoreUnavailable):
            return self._otherwise(*args)
        try:
            answer = self._app.handle_user_exception(*context, error)
        except StoreUnavailable:
            unavailable = _Unavailable(retry_after=5)
            unavailable.__cause__ = error
            answer = self._app.handle_http_exception(*context, unavailable)
        finalize = self._app.finalize_request
        response: flask.Response = finalize(*context, answer, from_error_handler=True)
        return response


class _Unavailable(ServiceUnavailable):
    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), ("Cache-Control", "no-store")]
