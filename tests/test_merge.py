"""The merge: of two requests' changes to one session, none is lost without a rule saying so."""

from __future__ import annotations

import copy
import datetime as dt
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tieredsession.codec import MsgpackCodec
from tieredsession.merge import MISSING, MergeRule, counter, queues, union
from tieredsession.merge import merge as merge_of

merge = partial(merge_of, encode=MsgpackCodec().encode)
NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.timezone.utc)

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Small, so that the two sides often meet; 0, 0.0 and False are equal to Python.
leaves: st.SearchStrategy[Any] = st.sampled_from([0, 0.0, False, 1, True, "", "a", None, b"a"])
values: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda part: st.one_of(
        st.lists(part, max_size=2),
        st.lists(part, max_size=2).map(tuple),
        st.sets(leaves, max_size=2),
        st.dictionaries(st.sampled_from("xyz"), part, max_size=3),
    ),
    max_leaves=5,
)
sessions = st.dictionaries(st.sampled_from("abcdef"), values, max_size=5)


def exact(value: Any, ordered: bool = False) -> Any:
    """*value* with every type in it made visible. In lists, the order of keys counts, too."""
    if type(value) is dict:
        items = [(key, exact(part, ordered)) for key, part in value.items()]
        return items if ordered else dict(items)
    if type(value) in (list, tuple):
        return type(value), [exact(part, ordered=True) for part in value]
    if type(value) in (set, frozenset):
        return type(value), {(type(part), part) for part in value}
    return type(value), repr(value)


def merged(
    base: dict[str, Any],
    mine: dict[str, Any],
    theirs: dict[str, Any],
    rules: dict[str, MergeRule] | None = None,
) -> dict[str, Any]:
    return merge(base, mine, theirs, rules or {})[0]


# -- laws ---------------------------------------------------------------------------------


@given(sessions, sessions)
@QUICK
def test_one_side_changed(base: dict[str, Any], changed: dict[str, Any]) -> None:
    """If only one request changed the session, the result is what that request made of it."""
    for mine, theirs in [(base, changed), (changed, base)]:
        data, contested = merge(copy.deepcopy(base), mine, theirs, {})
        assert exact(data) == exact(changed)
        assert contested == []


@given(sessions, sessions)
@QUICK
def test_both_made_the_same_change(base: dict[str, Any], changed: dict[str, Any]) -> None:
    """If both made the same change, that is the result, and nothing is contested."""
    data, contested = merge(base, changed, copy.deepcopy(changed), {})
    assert exact(data) == exact(changed)
    assert contested == []


def edit(data: dict[str, Any], edits: dict[str, Any]) -> dict[str, Any]:
    edited = {**copy.deepcopy(data), **edits}
    return {key: value for key, value in edited.items() if value is not MISSING}


def edits(keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys), st.one_of(values, st.just(MISSING)), max_size=3)


