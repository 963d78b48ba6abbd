"""What a change did: the figures of an earlier run beside those of this one.

Times of two runs are of two moments, or two machines. So what is set side by side are the
figures that were ratios, counts and sizes within each run; times only where both runs are of
one machine and one Python, and even then a change counts only beyond both spreads.
"""

from __future__ import annotations

from typing import Any

from benchmarks.report import Table, number

_SAME_MACHINE = ("python", "system", "cpu", "cpus")
_TIMES = ("us", "ms", "1/s")


def tables(before: dict[str, Any], after: dict[str, Any]) -> list[Table]:
    """One table for each program of both runs, of the figures that changed."""
    same = all(
        before["environment"].get(name) == after["environment"].get(name) for name in _SAME_MACHINE
    )
    return [
        _table(name, before["programs"][name], program, same)
        for name, program in after["programs"].items()
        if name in before["programs"]
    ]


def _table(name: str, before: dict[str, Any], after: dict[str, Any], same: bool) -> Table:
    earlier = {_key(figure): figure for figure in before["figures"]}
    rows = []
    for figure in after["figures"]:
        old = earlier.get(_key(figure))
        if old is None or (figure["unit"] in _TIMES and not same):
            continue
        apart = figure["low"] > old["high"] or figure["high"] < old["low"]
        if apart:
            row = [", ".join(_key(figure)), _quote(old), _quote(figure), _change(old, figure)]
            rows.append(row)
    columns = ["beyond the spread of both", "before", "now", "change"]
    more = "" if same else ", without times: another machine"
    if not rows:
        rows = [["nothing", "", "", ""]]
    return Table(f"{name}: what has changed{more}", columns, rows)


def _key(figure: dict[str, Any]) -> tuple[str, str, str]:
    return figure["case"], figure["contestant"], figure["measure"]


def _quote(figure: dict[str, Any]) -> str:
    return f"{number(figure['median'])} {figure['unit']}".strip()


def _change(old: dict[str, Any], new: dict[str, Any]) -> str:
    if not old["median"]:
        return ""
    return f"{100 * (new['median'] / old['median'] - 1):+.0f} %"
