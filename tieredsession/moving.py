"""Moving in: a session that another framework's cookie held goes on as one of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tieredsession.contracts import Codec, Observer
from tieredsession.errors import UnstorableError
from tieredsession.events import ImportRefused
from tieredsession.state import CSRF, DEVICE, FLASH, LIFETIME, PERSISTENT, Imported, MovingIn, State

if TYPE_CHECKING:
    from tieredsession.importing import Foreign, Importer

_OWN_KEYS = frozenset({CSRF, DEVICE, FLASH, LIFETIME, PERSISTENT})


class Mover:
    """Looks for the cookies of other frameworks.

    Args:
        importer: reads them.
        codec: says what a session of ours can keep.
        observe: is told what was not taken over.
    """

    def __init__(self, importer: Importer, codec: Codec, observe: Observer | None) -> None:
        self._importer = importer
        self._codec = codec
        self._observe = observe

    def begin(self, cookie_header: str | None, now: float, *, stale: bool = False) -> State:
        """The state of a visitor for whom the store holds nothing."""
        found, refused = self._importer.read(cookie_header, now)
        if not found:
            for kind, reason in refused:
                self._refuse(kind, reason)
            return State({}, stale=stale)
        data = {}
        dropped = []
        for key, value in found[0].data.items():
            try:
                self._codec.check(key, value)
            except UnstorableError:
                dropped.append(key)
                continue
            if key in _OWN_KEYS:
                dropped.append(key)
            else:
                data[key] = value
        state = State(data, stale=stale)
        imported = Imported(found[0].kind, self._codec.encode(data), tuple(dropped))
        state.moving = MovingIn(_deletions(found), imported)
        return state

    def pass_over(self, state: State, cookie_header: str | None, now: float) -> None:
        """A session of ours goes before any other; when it ends, so do the others."""
        found, _ = self._importer.read(cookie_header, now)
        if found:
            state.moving = MovingIn(_deletions(found))
        for foreign in found:
            self._refuse(foreign.kind, "superseded")

    def _refuse(self, kind: str, reason: str) -> None:
        if self._observe is not None:
            self._observe(ImportRefused(kind, reason))


def is_as_imported(state: State, codec: Codec) -> bool:
    """Whether nothing happened to *state* but that it was imported."""
    if state.moving is None or state.moving.imported is None:
        return False
    if state.renewed or state.force:  # as by bind(), which need not change the data
        return False
    return codec.encode(state.data) == state.moving.imported.payload


def _deletions(found: Iterable[Foreign]) -> tuple[str, ...]:
    return tuple(foreign.expire for foreign in found if foreign.expire is not None)
