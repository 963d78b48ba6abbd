"""The purge as a page that cron calls, and who may call it.

Accepted are App Engine's cron, by its header where App Engine runs (which takes the header
away from everybody else, spelled like this: the server behind it must drop names with ``_``, as
gunicorn does since 22); Cloud Scheduler, by a token that Google has signed; and whoever has
the shared secret. Everybody else gets 403 before anything is asked of any tier, and is not
told why.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tieredsession.contracts import Observer
from tieredsession.events import PurgeRefused
from tieredsession.observers import fan_out
from tieredsession.purge import NothingToSweep, as_dict, purge
from tieredsession.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from tieredsession.oidc import CallerVerifier, Transport

_log = logging.getLogger("tieredsession")

_METHODS = ("GET", "POST")


class Answer(NamedTuple):
    """An HTTP response: *status* such as ``200 OK``, headers and body."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


class PurgeView:
    """Answers a call of cron with a run of the purge, as JSON. A WSGI application.

    200 with the report; 503 with it if a tier failed, so that cron tries again; 403 for who
    may not call; 405 for a method that is neither GET nor POST. For other kinds of servers
    there is :meth:`answer`.

    Args:
        store: whose expired sessions are deleted.
        settings: who may call, and how long a run takes.
        observers: are told of every run and of every refusal.
        environ: the process's environment, which tells App Engine.
        transport: fetches Google's public keys.
        options: go to :func:`~tieredsession.purge.purge`.
    """

    def __init__(
        self,
        store: object,
        settings: Settings,
        *,
        observers: Iterable[Observer] = (),
        environ: Mapping[str, str] = os.environ,
        transport: Transport | None = None,
        **options: Any,
    ) -> None:
        self._store = store
        self._observers = tuple(observers)
        self._observe = fan_out(self._observers)
        self._on_app_engine = "GAE_ENV" in environ or "GAE_INSTANCE" in environ
        token = settings.session_purge_token
        self._token = token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token
        self._verifier = _verifier(settings, transport)
        self._options = {
            "budget": settings.session_purge_budget,
            "grace": settings.session_purge_grace,
            **options,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body = self.answer(
            environ["REQUEST_METHOD"],
            environ.get("HTTP_AUTHORIZATION", ""),
            environ.get("HTTP_X_APPENGINE_CRON", ""),
        )
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def answer(self, method: str, authorization: str, app_engine_cron: str) -> Answer:
        """The response to a request with these headers; it takes as long as the purge does.

        Args:
            method: of the request.
            authorization: the header ``Authorization``, empty if there is none; text as in WSGI.
            app_engine_cron: the header ``X-Appengine-Cron``, empty if there is none.
        """
        try:
            refusal = self._refusal(authorization, app_engine_cron)
        except _Unverifiable:
            return _say("503 Service Unavailable", {"error": "the caller cannot be verified now"})
        if refusal is not None:
            if self._observe is not None:
                self._observe(PurgeRefused(refusal))
            return _say("403 Forbidden", {"error": "forbidden"})
        if method not in _METHODS:
            return _say("405 Method Not Allowed", {"error": "GET or POST"}, ("Allow", "GET, POST"))
        try:
            report = purge(self._store, observers=self._observers, **self._options)
        except NothingToSweep as nothing:
            return _say("200 OK", {"completed": True, "deleted": 0, "note": str(nothing)})
        content = as_dict(report)
        if report.failed:
            # What it said goes to the observers alone: it may name servers.
            return _say("503 Service Unavailable", {**content, "error": "a tier failed"})
        return _say("200 OK", content)

    def _refusal(self, authorization: str, app_engine_cron: str) -> str | None:
        """Why the caller is refused, for the operator; ``None`` if he is not."""
        if self._on_app_engine and app_engine_cron.lower() == "true":
            return None
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential:
            if app_engine_cron:
                return "X-Appengine-Cron, which anybody can send where App Engine does not run"
            return "no credential"
        # Servers hand over the bytes of a header as latin-1 (PEP 3333).
        sent = credential.encode("latin-1", "backslashreplace")
        if self._token is not None and hmac.compare_digest(sent, self._token):
            return None
        if self._verifier is None:
            return "wrong token"
        from tieredsession.oidc import KeysUnavailable

        try:
            return self._verifier.refusal(credential)
        except KeysUnavailable:
            _log.error("the purge was called, and Google's public keys cannot be had")
            raise _Unverifiable from None


class _Unverifiable(Exception):
    """The caller may be right, and cannot be verified now."""


def _verifier(settings: Settings, transport: Transport | None) -> CallerVerifier | None:
    account, audience = settings.session_purge_account, settings.session_purge_audience
    if account is None or audience is None:
        return None
    from tieredsession.oidc import CallerVerifier

    return CallerVerifier(account, audience, transport)


def _say(status: str, content: Mapping[str, Any], *headers: tuple[str, str]) -> Answer:
    body = json.dumps(content).encode() + b"\n"
    return Answer(
        status,
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            *headers,
        ],
        body,
    )