@given(sessions, edits("abc"), edits("def"))
@QUICK
def test_changes_of_different_keys_survive(
    base: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Keys that were set or deleted by one request each keep both changes, in either order."""
    mine, theirs = edit(base, one), edit(base, other)
    for pair in [(mine, theirs), (theirs, mine)]:
        data, contested = merge(base, *pair, {})
        assert exact(data) == exact(edit(base, {**one, **other}))
        assert contested == []


@given(sessions, edits("abc"), edits("def"))
@QUICK
def test_changes_of_different_nested_keys_survive(
    base: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The same holds for the keys of nested dicts, at any depth."""
    expected = edit(base, {**one, **other})
    for wrap in (lambda data: {"k": data}, lambda data: {"k": {"l": [1], "m": {"n": data}}}):
        data, contested = merge(wrap(base), wrap(edit(base, one)), wrap(edit(base, other)), {})
        assert exact(data) == exact(wrap(expected))
        assert contested == []


@given(sessions, sessions, sessions)
@QUICK
def test_every_merge(base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Any merge leaves its arguments alone, repeats itself, and invents or loses no key."""
    before = copy.deepcopy((base, mine, theirs))
    data, contested = merge(base, mine, theirs, {})
    again = merge(*copy.deepcopy((base, mine, theirs)), {})
    assert list(again[0]) == list(data)
    assert exact(again[0]) == exact(data)
    assert again[1] == contested
    assert exact((base, mine, theirs)) == exact(before)

    assert set(data) <= set(mine) | set(theirs)
    for key in set(base) | set(mine) | set(theirs):
        values = [exact(side.get(key, MISSING)) for side in (base, mine, theirs)]
        if key in contested:
            assert values[0] != values[1] != values[2] != values[0]
        elif values[1] == values[0]:
            assert exact(data.get(key, MISSING)) == values[2]
        elif values[2] == values[0]:
            assert exact(data.get(key, MISSING)) == values[1]


@given(sessions, sessions, sessions)
@QUICK
def test_the_later_save_wins(
    base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """A key that both changed, and that is no dict to both, is what the later save made of it."""
    data, contested = merge(base, mine, theirs, {})
    for key in contested:
        if type(mine.get(key)) is not dict or type(theirs.get(key)) is not dict:
            assert exact(data.get(key, MISSING)) == exact(mine.get(key, MISSING))


# -- cases --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "expected", "contested"),
    [
        ({"n": 1}, {"n": 2}, {"n": 3}, {"n": 2}, ["n"]),
        ({"n": 1}, {}, {"n": 3}, {}, ["n"]),
        ({"n": 1}, {"n": 2}, {}, {"n": 2}, ["n"]),
        ({}, {"n": 2}, {"n": 3}, {"n": 2}, ["n"]),
        ({"n": 1}, {}, {}, {}, []),
        (
            {"cart": {"a": 1}},
            {"cart": {"a": 1, "b": 1}},
            {"cart": {"a": 2, "c": 1}},
            {"cart": {"a": 2, "b": 1, "c": 1}},
            [],
        ),
        ({}, {"cart": {"a": 1}}, {"cart": {"b": 1}}, {"cart": {"a": 1, "b": 1}}, []),
        ({}, {"cart": {"a": 1}}, {"cart": {"a": 2}}, {"cart": {"a": 1}}, ["cart"]),
        ({"cart": 0}, {"cart": {"a": 1}}, {"cart": {"b": 1}}, {"cart": {"a": 1, "b": 1}}, []),
        ({"cart": {"a": 1}}, {"cart": {}}, {"cart": {"a": 1, "b": 1}}, {"cart": {"b": 1}}, []),
        ({"cart": {"a": 1}}, {}, {"cart": {"a": 2}}, {}, ["cart"]),
        ({"cart": {"a": 1}}, {"cart": []}, {"cart": {"a": 2}}, {"cart": []}, ["cart"]),
    ],
)
def test_both_sides_changed(
    base: dict[str, Any],
    mine: dict[str, Any],
    theirs: dict[str, Any],
    expected: dict[str, Any],
    contested: list[str],
) -> None:
    """Where both changed a key, the later save wins, dicts are merged, and the key is named."""
    assert merge(base, mine, theirs, {}) == (expected, contested)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, True),
        (1, 1.0),
        (0, False),
        ([1], [True]),
        ({1}, {True}),
        (frozenset({0}), frozenset({False})),
        ({"x": 0}, {"x": False}),
        ((1,), (1.0,)),
        ([{"x": [1]}], [{"x": [1.0]}]),
        (0.0, -0.0),
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal("sNaN"), Decimal(1)),
        (NOON, NOON.astimezone(dt.timezone(dt.timedelta(hours=1)))),
    ],
    ids=repr,
)
def test_a_change_of_what_is_equal_is_a_change(before: Any, after: Any) -> None:
    """A value that is equal to Python and stored in another way is not lost in a merge."""
    for mine, theirs in [
        ({"v": after}, {"v": before, "other": 1}),
        ({"v": before, "other": 1}, {"v": after}),
    ]:
        assert exact(merged({"v": before}, mine, theirs)) == exact({"v": after, "other": 1})


def test_not_a_number_is_no_change() -> None:
    """A NaN that nobody touched does not outdo what the other request saved."""
    base, mine = {"v": float("nan")}, {"v": float("nan"), "mine": 1}
    assert merge(base, mine, {"v": 2.0}, {}) == ({"v": 2.0, "mine": 1}, [])


@given(values, values)
@QUICK
def test_the_order_of_keys_is_no_change(one: Any, other: Any) -> None:
    """Who took a key out and put it back does not outdo who changed the value."""
    base, moved = {"v": {"a": one, "b": 1}}, {"v": {"b": 1, "a": one}}
    assert exact(merged(base, moved, {"v": other})) == exact({"v": other})
    assert exact(merged(base, {"v": other}, moved)) == exact({"v": other})


def test_what_cannot_be_stored_is_a_change() -> None:
    """What no store can hold stays where it was put, for the save to refuse it by name."""
    mine = {"v": [object()]}
    assert merge({"v": [1]}, mine, {"v": [2]}, {}) == (mine, ["v"])


def test_the_order_of_keys() -> None:
    """The keys stand in the order of what is stored, and then in that of this request."""
    data = merged({"a": 1}, {"z": 1, "y": 1, "a": 1}, {"c": 1, "b": 1, "a": 1})
    assert list(data) == ["c", "b", "a", "z", "y"]


# -- rules --------------------------------------------------------------------------------


def test_a_rule_decides() -> None:
    """A rule is asked about a key that both changed, and about no other."""
    asked: list[tuple[Any, ...]] = []

    def rule(*values: Any) -> Any:
        asked.append(values)
        return "decided"

    rules = {"a": rule, "b": rule, "c": rule, "d": rule}
    base, mine, theirs = {"a": 1, "b": 1}, {"a": 2, "b": 2, "d": {}}, {"a": 3, "b": 1, "c": 1}
    data, contested = merge(base, mine, theirs, rules)
    assert data == {"a": "decided", "b": 2, "c": 1, "d": {}}
    assert asked == [(1, 2, 3)]
    assert contested == ["a"]


def test_a_rule_decides_about_equal_changes() -> None:
    """Two requests that both count from 1 to 2 make 3: an equal change is another change."""
    both = {"hits": 2}
    assert merge({"hits": 1}, both, both.copy(), {"hits": counter}) == ({"hits": 3}, ["hits"])


def test_a_rule_comes_before_the_merge_of_dicts() -> None:
    """A rule decides for dicts, too, and rules are for top-level keys alone."""
    base, mine, theirs = ({"d": {"n": n}} for n in (1, 2, 3))
    assert merged(base, mine, theirs, {"n": counter}) == {"d": {"n": 2}}
    assert merged(base, mine, theirs, {"d": lambda b, m, t: t}) == {"d": {"n": 3}}


def test_a_rule_may_drop_the_key() -> None:
    """A rule that answers MISSING removes the key."""
    assert merge({"a": 1}, {"a": 2}, {"a": 3}, {"a": lambda *_: MISSING}) == ({}, ["a"])


def test_a_rule_sees_what_is_missing() -> None:
    """A rule is told MISSING for a side without the key, which prints as its name."""
    seen: list[str] = []

    def rule(*values: Any) -> Any:
        seen.extend(map(repr, values))
        return MISSING

    merged({}, {"a": 1}, {"a": 2}, {"a": rule})
    merged({"a": 1}, {}, {"a": 2}, {"a": rule})
    assert seen == ["MISSING", "1", "2", "1", "MISSING", "2"]


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "expected"),
    [
        (10, 11, 13, 14),
        (10, 9, 12, 11),
        (MISSING, 2, 3, 5),
        (10, MISSING, 13, 3),
        (10, 13, MISSING, 3),
        (10, MISSING, MISSING, MISSING),
        (1.5, 2.0, 2.5, 3.0),
    ],
)
def test_counter(base: Any, mine: Any, theirs: Any, expected: Any) -> None:
    """Both requests' increments count, from whatever either of them left."""
    assert counter(base, mine, theirs) == expected


@given(st.integers(), st.integers(), st.integers())
@QUICK
def test_counting_in_any_order(start: int, one: int, other: int) -> None:
    """The order of two increments does not matter."""
    results = [
        merged({"n": start}, {"n": start + a}, {"n": start + b}, {"n": counter})
        for a, b in [(one, other), (other, one)]
    ]
    assert results[0] == results[1]
    if one and other:
        assert results[0] == {"n": start + one + other}


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "expected"),
    [
        ([1], [1, 2], [1, 3], [1, 3, 2]),
        ([1, 2], [2], [1, 2, 3], [2, 3]),
        ([1, 2], [1], [2], []),
        ([1], [1, 2], [1, 2], [1, 2]),
        ([1], [1, 2], [1, 2, 3], [1, 2, 3]),
        ([1], [1, 1], [], [1]),
        ([1], [1, 1], [1, 2], [1, 2, 1]),
        ([1, 1], [1], [1, 1, 2], [1, 2]),
        ([1, 1], [1], [1], [1]),
        (MISSING, [1], [2], [2, 1]),
        ([1], MISSING, [1, 2], [2]),
        ([1], [1, 2], MISSING, [2]),
        ([{"a": 1}], [{"a": 1}, {"b": 2}], [{"c": 3}], [{"c": 3}, {"b": 2}]),
        ({1}, {1, 2}, {1, 3}, {1, 2, 3}),
        ({1, 2}, {2}, {1, 2, 3}, {2, 3}),
        (MISSING, {1}, {2}, {1, 2}),
        ({1}, set(), {1, 2}, {2}),
        ({1}, set(), MISSING, set()),
        ({1}, MISSING, {1, 2}, {2}),
        (frozenset({1}), frozenset({1, 2}), frozenset({1, 3}), frozenset({1, 2, 3})),
        (frozenset({1}), frozenset(), frozenset({1, 3}), frozenset({3})),
    ],
)
def test_union(base: Any, mine: Any, theirs: Any, expected: Any) -> None:
    """What either request added is in and what either removed is out, in the same type."""
    result = union(base, mine, theirs)
    assert exact(result) == exact(expected)
    assert type(result) is type(expected)


