"""The pictures, drawn from the JSON of a run: SVG for pages, PNG for the rest.

Ours is blue and everybody else grey; what failed is vermilion (Okabe and Ito's colours, which
the colour-blind can tell apart). Bars end at medians and whiskers at the quartiles.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.report import number

matplotlib.use("agg")
plt: Any = importlib.import_module("matplotlib.pyplot")
ticker: Any = importlib.import_module("matplotlib.ticker")

BLUE, GREY, VERMILION, ORANGE, GREEN, SKY, YELLOW, PURPLE = (
    *("#0072B2", "#9A9A9A", "#D55E00", "#E69F00"),
    *("#009E73", "#56B4E9", "#F0E442", "#CC79A7"),
)
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "svg.hashsalt": "tieredsession",
    "svg.fonttype": "none",
}
_FORMATS = ("svg", "png")

_MAX_COOKIE = 4096

Figure = dict[str, Any]
Figures = dict[tuple[str, str, str], Figure]
"""The figures of a program, by case, contestant and measure."""


def draw(document: dict[str, Any], folder: Path) -> list[str]:
    """Draw what *document* has the figures for; the names of the files."""
    where = document["environment"]
    note = f"{where['python']}, {where['cpus']} x {where['cpu']}"
    if document["quick"]:
        note += "; --quick: a first look, not a result"
    made = []
    with plt.rc_context(_STYLE):
        for name, (program, picture) in PICTURES.items():
            if program not in document["programs"]:
                continue
            found = document["programs"][program]
            figures = {(f["case"], f["contestant"], f["measure"]): f for f in found["figures"]}
            drawn = picture(figures, found)
            if drawn is None:
                continue
            drawn.text(0.01, 0.005, f"python -m benchmarks {program}  |  {note}", fontsize=7)
            for kind in _FORMATS:
                metadata = {"Date": None} if kind == "svg" else {"Software": None}
                drawn.savefig(folder / f"{name}.{kind}", dpi=130, metadata=metadata)
                made.append(f"{name}.{kind}")
            plt.close(drawn)
    return made


# -- what is used by several ------------------------------------------------------------


def _is_ours(name: str) -> bool:
    return "ours" in name


def _colour(name: str) -> str:
    return BLUE if _is_ours(name) else GREY


def _short(name: str) -> str:
    return name.replace("Werkzeug, ", "").replace(", ", ": ", 1) if ", " in name else name


def _bars(axes: Any, figures: list[tuple[str, Figure]], unit: str, *, log: bool) -> None:
    """Horizontal bars from the first at the top, each with its median written at its end."""
    places = list(range(len(figures)))[::-1]
    medians = [figure["median"] for _, figure in figures]
    lows = [max(0.0, f["median"] - f["low"]) for _, f in figures]
    highs = [max(0.0, f["high"] - f["median"]) for _, f in figures]
    axes.barh(
        places,
        medians,
        xerr=[lows, highs],
        color=[_colour(name) for name, _ in figures],
        error_kw={"ecolor": "#333333", "capsize": 2, "linewidth": 0.8},
    )
    if log:
        axes.set_xscale("log")
    for place, median, high in zip(places, medians, highs, strict=True):
        axes.annotate(
            number(median),
            (max(median, 0) + high, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(places, [name for name, _ in figures], fontsize=7.5)
    for label, (name, _) in zip(axes.get_yticklabels(), figures, strict=True):
        if _is_ours(name):
            label.set_color(BLUE)
            label.set_fontweight("bold")
    axes.set_xlabel(unit)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.margins(x=0.12, y=0.02)


def _subplots(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    figure.suptitle(title, fontsize=11)
    return figure, axes


# -- requests ---------------------------------------------------------------------------


def _requests(
    figures: Figures, kinds: tuple[str, ...], measure: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, list[tuple[str, Figure]]]]:
    for kind in kinds:
        rows = [
            (name, figure)
            for (case, name, what), figure in figures.items()
            if case == kind and what == measure and wanted(name)
        ]
        # Frameworks together, and in each the cheapest first.
        frameworks = list(dict.fromkeys(name.partition(",")[0] for name, _ in rows))
        rows.sort(key=lambda r: (frameworks.index(r[0].partition(",")[0]), r[1]["median"]))
        if rows:
            yield kind, rows


def _has_servers(figures: Figures, name: str) -> bool:
    return any(who == name and what == "cache calls" for _, who, what in figures)


def requests_cookie(figures: Figures, program: dict[str, Any]) -> Any:
    """Sites without a server: processor time."""
    kinds = ("returning read, typical", "counter, typical")

    def wanted(name: str) -> bool:
        if name.startswith("WSGI") or "SQLite" in name or "memory" in name:
            return False
        return not _has_servers(figures, name)

    panels = list(_requests(figures, kinds, "beyond the floor", wanted))
    if not panels:
        return None
    title = "Sessions in a cookie: what one costs beyond the same framework without a session"
    height = 1.4 + 0.23 * max(len(rows) for _, rows in panels)
    figure, axes = _subplots(1, len(panels), 11, height, title)
    for panel, (kind, rows) in zip(axes[0], panels, strict=True):
        _bars(panel, rows, "microseconds of processor time a request", log=False)
        panel.set_title(kind)
    return figure


def requests_servers(figures: Figures, program: dict[str, Any]) -> Any:
    """Sites with servers: the wall's time."""
    kinds = ("returning read, typical", "counter, typical")

    def wanted(name: str) -> bool:
        return _has_servers(figures, name) or ("SQLite" in name and "memory" not in name)

    panels = list(_requests(figures, kinds, "wall beyond the floor", wanted))
    if not panels:
        return None
    title = "Sessions on servers (loopback): beyond the same framework without a session"
    height = 1.4 + 0.23 * max(len(rows) for _, rows in panels)
    figure, axes = _subplots(1, len(panels), 12, height, title)
    for panel, (kind, rows) in zip(axes[0], panels, strict=True):
        _bars(panel, rows, "microseconds a request (logarithmic)", log=True)
        panel.set_title(kind)
    return figure


