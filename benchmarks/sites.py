"""One small site in each framework, with each kind of session and with none.

Every site answers the same paths with the same text, so that its cost beyond the site
without a session is what the session costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import byhand, frameworks
from benchmarks.cookies import SECRET, configure_django, why
from benchmarks.frameworks import Answer, Request, over_asgi, over_wsgi
from benchmarks.servers import PROJECT, Servers, Unavailable
from tieredsession import SessionMiddleware
from tieredsession.wsgi import SESSION_KEY


class Where(NamedTuple):
    """What a site may use: a *folder* for its files, and servers.

    Its clients wait *timeout* seconds for a cache.
    """

    folder: Path
    servers: Servers
    timeout: float = 5.0


Make = Callable[[Where], Request]

COOKIE, CACHE, DURABLE = "cookie", "cache", "durable"
"""What becomes of a change: it travels in a cookie, rests in a cache that may forget it, or is
on a disk (in Datastore or SQLite) before the response leaves."""


class Site(NamedTuple):
    """A site of *framework*. *floor* names the same without a session.

    *work* is what a change of the session takes there; see :data:`COOKIE`. *needs* names
    servers. *cached* durable sites read as those do that only have a cache.
    """

    make: Make
    floor: str | None = None
    work: str | None = None
    needs: tuple[str, ...] = ()
    cached: bool = False

    @property
    def waits(self) -> bool:
        """Whether its requests wait for somebody else."""
        return bool(self.needs) or self.work == DURABLE


_COOKIES, _SQLITE = "SecureCookieSessionStore", "SQLiteSessionStore"
_GAE = "GAESessionStore"


# -- ours -------------------------------------------------------------------------------


def settings(where: Where, store: str, cache: str | None = None, **more: Any) -> dict[str, Any]:
    """Our settings with defaults everywhere but in where sessions live."""
    named: dict[str, Any] = {"SECRET_KEY": SECRET, "SESSION_STORE": f"tieredsession.stores.{store}"}
    if store == "GAESessionStore":
        frameworks.use_emulator(where.servers["datastore"])
        named["SESSION_STORE_URL"] = f"datastore://{PROJECT}?deadline=10"
    if store == "SQLiteSessionStore":
        name = "-".join(["ours", cache or "alone", *map(str, more.values())])
        more = dict(more)
        # As the peers are told to do; alone it keeps its default.
        synchronous = more.pop("synchronous", "normal" if cache else "full")
        file = where.folder / f"{name}.sqlite3"
        named["SESSION_STORE_URL"] = f"sqlite:///{file}?synchronous={synchronous}"
    if cache is not None:
        named["SESSION_CACHE_URL"] = f"{cache}://{where.servers[cache]}?timeout={where.timeout}"
    return {**named, **more}


def _ours(app: Any = None, store: str = _COOKIES, cache: str | None = None, **more: Any) -> Make:
    """*app*, or a Werkzeug one, under our middleware."""

    def make(where: Where) -> Request:
        inner = app or frameworks.werkzeug_app(lambda request: request.environ[SESSION_KEY])
        return over_wsgi(SessionMiddleware(inner, settings(where, store, cache, **more)))

    return make


def _ours_in_flask(store: str = _COOKIES, cache: str | None = None) -> Make:
    def make(where: Where) -> Request:
        adapter = import_module("tieredsession.adapters.flask").TieredSession
        named = settings(where, store, cache)

        def prepare(app: Any) -> None:
            app.config.update(named)
            adapter(app)

        return over_wsgi(frameworks.flask_app(secret=SECRET, prepare=prepare))

    return make


def _ours_in_starlette(store: str = _COOKIES, cache: str | None = None) -> Make:
    def make(where: Where) -> Request:
        middleware = import_module("tieredsession.adapters.asgi").SessionMiddleware
        app = frameworks.starlette_app(session_of=lambda request: request.session)
        app.add_middleware(middleware, settings=settings(where, store, cache))
        return over_asgi(app)

    return make


def _ours_in_pyramid(store: str = _COOKIES, cache: str | None = None) -> Make:
    def make(where: Where) -> Request:
        factory = import_module("tieredsession.adapters.pyramid").session_factory
        named = settings(where, store, cache)
        return over_wsgi(frameworks.pyramid_app(lambda: factory(named)))

    return make


def _ours_in_django(store: str = _COOKIES, cache: str | None = None, **more: Any) -> Make:
    """Django has one manager in a process, which each of these sites brings along."""

    def make(where: Where) -> Request:
        adapter = import_module("tieredsession.adapters.django")
        django = configure_django()
        named = settings(where, store, cache, **more)
        for name in ("SESSION_STORE", "SESSION_STORE_URL", "SESSION_CACHE_URL"):
            setattr(django, name, named.get(name))
        django.SESSION_ENGINE = "tieredsession.adapters.django"
        manager = adapter.make_manager()
        request = over_wsgi(frameworks.django_handler())

        def ours(path: str, cookie: str | None) -> Answer:
            adapter.use_manager(manager)
            return request(path, cookie)

        return ours

    return make


def _plain(environ: Any, start_response: Any) -> list[bytes]:
    """The least that a WSGI application can do."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1")])
    return [b"0"]


