"""From settings to a manager: names become stores, imported on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tieredsession.codec import MsgpackCodec, OwnType
from tieredsession.contracts import Cache, Observer, SessionStore
from tieredsession.cookies import MAX_AGE, MAX_LINE, CookieWriter
from tieredsession.errors import ConfigurationError, MissingDependencyError
from tieredsession.keyring import Keyring
from tieredsession.lifetimes import Lifetimes
from tieredsession.manager import SessionManager
from tieredsession.observers import fan_out
from tieredsession.options import StoreOptions
from tieredsession.settings import COOKIE_STORE, HYBRID_STORE, Settings
from tieredsession.url import URL

if TYPE_CHECKING:
    from tieredsession.importing import Importer

SERVER_STORES = {
    "datastore": "tieredsession.stores.GAESessionStore",
    "sqlite": "tieredsession.stores.SQLiteSessionStore",
}
"""The schemes of ``SESSION_STORE_URL`` for the server half of a hybrid store."""

CACHES = {
    "memory": "tieredsession.stores.memory_cache:MemoryCache",
    "memcached": "tieredsession.stores.memcached:MemcachedCache",
    "memcached+unix": "tieredsession.stores.memcached:MemcachedCache",
    "redis": "tieredsession.stores.redis:RedisCache",
    "rediss": "tieredsession.stores.redis:RedisCache",
    "redis+unix": "tieredsession.stores.redis:RedisCache",
    "redis+cluster": "tieredsession.stores.redis:RedisCache",
    "redis+sentinel": "tieredsession.stores.redis:RedisCache",
    "valkey": "tieredsession.stores.redis:RedisCache",
    "valkeys": "tieredsession.stores.redis:RedisCache",
    "fakeredis": "tieredsession.stores.redis:RedisCache",
}
"""The schemes of ``SESSION_CACHE_URL``, and what serves them."""


def open_cache(text: str) -> Cache:
    """The cache that the URL *text* names. No call is made to it.

    Raises:
        ConfigurationError: the scheme or an option is unknown.
        MissingDependencyError: it needs an extra that is not installed.
    """
    url = URL(text, "SESSION_CACHE_URL")
    if url.scheme not in CACHES:
        raise url.error(f"has the unknown scheme {url.scheme!r}: use one of {', '.join(CACHES)}")
    module_name, _, name = CACHES[url.scheme].partition(":")
    cache: Cache = getattr(import_module(module_name), name).from_url(url)
    return cache


def open_store(settings: Settings, observers: Iterable[Observer] = ()) -> SessionStore:
    """The store that *settings* name, with its cache in front, ready for use.

    Raises:
        ConfigurationError: the name is not a store's, or a URL is wrong.
        MissingDependencyError: it needs an extra that is not installed.
    """
    url = settings.session_store_url
    options = StoreOptions(
        keyring=Keyring(settings.secret_key, settings.secret_key_fallbacks),
        cookie_name=settings.session_cookie_name,
        prefix=settings.session_prefix,
        url=None if url is None else URL(url, "SESSION_STORE_URL"),
        encrypt=settings.session_cookie_encrypt,
        compress=settings.session_cookie_compress,
        principals=settings.session_principals,
        observer=fan_out(observers),
    )
    if settings.session_store != HYBRID_STORE:
        return _with_cache(_make(settings.session_store, options), settings, options)
    scheme = "datastore" if options.url is None else options.url.scheme
    if scheme not in SERVER_STORES:
        known = ", ".join(SERVER_STORES)
        raise ConfigurationError(
            f"SESSION_STORE_URL has the unknown scheme {scheme!r}: use one of {known}"
        )
    server = _with_cache(_make(SERVER_STORES[scheme], options), settings, options)
    cookie = _make(COOKIE_STORE, replace(options, url=None))
    from tieredsession.stores.hybrid import COOKIE_LIMIT, HybridSessionStore

    # A long path or domain leaves less of the line to the token.
    room = MAX_LINE - len(_cookie_writer(settings).write("", MAX_AGE))
    return HybridSessionStore(cookie, server, min(COOKIE_LIMIT, room))


def _make(path: str, options: StoreOptions) -> SessionStore:
    make = getattr(_import(path), "from_options", None)
    if make is None:
        raise ConfigurationError(f"SESSION_STORE {path!r} is not a store: it has no from_options")
    store: SessionStore = make(options)
    return store


def _with_cache(store: SessionStore, settings: Settings, options: StoreOptions) -> SessionStore:
    if settings.session_cache_url is None:
        return store
    _check_revocable(store, "SESSION_CACHE_URL")
    from tieredsession.stores.tiered import TieredSessionStore

    return TieredSessionStore(
        open_cache(settings.session_cache_url),
        store,
        options.ids,
        options.record_envelope,
        options.observer,
        value_ttl=settings.session_cache_age,
        strict_delete=settings.session_strict_logout,
    )


def _check_revocable(store: SessionStore, name: str) -> None:
    """As the settings check by the path of a store; one may have several, or come without."""
    if not store.revocable:
        raise ConfigurationError(
            f"{name} is for stores that keep the data on the server, and "
            f"{type(store).__name__} keeps it in cookies: use another store, or remove {name}"
        )


def open_manager(
    settings: Settings,
    *,
    store: SessionStore | None = None,
    observers: Iterable[Observer] = (),
    clock: Callable[[], float] = time.time,
    own_types: Iterable[OwnType] = (),
    subclasses: bool = False,
) -> SessionManager:
    """A manager as *settings* describe it, over *store* or the one that they name.

    *own_types* are what sessions of a framework can hold besides; *subclasses* tells whether
    they take a value of a subclass for one of the type itself.

    Raises:
        ConfigurationError: a store cannot be made as they say, or may not hold pickles.
        MissingDependencyError: what they ask for needs an extra that is not installed.
    """
    observers = tuple(observers)
    if store is None:
        store = open_store(settings, observers)
    if settings.session_pickle:
        _check_revocable(store, "SESSION_PICKLE")
    cookie = _cookie_writer(settings)
    return SessionManager(
        store,
        MsgpackCodec(
            pickle=settings.session_pickle,
            tables=settings.session_cookie_compress
            and settings.session_store in (COOKIE_STORE, HYBRID_STORE),
            own_types=own_types,
            subclasses=subclasses,
        ),
        cookie,
        Lifetimes(
            idle=settings.session_cookie_age,
            absolute=settings.session_absolute_age,
            refresh=settings.session_refresh,
            persistent=not settings.session_expire_at_browser_close,
        ),
        cache_control=settings.session_cache_control,
        merge_rules=settings.session_merge_rules,
        importer=_importer(settings, cookie),
        observers=observers,
        clock=clock,
    )


def _cookie_writer(settings: Settings) -> CookieWriter:
    return CookieWriter(
        settings.session_cookie_name,
        domain=settings.session_cookie_domain,
        path=settings.session_cookie_path,
        secure=settings.session_cookie_secure,
        httponly=settings.session_cookie_httponly,
        samesite=settings.session_cookie_samesite,
        partitioned=settings.session_cookie_partitioned,
    )


def _importer(settings: Settings, cookie: CookieWriter) -> Importer | None:
    if not settings.session_import_from:
        return None
    from tieredsession.importing import Importer

    return Importer(
        settings.session_import_from,
        [settings.secret_key, *settings.secret_key_fallbacks],
        cookie=cookie,
        secure=settings.session_cookie_secure,
        samesite=settings.session_cookie_samesite,
    )


def _import(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module_name), name)
    except MissingDependencyError:
        raise
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"SESSION_STORE {path!r} cannot be imported ({error}): "
            "use a dotted path such as 'tieredsession.stores.SQLiteSessionStore'"
        ) from None