# -- codec ------------------------------------------------------------------------------


def codec(figures: Figures, program: dict[str, Any]) -> Any:
    """Time against bytes: what is nearer to the corner is better at both."""
    payloads = ("typical", "cart", "large")
    title = "Session data to a cookie and back: time against size (lower left is better)"
    figure, axes = _subplots(1, len(payloads), 13, 4.6, title)
    for panel, payload in zip(axes[0], payloads, strict=True):
        points = []
        for (case, name, what), found in figures.items():
            size = figures.get((case, name, "bytes"))
            if case == payload and what == "encode + decode" and size is not None:
                points.append((size["median"], found, name))
        for size, found, name in points:
            panel.errorbar(
                size,
                found["median"],
                yerr=[[found["median"] - found["low"]], [found["high"] - found["median"]]],
                fmt="o" if _is_ours(name) else "s",
                color=_colour(name),
                markersize=6,
                capsize=2,
                elinewidth=0.8,
            )
        panel.set_yscale("log")
        for axis_ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            axis_ticks(ticker.FuncFormatter(_plain_number))
        panel.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
        panel.margins(x=0.25, y=0.12)
        _label_points(panel, [(size, found["median"], name) for size, found, name in points])
        if any(size > _MAX_COOKIE for size, *_ in points):
            panel.axvline(_MAX_COOKIE, color=VERMILION, linewidth=0.8, linestyle=":")
            panel.text(
                _MAX_COOKIE,
                1.0,
                " browsers keep no more",
                fontsize=7,
                color=VERMILION,
                rotation=90,
                va="top",
                transform=panel.get_xaxis_transform(),
            )
        panel.set_title(payload)
        panel.set_xlabel("bytes of the cookie's value")
        panel.set_ylabel("microseconds, encode + decode (logarithmic)")
        panel.grid(color="#DDDDDD", linewidth=0.6)
    return figure


def _plain_number(value: float, _: object) -> str:
    return f"{value:g}"


def _label_points(panel: Any, points: list[tuple[float, float, str]]) -> None:
    """Names beside the points, moved apart where they would lie upon each other."""
    last: dict[bool, float] = {}
    to_pixels = panel.transData.transform
    middle = (min(x for x, *_ in points) + max(x for x, *_ in points)) / 2
    for x, y, name in sorted(points, key=lambda point: point[1]):
        right = x < middle
        _, pixel = to_pixels((x, y))
        place = max(pixel, last.get(right, -1e9) + 11)
        last[right] = place
        panel.annotate(
            name,
            (x, y),
            xytext=(7 if right else -7, (place - pixel) * 0.72),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=7.5,
            color=BLUE if _is_ours(name) else "#444444",
            fontweight="bold" if _is_ours(name) else "normal",
        )


# -- scale ------------------------------------------------------------------------------

_BLUES = (BLUE, SKY, "#003B5C", "#2F7FFF")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":")
_OTHERS = (ORANGE, GREEN, PURPLE, "#7A7A7A", VERMILION, "#5A4A00")


