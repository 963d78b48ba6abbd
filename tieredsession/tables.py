"""Lists of alike dicts as columns: a shopping cart in a cookie, shorter than any row by row.

Thirty line items name their keys thirty times, and even deflate pays for each. As columns
they are named once, and numbers stand beside their like. Prices, floats of a few decimals,
become whole numbers: a float takes nine bytes that no compression shortens.
"""

from __future__ import annotations

from typing import Any

_MIN_ROWS = 4
_POWERS = (2, 4)  # decimals that are tried
_LIMIT = 2.0**53 / 10**4  # scaled numbers have to be exact as floats, too


def to_columns(rows: list[Any]) -> list[list[Any]] | None:
    """The keys and then the columns of *rows*, if all are dicts with those text keys in order."""
    count = len(rows)
    if count < _MIN_ROWS or list(map(type, rows)).count(dict) != count:
        return None
    keys = tuple(rows[0])
    if list(map(tuple, rows)).count(keys) != count or set(map(type, keys)) != {str}:
        return None
    return [list(keys), *map(list, zip(*map(dict.values, rows), strict=True))]


def to_rows(columns: list[list[Any]]) -> list[dict[str, Any]]:
    """What :func:`to_columns` was given."""
    keys, *values = columns
    if len(keys) != len(values):
        raise ValueError("a table of other columns than it names")
    rows = zip(*values, strict=True)
    # Most tables have few columns, and a dict that is written out is made three times as
    # fast as dict(zip(keys, row)).
    if len(keys) == 2:
        k1, k2 = keys
        return [{k1: a, k2: b} for a, b in rows]
    if len(keys) == 3:
        k1, k2, k3 = keys
        return [{k1: a, k2: b, k3: c} for a, b, c in rows]
    if len(keys) == 4:
        k1, k2, k3, k4 = keys
        return [{k1: a, k2: b, k3: c, k4: d} for a, b, c, d in rows]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def to_scaled(column: list[Any]) -> list[int] | None:
    """The decimals and then the scaled numbers of *column*, if it is floats of few decimals."""
    if type(column[0]) is not float or list(map(type, column)).count(float) != len(column):
        return None
    if not -_LIMIT < sum(map(abs, column)) < _LIMIT or 0.0 in column:
        return None  # too large, not a number, or -0.0, which no whole number is
    for power in _POWERS:
        scaled = [power, *map(round, map((10.0**power).__mul__, column))]
        if to_floats(scaled) == column:
            return scaled
    return None


def to_floats(scaled: list[int]) -> list[float]:
    """What :func:`to_scaled` was given: a correctly rounded division, so exactly that."""
    if scaled[0] not in _POWERS:
        raise ValueError("numbers of so many decimals were never scaled")
    scale = 10 ** scaled[0]
    return [number / scale for number in scaled[1:]]
