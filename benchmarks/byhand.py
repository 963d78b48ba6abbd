"""Sessions in Datastore as a site writes them that has no library for it, and bare calls.

A Werkzeug application with an id in a cookie and JSON in an entity. Nothing is read unless the
view asks, and nothing is written unless the data has changed: more care than most sites take.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.frameworks import Answer, Request, act, over_wsgi, use_emulator
from benchmarks.payloads import TYPICAL, without_datetimes
from benchmarks.servers import PROJECT

NOTHING = Answer(b"0", None)

_LIFETIME = 14 * 24 * 3600
_COOKIE = "id"


class LazyDict(dict[str, Any]):
    """Loads itself when a view first asks; knows its *id* and what it was loaded as."""

    def __init__(self, key: str | None, load: Callable[[str], str | None]) -> None:
        super().__init__()
        self.id = key
        self._load = load
        self.before: str | None = None

    def open(self) -> LazyDict:
        text = None if self.id is None else self._load(self.id)
        if text is None:
            self.id = None
        else:
            self.update(json.loads(text))
        self.before = json.dumps(self)
        return self


def ndb_site(cache: str | None = None) -> Any:
    """Get and put, in one ndb context a request; *cache* is ndb's own global one."""

    def make(where: Any) -> Request:
        ndb = import_module("google.cloud.ndb")
        use_emulator(where.servers["datastore"])
        client = ndb.Client(project=PROJECT)
        kind = _kind(ndb)
        global_cache = _global_cache(ndb, cache, where)

        def load(key: str) -> str | None:
            entity = ndb.Key(kind, key).get()
            return None if entity is None or entity.expires < time.time() else entity.data

        def save(key: str, text: str) -> None:
            kind(id=key, data=text, expires=int(time.time()) + _LIFETIME).put()

        def request_context() -> Any:
            return client.context(global_cache=global_cache)

        return over_wsgi(_app(load, save, request_context))

    return make


def write_through_site() -> Any:
    """Memcached before ndb, both written whenever a session was touched: a life extended.

    What the session libraries of App Engine's first years did.
    """

    def make(where: Any) -> Request:
        ndb = import_module("google.cloud.ndb")
        pymemcache = import_module("pymemcache.client.base")
        use_emulator(where.servers["datastore"])
        client = ndb.Client(project=PROJECT)
        kind = _kind(ndb)
        host, _, port = where.servers["memcached"].rpartition(":")
        memcached = pymemcache.PooledClient(
            (host, int(port)),
            no_delay=True,
            default_noreply=False,
            timeout=where.timeout,
            connect_timeout=where.timeout,
        )

        def load(key: str) -> str | None:
            found = memcached.get(f"session:{key}")
            if found is not None:
                text: str = found.decode()
                return text
            entity = ndb.Key(kind, key).get()
            return None if entity is None or entity.expires < time.time() else entity.data

        def save(key: str, text: str) -> None:
            kind(id=key, data=text, expires=int(time.time()) + _LIFETIME).put()
            memcached.set(f"session:{key}", text.encode(), expire=3600)

        return over_wsgi(_app(load, save, client.context, always=True))

    return make


def bare_get(cache: str) -> Any:
    """One ``get`` of a typical session's bytes, and nothing else."""

    def make(where: Any) -> Request:
        value = json.dumps(without_datetimes(TYPICAL)).encode()
        if cache == "memcached":
            client = import_module("pymemcache.client.base").PooledClient(
                where.servers[cache], no_delay=True, timeout=where.timeout
            )
        else:
            client = import_module("redis").Redis.from_url(f"redis://{where.servers[cache]}")
        client.set("bare", value)

        def request(path: str, cookie: str | None) -> Answer:
            client.get("bare")
            return NOTHING

        return request

    return make


def bare_commit() -> Any:
    """One commit of a typical session's bytes, without ndb, with everything prepared."""

    def make(where: Any) -> Request:
        ndb = import_module("google.cloud.ndb")
        types = import_module("google.cloud.datastore_v1.types.datastore")
        use_emulator(where.servers["datastore"])
        commit_request = types.CommitRequest.pb()
        channel = ndb.Client(project=PROJECT).stub.grpc_channel
        commit = channel.unary_unary(
            "/google.datastore.v1.Datastore/Commit",
            request_serializer=commit_request.SerializeToString,
            response_deserializer=types.CommitResponse.pb().FromString,
        )
        prepared = commit_request(
            project_id=PROJECT, mode=types.CommitRequest.Mode.NON_TRANSACTIONAL
        )
        entity = prepared.mutations.add().upsert
        entity.key.partition_id.project_id = PROJECT
        step = entity.key.path.add()
        step.kind, step.name = "Bare", "bare"
        entity.properties["data"].blob_value = json.dumps(without_datetimes(TYPICAL)).encode()
        entity.properties["data"].exclude_from_indexes = True
        entity.properties["write"].exclude_from_indexes = True

        def request(path: str, cookie: str | None) -> Answer:
            # Datastore does not write what it has already.
            entity.properties["write"].blob_value = secrets.token_bytes(8)
            commit(prepared, timeout=10)
            return NOTHING

        return request

    return make


def _kind(ndb: Any) -> Any:
    class ByHand(ndb.Model):  # type: ignore[misc]  # ndb has no types
        data = ndb.TextProperty()
        expires = ndb.IntegerProperty()

    return ByHand


def _global_cache(ndb: Any, cache: str | None, where: Any) -> Any:
    if cache == "memcached":
        client = import_module("pymemcache.client.base").PooledClient(
            where.servers[cache],
            no_delay=True,
            timeout=where.timeout,
            connect_timeout=where.timeout,
        )
        # Its own default makes every put fail with the cache.
        return ndb.MemcacheCache(client, strict_write=False)
    if cache == "redis":
        return ndb.RedisCache(
            import_module("redis").Redis.from_url(f"redis://{where.servers[cache]}")
        )
    return None


def _app(
    load: Callable[[str], str | None],
    save: Callable[[str, str], None],
    request_context: Callable[[], Any],
    *,
    always: bool = False,
) -> Any:
    wrappers = import_module("werkzeug.wrappers")

    def renew(session: LazyDict) -> None:
        session.id = None
        session.clear()

    @wrappers.Request.application  # type: ignore[untyped-decorator]  # imported by name
    def app(request: Any) -> Any:
        if request.path == "/untouched":
            return wrappers.Response(act(None, request.path))
        with request_context():
            sent = request.cookies.get(_COOKIE)
            session = LazyDict(sent, load).open()
            response = wrappers.Response(act(session, request.path, renew))
            after = json.dumps(session)
            if after != session.before or (always and session.id is not None):
                session.id = session.id or secrets.token_urlsafe(16)
                save(session.id, after)
                if session.id != sent:
                    response.set_cookie(_COOKIE, session.id, secure=True, httponly=True)
        return response

    return app