def _lines(panel: Any, series: dict[str, list[tuple[float, Figure]]]) -> None:
    ours = others = 0
    for number_, (name, points) in enumerate(series.items()):
        if _is_ours(name):
            colour, style = _BLUES[ours % len(_BLUES)], "-"
            ours += 1
        else:
            colour, style = _OTHERS[others % len(_OTHERS)], _LINES[1 + others % 3]
            others += 1
        medians = [figure["median"] for _, figure in points]
        panel.errorbar(
            [x for x, _ in points],
            medians,
            yerr=[
                [figure["median"] - figure["low"] for _, figure in points],
                [figure["high"] - figure["median"] for _, figure in points],
            ],
            label=name.replace("Werkzeug, ", ""),
            color=colour,
            linestyle=style,
            linewidth=2.2 if _is_ours(name) else 1.2,
            marker=_MARKS[number_ % len(_MARKS)],
            markersize=5,
            capsize=2,
            elinewidth=0.7,
        )
    panel.grid(color="#DDDDDD", linewidth=0.6)


def _by_amount(figures: Figures, what: str, kind: str, measure: str) -> dict[str, Any]:
    series: dict[str, list[tuple[float, Figure]]] = {}
    for (case, name, measured), figure in figures.items():
        if case.startswith(f"{what}: ") and case.endswith(kind) and measured == measure:
            amount = case.removeprefix(f"{what}: ").partition(",")[0]
            series.setdefault(name, []).append((float(amount), figure))
    return series


def threads(figures: Figures, program: dict[str, Any]) -> Any:
    """Requests per second by threads."""
    series = _by_amount(figures, "threads", "", "requests per second")
    if not series:
        return None
    title = "Threads of one process, three reads for each change: requests per second"
    figure, axes = _subplots(1, 1, 9, 5, title)
    panel = axes[0][0]
    _lines(panel, series)
    ticks = sorted({x for points in series.values() for x, _ in points})
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_ylim(bottom=0)
    panel.set_xlabel("threads")
    panel.set_ylabel("requests per second (clients and servers share the machine)")
    panel.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def latency(figures: Figures, program: dict[str, Any]) -> Any:
    """Requests over connections as long as those of a data centre."""
    kinds = ("returning read", "counter", "login")
    title = "Round trips of a data centre (0.5 ms to a cache, 8 ms to Datastore, by a proxy)"
    panels = []
    for kind in kinds:
        rows = [
            (name, figure)
            for (case, name, what), figure in figures.items()
            if case == f"latency: {kind}" and what == "wall"
        ]
        if rows:
            panels.append((kind, sorted(rows, key=lambda row: row[1]["median"])))
    if not panels:
        return None
    figure, axes = _subplots(len(panels), 1, 9, 1 + 1.9 * len(panels), title)
    most = max(row[1]["high"] for _, rows in panels for row in rows)
    for (panel,), (kind, rows) in zip(axes, panels, strict=True):
        _bars(panel, rows, "milliseconds a request", log=False)
        panel.set_xlim(0, most * 1.12)
        panel.set_title(kind, loc="left")
    return figure


def growth(figures: Figures, program: dict[str, Any]) -> Any:
    """Bytes in a session, sessions in a store."""
    panels = [
        ("bytes", "returning read", "bytes in the session"),
        ("bytes", "counter", "bytes in the session"),
        ("sessions", "returning read", "sessions in SQLite"),
        ("sessions", "counter", "sessions in SQLite"),
    ]
    there = [(p, s) for p in panels if (s := _by_amount(figures, p[0], p[1], "wall"))]
    if not there:
        return None
    figure, axes = _subplots(2, 2, 11, 8, "Growing sessions and growing stores: time of a request")
    for panel, ((_, kind, label), series) in zip(axes.flat, there, strict=False):
        _lines(panel, series)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(f"{label} (logarithmic)")
        panel.set_ylabel("microseconds (logarithmic)")
        panel.set_title(kind)
        panel.legend(fontsize=7, frameon=False)
    return figure


# -- faults, purge, cost ----------------------------------------------------------------


