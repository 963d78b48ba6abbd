"""A dict as a store: for tests, and for a demo in one process."""

from __future__ import annotations

import threading

from tieredsession.contracts import Observer, Owned, Record, Saved, Swept
from tieredsession.errors import Conflict, Gone
from tieredsession.events import TokenRefused
from tieredsession.options import StoreOptions
from tieredsession.tokens import SessionIds


class MemorySessionStore:
    """Sessions in a dict of this process. They end with it."""

    revocable = True
    principals = True
    shards = ("",)
    sweep_rate: float | None = None

    def __init__(self, ids: SessionIds, observer: Observer | None = None) -> None:
        self._ids = ids
        self._observer = observer
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_options(cls, options: StoreOptions) -> MemorySessionStore:
        if options.url is not None:
            raise options.url.error("is set, but MemorySessionStore lives in this process")
        return cls(options.ids, options.observer)

    def load(self, token: str, now: float) -> Record | None:
        key = self._ids.key(token)
        record = None if key is None else self._records.get(key)
        if record is not None and record.expires > now:
            return record
        if self._observer is not None:
            if key is None:
                reason = self._ids.refusal(token)
            else:
                reason = "unknown" if record is None else "expired"
            self._observer(TokenRefused(reason, session=self._ids.label(token)))
        return None

    def create(self, record: Record, now: float) -> Saved:
        token, key = self._ids.mint()
        with self._lock:  # for the walks below: a dict that grows cannot be walked
            self._records[key] = record._replace(version=1)
        return Saved(token, 1)

    def update(self, token: str, record: Record, now: float) -> Saved:
        with self._lock:
            key = self._live(self._ids.key(token), now, record.version)
            self._records[key] = record._replace(version=record.version + 1)
        return Saved(self._ids.current(token), record.version + 1)

    def delete(self, token: str, now: float, version: int | None = None) -> None:
        key = self._ids.key(token)
        if key is not None:
            self.end(key, now, version)
        elif version is not None:
            raise Gone("the token is not a session")

    def label(self, token: str) -> str | None:
        return self._ids.label(token)

    def sweep(
        self,
        shard: str,
        since: float,
        until: float,
        limit: int,
        after: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Swept:
        with self._lock:
            keys = [key for key, record in self._records.items() if record.expires < until]
            if dry_run:
                return Swept(len(keys), len(keys), 0, 0, since, None)
            for key in keys[:limit]:
                del self._records[key]
        done = len(keys) <= limit
        swept = min(len(keys), limit)
        return Swept(swept, swept, 0, 0, until if done else since, None if done else "more")

    def oldest(self, shard: str) -> float | None:
        with self._lock:
            return min((record.expires for record in self._records.values()), default=None)

    def sessions_of(self, principal: str, now: float) -> list[Owned]:
        with self._lock:
            return [
                Owned(key, record)
                for key, record in self._records.items()
                if record.principal == principal and record.expires > now
            ]

    def end(self, key: str, now: float, version: int | None = None) -> None:
        with self._lock:
            if version is not None:
                self._live(key, now, version)
            self._records.pop(key, None)

    def __len__(self) -> int:
        """How many sessions are held, expired ones included."""
        return len(self._records)

    def _live(self, key: str | None, now: float, version: int) -> str:
        """The key, if a live session stands under it at this version."""
        current = None if key is None else self._records.get(key)
        if key is None or current is None or current.expires <= now:
            raise Gone("the session has ended")
        if current.version != version:
            raise Conflict(current)
        return key
