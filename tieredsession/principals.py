"""The sessions of one principal: listing them, and ending them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from tieredsession.contracts import ByPrincipal, Codec, SessionStore
from tieredsession.errors import ConfigurationError, Conflict, DecodeError, Gone
from tieredsession.lifetimes import Lifetimes
from tieredsession.state import DEVICE


class SessionInfo(NamedTuple):
    """One session of a principal, for a page that lists them. Nothing in it opens it.

    *handle* is for :meth:`SessionManager.end_session`. *last_seen* is up to the refresh
    share of the lifetime too early, and more near the end of an absolute lifetime.
    *device* is what ``Session.bind`` was told.
    """

    handle: str
    created: float
    last_seen: float
    device: str | None
    current: bool


def sessions_of(
    store: SessionStore,
    codec: Codec,
    lifetimes: Lifetimes,
    principal: str,
    mine: str | None,
    now: float,
) -> list[SessionInfo]:
    """The live sessions of *principal*, the latest used first; *mine* is the current one's label.

    Raises:
        ConfigurationError: the store keeps no index.
    """
    infos = []
    for key, record in _index(store).sessions_of(principal, now):
        if lifetimes.is_over(record, now):
            continue
        try:
            data = codec.decode(record.payload)
        except DecodeError:
            data = {}
        info = SessionInfo(
            handle=key,
            created=record.created,
            last_seen=max(record.created, record.expires - lifetimes.idle_of(data)),
            device=data.get(DEVICE),
            current=mine is not None and mine in key,
        )
        infos.append(info)
    return sorted(infos, key=lambda info: info.last_seen, reverse=True)


def end_where(
    store: SessionStore, principal: str, chosen: Callable[[str], bool], now: float
) -> int:
    """End those sessions of *principal* whose storage key is *chosen*; how many that were.

    Raises:
        ConfigurationError: the store keeps no index.
    """
    index = _index(store)
    ended = 0
    for key, record in index.sessions_of(principal, now):
        version: int | None = record.version
        while chosen(key):
            try:
                index.end(key, now, version)
            except Conflict as conflict:
                if conflict.current.principal != principal:
                    break  # clear() has left it to nobody
                version = conflict.current.version
                continue
            except Gone:
                break
            ended += 1
            break
    return ended


def _index(store: SessionStore) -> ByPrincipal:
    if not getattr(store, "principals", False):
        raise ConfigurationError(
            "SESSION_PRINCIPALS is off, so nobody knows whose sessions are whose: set it to "
            "True, with a store that keeps the data on the server"
        )
    return cast("ByPrincipal", store)