def faults(figures: Figures, program: dict[str, Any]) -> Any:
    """Each request of a visitor, as a point, while memcached hangs and comes back."""
    series = program["series"]
    if not series:
        return None
    title = "A cache that hangs and comes back: each point is a request of one visitor"
    figure, axes = _subplots(len(series), 1, 9, 0.9 + 1.25 * len(series), title)
    end = max(at[-1] for found in series.values() if (at := found["at"]))
    for (panel,), (name, found) in zip(axes, series.items(), strict=True):
        during = [at for at, phase in zip(found["at"], found["phase"], strict=True) if phase == 1]
        after = [at for at, phase in zip(found["at"], found["phase"], strict=True) if phase == 2]
        if during and after:
            panel.axvspan(during[0], after[0], color="#F3E3C3", zorder=0)
        for what, colour, mark, label in (
            ("ok", _colour(name), ".", "answered"),
            ("failed", VERMILION, "x", "failed"),
            ("forgotten", PURPLE, "^", "taken for a new visitor"),
        ):
            points = [
                (at, took * 1000)
                for at, took, failed, forgotten in zip(
                    found["at"], found["took"], found["failed"], found["forgotten"], strict=True
                )
                if what == ("failed" if failed else "forgotten" if forgotten else "ok")
            ]
            if points or what == "ok":
                panel.plot(
                    *(zip(*points, strict=True) if points else ([], [])),
                    mark,
                    color=colour,
                    markersize=4,
                    label=label,
                    rasterized=True,  # or the SVG would hold each of some thousands
                )
        panel.set_yscale("log")
        panel.set_ylim(0.1, 2000)
        panel.set_xlim(0, end)
        panel.set_title(
            name.replace("Werkzeug, ", ""),
            loc="left",
            fontsize=8.5,
            color=BLUE if _is_ours(name) else "black",
            fontweight="bold" if _is_ours(name) else "normal",
        )
        panel.set_ylabel("ms (log)")
        panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes[-1][0].set_xlabel("seconds; memcached hangs in the shaded part; clients wait 100 ms")
    return figure


def purge(figures: Figures, program: dict[str, Any]) -> Any:
    """Rows per second, and memory."""
    measures = {
        "rows per second": "expired sessions deleted a second",
        "processor": "microseconds of processor a row",
        "memory": "MB of memory more at most",
    }
    cases = list(dict.fromkeys(case for case, *_ in figures))
    if not cases:
        return None
    title = "Deleting expired sessions from Datastore (the emulator)"
    figure, axes = _subplots(len(measures), len(cases), 5 + 4 * len(cases), 5.2, title)
    for row, (measure, label) in zip(axes, measures.items(), strict=True):
        for panel, case in zip(row, cases, strict=True):
            bars = [
                (name, found)
                for (where, name, what), found in figures.items()
                if where == case and what == measure
            ]
            _bars(panel, bars, label, log=False)
            panel.set_title(case, fontsize=9)
    return figure


def cost(figures: Figures, program: dict[str, Any]) -> Any:
    """Dollars for a million requests."""
    parts = {"reads": SKY, "writes": ORANGE, "deletes": PURPLE, "cache calls": GREEN}
    names = [name for (case, name, what) in figures if what == "total"]
    if not names:
        return None
    title = "Sessions of a million requests: US dollars, by counted calls and assumed prices"
    figure, axes = _subplots(1, 1, 9, 1.5 + 0.42 * len(names), title)
    panel = axes[0][0]
    places = list(range(len(names)))[::-1]
    left = [0.0] * len(names)
    for (part, colour), hatch in zip(parts.items(), ("", "//", "xx", ".."), strict=True):
        values = [figures["a million requests", name, part]["median"] for name in names]
        panel.barh(
            places, values, left=left, color=colour, label=part, hatch=hatch, edgecolor="white"
        )
        left = [so_far + value for so_far, value in zip(left, values, strict=True)]
    for place, total in zip(places, left, strict=True):
        panel.annotate(
            number(total), (total, place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    panel.set_yticks(places, [name.replace("Werkzeug, ", "") for name in names])
    for label, name in zip(panel.get_yticklabels(), names, strict=True):
        if _is_ours(name):
            label.set_color(BLUE)
            label.set_fontweight("bold")
    panel.margins(x=0.1)
    panel.set_xlabel("US dollars (benchmarks/assumptions.json)")
    panel.legend(fontsize=8, frameon=False)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return figure


PICTURES: dict[str, tuple[str, Callable[[Figures, dict[str, Any]], Any]]] = {
    "codec": ("codec", codec),
    "requests-cookie": ("requests", requests_cookie),
    "requests-servers": ("requests", requests_servers),
    "threads": ("scale", threads),
    "latency": ("scale", latency),
    "growth": ("scale", growth),
    "purge": ("purge", purge),
    "faults": ("faults", faults),
    "cost": ("cost", cost),
}
"""Each picture by the name of its files, with the program whose figures it shows."""
