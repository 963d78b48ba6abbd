"""Faults on purpose: a tier that fails, loses a reply, is slow, or is overtaken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from tieredsession.errors import StoreUnavailable

T = TypeVar("T")

_LOCAL = frozenset({"label", "server"})  # of the contracts' methods, those that ask nobody


class Chaos:
    """Plans what happens to calls of a store or cache, and counts them.

    ::

        chaos = Chaos()
        store = chaos.wrap(MemorySessionStore(ids))
        chaos.fail("update")                  # the next update has no effect and raises
        chaos.lose_reply("create")            # the next create works and raises all the same
        chaos.before("update", other_request) # runs in between, as another process would
        assert chaos.calls == ["load", "update"]

    Args:
        error: makes the error of a failed call; :class:`StoreUnavailable` by default.
    """

    def __init__(self, error: Callable[[str], Exception] = StoreUnavailable) -> None:
        self.calls: list[str] = []
        """The names of the methods called so far, failed calls included."""
        self._error = error
        self._plans: dict[str, list[tuple[str, Callable[[], object] | None]]] = {}
        self._down = False

    def wrap(self, target: T) -> T:
        """*target*, with every call of a method going through this plan."""
        return cast("T", _Wrapped(target, self))

    def fail(self, method: str, times: int = 1) -> None:
        """The next *times* calls of *method* have no effect and raise."""
        self._plans.setdefault(method, []).extend([("fail", None)] * times)

    def lose_reply(self, method: str, times: int = 1) -> None:
        """The next *times* calls of *method* have their effect and raise."""
        self._plans.setdefault(method, []).extend([("lose", None)] * times)

    def before(self, method: str, action: Callable[[], object]) -> None:
        """Run *action* before the next call of *method*: another request, or time passing."""
        self._plans.setdefault(method, []).append(("before", action))

    def down(self) -> None:
        """Every call fails until :meth:`up`."""
        self._down = True

    def up(self) -> None:
        """Calls reach the target again."""
        self._down = False

    def call(self, method: str, function: Callable[[], T]) -> T:
        """Make one planned call."""
        self.calls.append(method)
        if self._down:
            raise self._error(f"{method} was made to fail")
        plan = self._plans.get(method)
        kind, action = plan.pop(0) if plan else ("", None)
        if kind == "fail":
            raise self._error(f"{method} was made to fail")
        if action is not None:
            action()
        answer = function()
        if kind == "lose":
            raise self._error(f"the reply of {method} was made to get lost")
        return answer


class _Wrapped:
    def __init__(self, target: object, chaos: Chaos) -> None:
        self._target = target
        self._chaos = chaos

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute) or name in _LOCAL:
            return attribute

        def planned(*args: Any, **kwargs: Any) -> Any:
            return self._chaos.call(name, lambda: attribute(*args, **kwargs))

        return planned
