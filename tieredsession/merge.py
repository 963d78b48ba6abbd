"""Three-way merge of the changes that two requests made to one session.

*base* is what both had read, *mine* what this request made of it, *theirs* what the other
saved first. Keys that only one of them changed keep that change; dicts are merged key by
key; where both changed one value, a rule of the application decides, and without a rule
the later save (mine) wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tieredsession.errors import UnstorableError

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
"""Stands in a merge rule for a key that one side does not have."""

MergeRule = Callable[[Any, Any, Any], Any]
"""``rule(base, mine, theirs)`` answers the merged value, or ``MISSING`` to drop the key."""

Encode = Callable[[Mapping[str, Any]], bytes]
"""Session data to bytes, as a ``Codec`` does."""


def counter(base: Any, mine: Any, theirs: Any) -> Any:
    """A rule for numbers: both increments count."""
    return (
        _or(theirs, 0) + _or(mine, 0) - _or(base, 0)
        if theirs is not MISSING or mine is not MISSING
        else MISSING
    )


def union(base: Any, mine: Any, theirs: Any) -> Any:
    """A rule for lists and sets: what either added is in, what either removed is out.

    A list keeps their order and then what this request added. What both added or removed
    counts once.
    """
    kind = next(type(value) for value in (mine, theirs, base) if value is not MISSING)
    old, ours, other = _or(base, ()), _or(mine, ()), _or(theirs, ())
    removed = _without(_without(old, ours), _without(old, other))
    added = _without(_without(ours, old), _without(other, old))
    return kind([*_without(other, removed), *added])


def _without(items: Iterable[Any], taken: Iterable[Any]) -> list[Any]:
    """*items* less one of its equals for each that was *taken*."""
    rest = list(items)
    for item in taken:
        if item in rest:
            rest.remove(item)
    return rest


def queues(base: Any, mine: Any, theirs: Any) -> Any:
    """The rule of flash messages: a dict of lists, each merged by :func:`union`."""
    old, ours, other = _or(base, {}), _or(mine, {}), _or(theirs, {})
    merged = {
        name: union(old.get(name, []), ours.get(name, []), other.get(name, []))
        for name in [*other, *(name for name in ours if name not in other)]
    }
    return {name: items for name, items in merged.items() if items} or MISSING


def merge(
    base: Mapping[str, Any],
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    rules: Mapping[str, MergeRule],
    encode: Encode,
) -> tuple[dict[str, Any], list[str]]:
    """The merged data, and the keys that both had changed.

    *rules* maps top-level keys to what decides for them. Values are the same if *encode* says
    so.
    """
    merged: dict[str, Any] = {}
    contested: list[str] = []
    for key in [*theirs, *(key for key in mine if key not in theirs)]:
        values = (base.get(key, MISSING), mine.get(key, MISSING), theirs.get(key, MISSING))
        value, both = _merge_value(*values, rules.get(key), encode)
        if both:
            contested.append(key)
        if value is not MISSING:
            merged[key] = value
    return merged, contested


def _merge_value(
    base: Any, mine: Any, theirs: Any, rule: MergeRule | None, encode: Encode
) -> tuple[Any, bool]:
    if _same(theirs, base, encode):
        return mine, False  # itself, for it may have been handed out
    if _same(mine, base, encode):
        return theirs, False
    if rule is not None:
        return rule(base, mine, theirs), True  # two equal increments are two increments
    if _same(mine, theirs, encode):
        return theirs, False
    if type(mine) is dict and type(theirs) is dict:
        merged, contested = merge(base if type(base) is dict else {}, mine, theirs, {}, encode)
        return merged, bool(contested)
    return mine, True


def _same(one: Any, other: Any, encode: Encode) -> bool:
    """Whether both are stored alike, but for the order of keys.

    Python's own answer is another: 1, 1.0 and True are equal to it, so are two times of one
    instant in different zones, and an object of a class without ``__eq__`` is equal to nothing.
    """
    if one is MISSING or other is MISSING:
        return one is other
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(
            _same(part, other[key], encode) for key, part in one.items()
        )
    try:
        return encode({"": one}) == encode({"": other})
    except UnstorableError:  # which no store can hold, so it is new; the save will say so
        return False


def _or(value: Any, default: Any) -> Any:
    return default if value is MISSING else value