@given(*[st.sets(st.integers(0, 9)) for _ in range(3)])
@QUICK
def test_union_of_sets(base: set[int], mine: set[int], theirs: set[int]) -> None:
    """For each member, a request that changed its membership decides."""
    result = union(base, mine, theirs)
    for member in range(10):
        before, ours, other = (member in side for side in (base, mine, theirs))
        assert (member in result) == (other if ours == before else ours)


def test_queues_of_messages() -> None:
    """Messages that either request queued wait, and those that either handed out do not."""
    old, mine, theirs = ["message", "old"], ["message", "mine"], ["message", "theirs"]
    assert queues({"": [old]}, {"": [old, mine]}, {"": [old, theirs]}) == {"": [old, theirs, mine]}
    assert queues({"": [old]}, MISSING, {"": [old, theirs]}) == {"": [theirs]}
    assert queues({"": [old]}, {"": [old], "b": [mine]}, MISSING) == {"b": [mine]}
    assert queues(MISSING, {"a": [mine]}, {"b": [theirs]}) == {"b": [theirs], "a": [mine]}
    assert queues({"": [old]}, {"": [old], "b": []}, {"b": [theirs]}) == {"b": [theirs]}
    assert queues({"": [old], "b": [old]}, {"": [old]}, {"b": [old]}) is MISSING
