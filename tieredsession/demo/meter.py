"""Counts what each request costs in the session layer: store calls, cookie bytes, time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tieredsession.contracts import Record, Saved, SessionStore
from tieredsession.cookies import find

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REMEMBERED = 6
"""Requests that a meter remembers."""


@dataclass
class Cost:
    """What one request cost. It is complete once the headers have left.

    *calls* names the methods of the store in the order of their calls. *cookie_in* counts
    the bytes of name and value, *cookie_out* those of the whole ``Set-Cookie`` line.
    *token* is the cookie that the browser holds after the response, if any. *seconds* pass
    in the middleware and wherever :meth:`watch` looks, not in the application; *in_store*
    is the part of them that the store took.
    """

    request: str
    timer: Callable[[], float]
    calls: list[str] = field(default_factory=list)
    cookie_in: int = 0
    cookie_out: int = 0
    token: str | None = None
    seconds: float = 0.0
    in_store: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        """Let the time count from here."""
        self._since = self.timer()

    def stop(self) -> None:
        """Let the time count no further; stopping twice is stopping once."""
        if self._since is not None:
            self.seconds += self.timer() - self._since
            self._since = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count the time of a block inside the application, such as the first touch."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """Count one call of the store."""
        self.calls.append(method)
        began = self.timer()
        try:
            yield
        finally:
            self.in_store += self.timer() - began


_current: ContextVar[Cost] = ContextVar("tieredsession.demo.cost")


class Meter:
    """Stands on both sides of ``SessionMiddleware``, and so knows what it took.

    Args:
        cookie: the name of the session cookie.
        timer: seconds, from any beginning.
    """

    def __init__(self, cookie: str, timer: Callable[[], float] = time.perf_counter) -> None:
        self.recent: deque[Cost] = deque(maxlen=REMEMBERED)
        self._cookie = cookie
        self._timer = timer

    @property
    def cost(self) -> Cost:
        """That of the request that this thread is answering."""
        return _current.get()

    def outside(self, app: WSGIApplication) -> WSGIApplication:
        """Wrap the middleware: the time runs until it starts the response."""

        def metered(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            cost = Cost(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", self._timer)
            tokens = find(environ.get("HTTP_COOKIE"), self._cookie)
            cost.cookie_in = sum(len(f"{self._cookie}={token}") for token in tokens)
            cost.token = tokens[-1] if tokens else None
            _current.set(cost)
            self.recent.appendleft(cost)

            def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
                cost.stop()
                for name, line in headers:
                    if name == "Set-Cookie":
                        cost.cookie_out += len(line)
                        cost.token = line.partition(";")[0].partition("=")[2] or None
                return start_response(status, headers, *exc_info)

            cost.start()
            return app(environ, start)

        return metered

    def inside(self, app: WSGIApplication) -> WSGIApplication:
        """Wrap the application: the time stands still until it starts its response."""

        def paused(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            cost = self.cost

            def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
                with cost.watch():
                    return start_response(status, headers, *exc_info)

            cost.stop()
            return app(environ, start)

        return paused


_LOCAL = frozenset({"close", "label", "server"})  # methods that ask nobody


def metered(store: SessionStore, meter: Meter) -> SessionStore:
    """*store* with its calls counted: those to each of its tiers, if it is made of tiers."""
    tiers: Any = store
    if not hasattr(store, "durable"):
        return MeteredStore(store, meter)
    tiers.cache = _Metered(tiers.cache, "cache", meter)
    tiers.durable = _Metered(tiers.durable, "Datastore", meter)
    return store


class _Metered:
    """One tier, whose calls a *meter* counts under a *name*."""

    def __init__(self, tier: object, name: str, meter: Meter) -> None:
        self._tier = tier
        self._name = name
        self._meter = meter

    def __getattr__(self, method: str) -> Any:
        attribute = getattr(self._tier, method)
        if not callable(attribute) or method in _LOCAL:
            return attribute

        def counted(*arguments: Any) -> Any:
            with self._meter.cost.call(f"{self._name} {method}"):
                return attribute(*arguments)

        return counted


class MeteredStore:
    """Any store, whose calls a *meter* counts."""

    def __init__(self, store: SessionStore, meter: Meter) -> None:
        self.revocable = store.revocable
        self._store = store
        self._meter = meter

    def load(self, token: str, now: float) -> Record | None:
        """Count, and load."""
        with self._meter.cost.call("load"):
            return self._store.load(token, now)

    def create(self, record: Record, now: float) -> Saved:
        """Count, and create."""
        with self._meter.cost.call("create"):
            return self._store.create(record, now)

    def update(self, token: str, record: Record, now: float) -> Saved:
        """Count, and update."""
        with self._meter.cost.call("update"):
            return self._store.update(token, record, now)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        """Count, and delete."""
        with self._meter.cost.call("delete"):
            self._store.delete(token, now, version)

    def label(self, token: str) -> str | None:
        """What logs call the session; no call to any tier."""
        return self._store.label(token)