class _Nothing:
    """A WSGI middleware that does nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


def _wsgi(app: Callable[[], Any]) -> Make:
    return lambda where: over_wsgi(app())


# -- the sites --------------------------------------------------------------------------

BARE = "WSGI"
NOTHING = "WSGI, middleware that does nothing"
_TIERS = (("memcached", "datastore"), ("redis", "datastore"))

BARE_CALLS = {
    "memcached": "one bare get, memcached",
    "redis": "one bare get, Redis",
    "datastore": "one bare commit, Datastore",
}
"""What a session on these servers cannot be cheaper than."""

SITES: dict[str, Site] = {
    BARE_CALLS["memcached"]: Site(byhand.bare_get("memcached"), needs=("memcached",)),
    BARE_CALLS["redis"]: Site(byhand.bare_get("redis"), needs=("redis",)),
    BARE_CALLS["datastore"]: Site(byhand.bare_commit(), needs=("datastore",)),
    BARE: Site(lambda where: over_wsgi(_plain)),
    NOTHING: Site(lambda where: over_wsgi(_Nothing(_plain)), BARE),
    "WSGI, ours": Site(_ours(_plain), NOTHING, COOKIE),
    "Werkzeug": Site(_wsgi(frameworks.werkzeug_app)),
    "Werkzeug, ours, cookie": Site(_ours(), "Werkzeug", COOKIE),
    "Werkzeug, ours, cookie, encrypted": Site(
        _ours(SESSION_COOKIE_ENCRYPT=True), "Werkzeug", COOKIE
    ),
    "Werkzeug, ours, memory": Site(_ours(store="MemorySessionStore"), "Werkzeug"),
    "Werkzeug, ours, SQLite": Site(_ours(store=_SQLITE), "Werkzeug", DURABLE),
    "Werkzeug, ours, SQLite, normal": Site(
        _ours(store=_SQLITE, synchronous="normal"), "Werkzeug", DURABLE
    ),
    "Werkzeug, ours, SQLite and memcached": Site(
        _ours(store=_SQLITE, cache="memcached"), "Werkzeug", DURABLE, ("memcached",), True
    ),
    "Werkzeug, ours, GAE on memcached": Site(
        _ours(store=_GAE, cache="memcached"), "Werkzeug", DURABLE, _TIERS[0], True
    ),
    "Werkzeug, ours, GAE on Redis": Site(
        _ours(store=_GAE, cache="redis"), "Werkzeug", DURABLE, _TIERS[1], True
    ),
    "Werkzeug, ndb by hand": Site(byhand.ndb_site(), "Werkzeug", DURABLE, ("datastore",)),
    "Werkzeug, ndb by hand, its cache on memcached": Site(
        byhand.ndb_site("memcached"), "Werkzeug", DURABLE, _TIERS[0], True
    ),
    "Werkzeug, ndb by hand, its cache on Redis": Site(
        byhand.ndb_site("redis"), "Werkzeug", DURABLE, _TIERS[1], True
    ),
    # Nobody's rival: it saves a call, since it neither locks nor looks for lost updates.
    "Werkzeug, naive write-through": Site(
        byhand.write_through_site(), "Werkzeug", None, _TIERS[0], True
    ),
    "Werkzeug, Beaker, cookie": Site(frameworks.beaker_site("cookie"), "Werkzeug", COOKIE),
    "Werkzeug, Beaker, memcached": Site(
        frameworks.beaker_site("memcached"), "Werkzeug", CACHE, ("memcached",)
    ),
    "Werkzeug, Beaker, Redis": Site(frameworks.beaker_site("redis"), "Werkzeug", CACHE, ("redis",)),
    "Flask": Site(_wsgi(partial(frameworks.flask_app, secret=None))),
    "Flask, ours, cookie": Site(_ours_in_flask(), "Flask", COOKIE),
    "Flask, ours, SQLite and memcached": Site(
        _ours_in_flask(_SQLITE, "memcached"), "Flask", DURABLE, ("memcached",), True
    ),
    "Flask, ours, SQLite and Redis": Site(
        _ours_in_flask(_SQLITE, "redis"), "Flask", DURABLE, ("redis",), True
    ),
    "Flask, its session": Site(
        _wsgi(partial(frameworks.flask_app, secret=SECRET)), "Flask", COOKIE
    ),
    "Flask, Flask-Session, memcached": Site(
        frameworks.flask_session_site("memcached"), "Flask", CACHE, ("memcached",)
    ),
    "Flask, Flask-Session, Redis": Site(
        frameworks.flask_session_site("redis"), "Flask", CACHE, ("redis",)
    ),
    "Starlette": Site(lambda where: over_asgi(frameworks.starlette_app())),
    "Starlette, ours, cookie": Site(_ours_in_starlette(), "Starlette", COOKIE),
    "Starlette, ours, SQLite and Redis": Site(
        _ours_in_starlette(_SQLITE, "redis"), "Starlette", DURABLE, ("redis",), True
    ),
    "Starlette, its session": Site(
        lambda where: over_asgi(frameworks.starlette_app(secret=SECRET)), "Starlette", COOKIE
    ),
    "Starlette, starsessions, cookie": Site(
        frameworks.starsessions_site("cookie"), "Starlette", COOKIE
    ),
    "Starlette, starsessions, Redis": Site(
        frameworks.starsessions_site("redis"), "Starlette", CACHE, ("redis",)
    ),
    "Django": Site(frameworks.django_site(None)),
    "Django, ours, cookie": Site(_ours_in_django(), "Django", COOKIE),
    "Django, ours, SQLite, normal": Site(
        _ours_in_django(_SQLITE, synchronous="normal"), "Django", DURABLE
    ),
    "Django, ours, SQLite and memcached": Site(
        _ours_in_django(_SQLITE, "memcached"), "Django", DURABLE, ("memcached",), True
    ),
    "Django, ours, SQLite and Redis": Site(
        _ours_in_django(_SQLITE, "redis"), "Django", DURABLE, ("redis",), True
    ),
    "Django, signed_cookies": Site(frameworks.django_site("signed_cookies"), "Django", COOKIE),
    "Django, cache, memcached": Site(
        frameworks.django_site("cache", "memcached"), "Django", CACHE, ("memcached",)
    ),
    "Django, cache, Redis": Site(
        frameworks.django_site("cache", "redis"), "Django", CACHE, ("redis",)
    ),
    "Django, db, SQLite": Site(frameworks.django_site("db"), "Django", DURABLE),
    "Django, cached_db, SQLite and memcached": Site(
        frameworks.django_site("cached_db", "memcached"), "Django", DURABLE, ("memcached",), True
    ),
    "Pyramid": Site(_wsgi(frameworks.pyramid_app)),
    "Pyramid, ours, cookie": Site(_ours_in_pyramid(), "Pyramid", COOKIE),
    "Pyramid, ours, SQLite and Redis": Site(
        _ours_in_pyramid(_SQLITE, "redis"), "Pyramid", DURABLE, ("redis",), True
    ),
    "Pyramid, its session": Site(
        _wsgi(partial(frameworks.pyramid_app, frameworks.pyramid_signed)), "Pyramid", COOKIE
    ),
    "Pyramid, NaCl": Site(
        _wsgi(partial(frameworks.pyramid_app, frameworks.pyramid_nacl)), "Pyramid", COOKIE
    ),
    "Pyramid, pyramid_session_redis": Site(
        frameworks.pyramid_redis_site(), "Pyramid", CACHE, ("redis",)
    ),
}
"""SQLite syncs each commit to the disk, unless it is told that ``normal`` will do."""


def present(
    where: Where, skipped: dict[str, str], names: tuple[str, ...] = tuple(SITES)
) -> dict[str, Request]:
    """Those of *names* that work here; the others go into *skipped* with the reason."""
    requests: dict[str, Request] = {}
    for name in names:
        try:
            for server in SITES[name].needs:
                where.servers[server]
            requests[name] = SITES[name].make(where)
        except ImportError as error:
            skipped[name] = why(error)
        except Unavailable as error:
            skipped[name] = str(error)
    return requests


def framework(name: str) -> str:
    """The framework of the site *name*."""
    return name.partition(",")[0]


def is_ours(name: str) -> bool:
    """Whether the site *name* has a session of this project."""
    return ", ours" in name
