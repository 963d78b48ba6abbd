"""Django: a session engine, ``SESSION_ENGINE = "tieredsession.adapters.django"``.

Sessions live where ``SESSION_STORE`` and ``SESSION_CACHE_URL`` say. Django's own middleware
stays in charge of the cookie, so admin, auth, messages, ``login()``, ``logout()``, the test
client and Django's own ``SESSION_*`` settings work unchanged. With this module in
``INSTALLED_APPS``, too, ``manage.py check`` reports a wrong setting; without it, the start of
the server does. ``get_manager()`` is the site's manager, for lists of a user's sessions (to a type
checker, the current one among them is a ``cast(SessionStore, request.session)``);
``use_manager(make_manager(observers=[...]))`` in an ``AppConfig.ready`` has it watched.
``manage.py clearsessions`` runs the purge, and so does ``purge_view``, for cron, in a URLconf.

It does what Django documents for sessions, also where our core has another habit: an expiry is
counted from the last change, not from the last use; a session that was emptied lives on without
data; ``SESSION_SAVE_EVERY_REQUEST`` saves on every request; of several cookies of the name the last
counts; what changes while a body is streamed is not saved, and no ``Cache-Control`` is sent. What
differs, and why:

- Two requests at once lose nothing: changes are merged, key by key. Django keeps the last.
- ``session.modified`` is also true after a change inside a nested value, as nobody should have
  to remember a flag. Assigning ``False`` makes the data of that moment count as unchanged.
- Values come back equal and of the same type: tuples, dates, decimals, and dict keys that are
  numbers. So ``SESSION_SERIALIZER`` has no use here. What would not come back is refused when it
  is assigned, and so is a key of the session that is not a string. Of a subclass of what JSON
  knows (a ``SafeString``, a member of ``TextChoices``, an ``OrderedDict``) the plain value comes
  back, as with Django's ``JSONSerializer``.
- The store makes the ids. ``save(must_create=True)`` begins a session under a new one, never
  under one that the caller chose: that would be session fixation.
- The old id of ``cycle_key()`` is dead in both tiers before the new one is saved. If the session
  was ended or cycled by another request in the meantime, the request is answered 400, as by
  Django's middleware after a lost save, and nothing of it goes on under another id.
- With a store that keeps the data in the cookie, ``exists()`` tells an authentic cookie, a cookie
  too large for browsers is an error, and ``set_expiry`` is kept, in the server's eyes, too.
- A tier that does not answer raises ``StoreUnavailable``, an answer of 500, and nothing is saved
  over anything. A forged cookie has Django's line of corrupt data in the ``django.security`` log.
- A session belongs to the user whom auth put into it, so ``SESSION_PRINCIPALS`` can list and end
  a user's sessions, ``HybridSessionStore`` moves to the server at login, and
  ``SESSION_ABSOLUTE_AGE`` counts from the login.
- An engine is shown one cookie, the site's own, so ``SESSION_IMPORT_FROM`` takes over what stands
  there, as Django's ``signed_cookies`` do under their usual name, with the first change.
- The secrets are Django's, if they are worth 32 random bytes: a ``django-insecure-`` key is for
  ``DEBUG`` alone, and a weak one among the fallbacks opens nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any

try:
    from asgiref.sync import sync_to_async
    from django.apps import apps
    from django.conf import ENVIRONMENT_VARIABLE, settings
    from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
    from django.contrib.sessions.exceptions import SessionInterrupted
    from django.core import checks
    from django.core.exceptions import ImproperlyConfigured
    from django.core.signals import setting_changed
except ImportError:
    from tieredsession.errors import MissingDependencyError

    raise MissingDependencyError("Django", "django") from None

from tieredsession.contracts import Observer
from tieredsession.contracts import SessionStore as Store
from tieredsession.cron import PurgeView
from tieredsession.errors import ConfigurationError, SessionError, StoreError
from tieredsession.events import CacheRefused, Event, TokenRefused
from tieredsession.keyring import check_secret
from tieredsession.manager import SessionManager
from tieredsession.purge import NothingToSweep, purge
from tieredsession.registry import open_manager, open_store
from tieredsession.session import MAX_LIFETIME
from tieredsession.settings import Settings
from tieredsession.state import State

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

USER = "_auth_user_id"
"""Where ``django.contrib.auth`` keeps the name of the user."""

INSECURE = "django-insecure-"
"""What ``startproject`` puts before the key that it makes."""

_DJANGOS = frozenset(
    {
        "SESSION_ENGINE",
        "SESSION_CACHE_ALIAS",
        "SESSION_FILE_PATH",
        "SESSION_SAVE_EVERY_REQUEST",
        "SESSION_SERIALIZER",
    }
)
_WITHOUT_EFFECT = {
    "SESSION_CACHE_CONTROL": "Django's SessionMiddleware writes the headers",
    "SESSION_COOKIE_PARTITIONED": "Django's SessionMiddleware writes the cookie",
    "SESSION_REFRESH": "with Django, an expiry is counted from the last change",
}
_JSON = "django.contrib.sessions.serializers.JSONSerializer"

_security = logging.getLogger("django.security.SuspiciousSession")


# -- the manager ----------------------------------------------------------------------

_lock = threading.RLock()
_made: SessionManager | None = None
_given: SessionManager | None = None


def get_manager() -> SessionManager:
    """The manager of this process: the one it was told to use, or one made from the settings.

    Raises:
        ImproperlyConfigured: a setting is wrong.
    """
    global _made
    if _given is not None:
        return _given
    if _made is None:
        with _lock:
            if _made is None:
                _made = make_manager()
    return _made


def use_manager(manager: SessionManager | None) -> None:
    """Use *manager* from now on, or the one made from the settings again."""
    global _given
    _given = manager


def make_manager(
    *,
    store: Store | None = None,
    observers: Iterable[Observer] = (),
    clock: Callable[[], float] = time.time,
) -> SessionManager:
    """A manager as Django's settings describe it, over *store* or the one that they name.

    Args:
        store: goes before the one that the settings name.
        observers: are told what happened.
        clock: seconds since the epoch, UTC.

    Raises:
        ImproperlyConfigured: a setting is wrong.
    """
    observers = tuple(observers)
    try:
        read = _read_settings()
        if store is None:
            # What is forged is found there; of an event for each save nobody wants to know.
            store = open_store(read, [*observers, _log_forged])
        return open_manager(read, store=store, observers=observers, clock=clock, subclasses=True)
    except ConfigurationError as error:
        raise ImproperlyConfigured(str(error)) from error


def _log_forged(event: Event) -> None:
    if isinstance(event, (TokenRefused, CacheRefused)) and event.reason == "forged":
        _security.warning("Session data corrupted")


# -- the settings ---------------------------------------------------------------------


def _read_settings() -> Settings:
    names = {name for name in dir(settings) if name.startswith("SESSION_")} - _DJANGOS
    given = {name: getattr(settings, name) for name in names}
    for name in sorted(names & _WITHOUT_EFFECT.keys()):
        raise ConfigurationError(f"{name} has no effect: {_WITHOUT_EFFECT[name]}; remove it")
    if not given["SESSION_COOKIE_SAMESITE"]:
        del given["SESSION_COOKIE_SAMESITE"]  # Django leaves the attribute out
    given["SECRET_KEY"] = _secret(settings.SECRET_KEY)
    given["SECRET_KEY_FALLBACKS"] = [
        secret for secret in map(_secret, settings.SECRET_KEY_FALLBACKS) if _is_strong(secret)
    ]
    read = Settings(given)
    for source in read.session_import_from:
        if source.cookie != read.session_cookie_name:
            raise ConfigurationError(
                f"SESSION_IMPORT_FROM: Django shows the cookie {read.session_cookie_name!r} alone, "
                f"and this is {source.cookie!r}: give both one name"
            )
    return read


def _secret(secret: Any) -> Any:
    """While one develops, a key is worth what stands behind the prefix."""
    if isinstance(secret, str) and _is_development():
        return secret.removeprefix(INSECURE)
    return secret


def _is_development() -> bool:
    # A test runner sets DEBUG to False; what the developer wrote is in the module.
    module = sys.modules.get(os.environ.get(ENVIRONMENT_VARIABLE, ""))
    return bool(settings.DEBUG or getattr(module, "DEBUG", False))


def _is_strong(secret: Any) -> bool:
    """Whether a session can ever have been sealed with *secret*."""
    try:
        check_secret(secret, "SECRET_KEY_FALLBACKS")
    except ConfigurationError:
        return False
    return True


def _forget_settings(*, setting: str, **_: Any) -> None:
    """Read them again after a test has changed one of ours."""
    global _made, _cron
    if setting.startswith(("SESSION_", "SECRET_KEY")) or setting == "DEBUG":
        with _lock:
            old, _made, _cron = _made, None, None
        close = getattr(old and old.store, "close", None)
        if close is not None:
            close()


def check_settings(app_configs: object, **_: Any) -> list[checks.CheckMessage]:
    """A system check: what is wrong with the settings, in one sentence each."""
    engine = import_module(settings.SESSION_ENGINE)
    if not issubclass(engine.SessionStore, SessionStore):
        return []
    found: list[checks.CheckMessage] = []
    try:
        get_manager()
    except (ImproperlyConfigured, SessionError) as error:
        found.append(checks.Error(str(error), id="tieredsession.E001"))
    if settings.SESSION_SERIALIZER != _JSON:
        text = "SESSION_SERIALIZER has no effect: values come back equal and of the same type"
        found.append(checks.Warning(text, id="tieredsession.W001"))
    return found


# -- the engine -----------------------------------------------------------------------


class SessionStore(SessionBase):  # type: ignore[misc]
    """A session of Django over a :class:`SessionManager`."""

    # On the class, as most sessions are never touched, and each of these costs its share.
    _modified = False
    _unmodified: bytes | None = None
    """What the data was like when it was said to be unmodified."""
    _state: State | None = None
    """What the store held when ``_session_cache`` was loaded or saved."""
    _session_cache: dict[str, Any]
    """The data, from the first touch on."""
    _loading: asyncio.Lock | None = None
    """Tasks that touch it at once load it once, or the last would undo what the others changed."""

    # -- changes

    @property
    def modified(self) -> bool:
        """Whether there is anything to save, also inside nested values."""
        if self._modified:
            return True
        if "_session_cache" not in self.__dict__:
            return False
        manager = get_manager()
        if self._unmodified is not None:
            return manager.codec.encode(self._session_cache) != self._unmodified
        state = self._state
        return state is not None and state.record is not None and manager.is_modified(state)

    @modified.setter
    def modified(self, value: bool) -> None:
        if self._modified != value:
            self._modified = bool(value)
        if not value and "_session_cache" in self.__dict__:
            self._unmodified = get_manager().codec.encode(self._session_cache)

    def __setitem__(self, key: str, value: Any) -> None:
        _check({key: value})
        super().__setitem__(key, value)

    async def aset(self, key: str, value: Any) -> None:
        _check({key: value})
        await super().aset(key, value)

    def update(self, dict_: Any) -> None:
        data = dict(dict_)
        _check(data)
        super().update(data)

    async def aupdate(self, dict_: Any) -> None:
        data = dict(dict_)
        _check(data)
        await super().aupdate(data)

    # -- the store

    def load(self) -> dict[str, Any]:
        """What the store holds, or nothing where there is no such session.

        At the first touch such a session has no key from then on. Later it keeps its key, so
        that what was read before somebody ended it is not saved under another.
        """
        state = _load(self.session_key)
        if "_session_cache" not in self.__dict__:
            self._session_key = state.token
            self._state = state
        return state.data

    def exists(self, session_key: str | None) -> bool:
        """Whether there is a live session under *session_key*."""
        return _load(session_key).token is not None

    def create(self) -> None:
        """Begin another session, with what there is of data, under an id of its own."""
        self._save(State(self._get_session(no_load=True)))

    def save(self, must_create: bool = False) -> None:
        """Save, with what others have saved in the meantime.

        Raises:
            CreateError: there is a session under this key, and it *must* be a new one.
            UpdateError: it was ended in the meantime, and stays so.
            StoreError: it could not be saved.
        """
        if must_create and self.exists(self.session_key):
            raise CreateError
        if must_create or self.session_key is None:
            return self.create()
        state = self._saved()
        if state is None:
            raise UpdateError
        self._modified = self.modified  # what is found now is not found any more once it is saved
        return self._save(state)

    def delete(self, session_key: str | None = None) -> None:
        """End the session, in every tier; where its data is the cookie, let that be forgotten."""
        key = self.session_key if session_key is None else session_key
        own = key == self.session_key
        state = self._state if own else None
        if state is None or state.token is None:
            state = _load(key)
        manager = get_manager()
        if state.token is not None:
            ending = State({}, state.token, state.record)
            ending.principal = None
            ending.ended = True
            manager.save(ending)
        if own:
            self._state = None
            if not manager.store.revocable:
                self._session_key = None
                self._session_cache = {}
                self.modified = True

    def cycle_key(self) -> None:
        """Go on under a new id; the old one is dead before that.

        Raises:
            SessionInterrupted: the session was ended in the meantime.
        """
        state = self._saved()
        if state is None:
            self.create()
            return
        state.renewed = True
        if USER not in state.data:
            state.created = None  # a login, or not much older
        try:
            self._save(state)
        except UpdateError:
            raise SessionInterrupted(
                "The request's session was deleted before the request completed. The user may "
                "have logged in or out in a concurrent request, for example."
            ) from None

    async def acycle_key(self) -> None:
        await sync_to_async(self.cycle_key)()

    @classmethod
    def clear_expired(cls) -> None:
        """Delete the sessions that have expired, as ``manage.py clearsessions`` does.

        Those of the last ``SESSION_PURGE_GRACE`` seconds are left for the next time.

        Raises:
            StoreError: not all of them could be deleted.
        """
        manager = get_manager()
        grace = _read_settings().session_purge_grace
        try:
            report = purge(
                manager.store,
                budget=inf,
                grace=grace,
                observers=manager.observers,
                clock=manager.clock,
            )
        except NothingToSweep as nothing:
            if manager.store.revocable:
                raise NotImplementedError(str(nothing)) from None
            return
        if report.error is not None:
            raise StoreError(report.error)

    # -- inside

    async def _aget_session(self, no_load: bool = False) -> Any:
        if "_session_cache" not in self.__dict__:
            self._loading = self._loading or asyncio.Lock()
            async with self._loading:
                return await super()._aget_session(no_load)
        return await super()._aget_session(no_load)

    def _saved(self) -> State | None:
        """What the store holds under this key, if anything, with the data of this request."""
        data = self._session
        if self._state is None:
            self._state = _load(self.session_key)  # cleared without a look
        self._state.data = data
        return None if self._state.token is None else self._state

    def _save(self, state: State) -> None:
        data = state.data
        for key in data:
            _check_key(key)
        user = data.get(USER)
        state.principal = user if type(user) is str and user else None
        state.keep_empty = True
        state.until = self._ends
        get_manager().save(state)
        if state.token is None:
            raise UpdateError
        if state.token != self.session_key:
            self._session_key = state.token
            self.modified = True
        self._state = state

    def _ends(self, now: float) -> float:
        if self._session_cache.get("_session_expiry"):
            moment = datetime.fromtimestamp(now, timezone.utc)
            ends = self.get_expiry_date(modification=moment).timestamp()
        else:
            ends = now + self.get_session_cookie_age()
        return float(int(min(max(ends, 0), now + MAX_LIFETIME)))

    def _token(self) -> str | None:
        """What ``SessionManager.sessions_of`` and ``end_all`` know the current session by."""
        key: str | None = self.session_key
        return key


def _load(key: str | None) -> State:
    manager = get_manager()
    state = manager.load(f"{manager.cookie.name}={key}" if key else None)
    state.keep_empty = True
    return state


def _check(data: Mapping[Any, Any]) -> None:
    codec = get_manager().codec
    for key, value in data.items():
        _check_key(key)
        codec.check(key, value)


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"a session key is a str, and {key!r} is a {type(key).__name__}")


_cron: tuple[SessionManager, PurgeView] | None = None


def _get_cron(manager: SessionManager) -> PurgeView:
    """The page over *manager*: kept, for it keeps Google's keys, and reads no settings again."""
    global _cron
    kept = _cron
    if kept is None or kept[0] is not manager:
        view = PurgeView(
            manager.store, _read_settings(), observers=manager.observers, clock=manager.clock
        )
        kept = _cron = (manager, view)
    return kept[1]


def purge_view(request: HttpRequest) -> HttpResponse:
    """The page that cron calls (:mod:`tieredsession.cron`).

    It belongs into the URLconf, at ``SESSION_PURGE_URL``::

        path("sessions/purge_old_sessions", purge_view)
    """
    from django import http

    status, headers, body = _get_cron(get_manager()).answer(
        request.method or "",
        request.META.get("HTTP_AUTHORIZATION", ""),
        request.META.get("HTTP_X_APPENGINE_CRON", ""),
    )
    return http.HttpResponse(body, status=int(status[:3]), headers=dict(headers))


# Cron has no form and no login, and says who it is.
purge_view.csrf_exempt = True  # type: ignore[attr-defined]
purge_view.login_required = False  # type: ignore[attr-defined]


checks.register(check_settings, checks.Tags.security)
setting_changed.connect(_forget_settings)

if settings.configured and apps.ready and __name__ == settings.SESSION_ENGINE:
    get_manager()  # a server is starting: now is the time to say what is wrong
