"""Draws the results: a row for each side with what it gives, a column for each measure, spread as a line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.results import NOISY, OURS, Measure, Results, Spread

_OURS, _POSTGRES, _OTHERS, _INK, _FAINT, _LINE = "#1f6f8b", "#a9b8c2", "#dccfae", "#22303a", "#75828b", "#dfe4e7"
_FONT = "DejaVu Sans"  # comes with matplotlib, so that the figure is the same everywhere
_WIDTH, _NAMES, _EDGE = 11.0, 2.62, 0.14
_ROW, _GROUP, _HEAD, _COLUMNS, _FOOT = 0.39, 0.3, 0.82, 0.72, 0.86
_BAR = 0.5
"""Of a column's width the longest bar has; the rest is for its number."""
_CUT = 12.0
"""Times the median side's value, where less is better: a bar that is longer is cut."""
_GOES_ON = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE} "

_GROUPS = (
    "a job's write and its completion commit together",
    "a job that was sent is not lost",
    "jobs can be lost",
)


def draw(results: Results, path: Path) -> None:
    """Write the figure to *path*, in the format that its suffix names."""
    groups = [(heading, sides) for heading, sides in zip(_GROUPS, _grouped(results), strict=True) if sides]
    height = _HEAD + _COLUMNS + sum(_GROUP + _ROW * len(sides) for _, sides in groups) + _FOOT
    with mpl.rc_context({"font.family": _FONT, "svg.fonttype": "path", "svg.hashsalt": "carpool"}):
        figure = Figure(figsize=(_WIDTH, height), facecolor="white")
        page = figure.add_axes((0, 0, 1, 1))
        page.set_xlim(0, _WIDTH)
        page.set_ylim(height, 0)
        page.axis("off")
        page.text(_EDGE, 0.33, "carpool beside the field", size=15, weight="bold", color=_INK, va="center")
        page.text(_EDGE, 0.62, _subtitle(results), size=8, color=_FAINT, va="center")
        _body(page, results, groups)
        page.text(_EDGE, height - 0.1, _caption(results), size=7.0, color=_FAINT, va="bottom", linespacing=1.5)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})


def _grouped(results: Results) -> list[list[str]]:
    """The sides by what they give, each group by its speed."""
    measures = results.measures()
    order = {side: place for place, side in enumerate(results.order(measures[0]))}
    ranked = sorted(
        (side for side in results.sides if not _only_sends(results, side)), key=lambda side: order.get(side, 99)
    )
    groups: list[list[str]] = [[], [], []]
    for side in [*ranked, *(side for side in results.sides if _only_sends(results, side))]:
        groups[_group(results.sides[side]["guarantee"])].append(side)
    return groups


def _group(guarantee: str) -> int:
    if "atomic" in guarantee:
        return 0
    return 1 if guarantee.startswith("durable") else 2


def _only_sends(results: Results, side: str) -> bool:
    return bool(results.sides[side].get("only_sends"))


def _body(page: Any, results: Results, groups: list[tuple[str, list[str]]]) -> None:
    measures = results.measures()
    width = (_WIDTH - _NAMES - _EDGE) / len(measures)
    lefts = [_NAMES + width * number for number in range(len(measures))]
    top = _HEAD + _COLUMNS
    for measure, left in zip(measures, lefts, strict=True):
        title = "\n".join(textwrap.wrap(measure.title, max(8, int(width * 13))))
        page.text(left, top - 0.3, title, size=8.6, weight="bold", color=_INK, va="bottom", linespacing=1.15)
        unit = f"{measure.unit}\nless is better" if measure.less_is_better else measure.unit
        page.text(left, top - 0.27, unit, size=7.0, color=_FAINT, va="top", linespacing=1.15)
    scales = [_scale(results, measure) for measure in measures]
    y = top
    for heading, sides in groups:
        page.plot([_EDGE, _WIDTH - _EDGE], [y + 0.05, y + 0.05], color=_LINE, linewidth=0.9)
        page.text(_EDGE, y + 0.2, heading, size=7.4, color=_FAINT, va="center", style="italic")
        y += _GROUP
        for side in sides:
            _name(page, results, side, y + _ROW / 2)
            for measure, left, scale in zip(measures, lefts, scales, strict=True):
                _cell(page, results, side, measure, (left, y + _ROW / 2, width * _BAR / scale, scale))
            y += _ROW


def _scale(results: Results, measure: Measure) -> float:
    """The value whose bar is the longest."""
    values = sorted(spread.most for side in results.sides if (spread := results.spread_of(measure, side)))
    return min(values[-1], _CUT * values[len(values) // 2]) if measure.less_is_better else values[-1]


def _name(page: Any, results: Results, side: str, y: float) -> None:
    about = results.sides[side]
    ours = side == OURS
    colour = _OURS if ours else _INK
    page.text(_EDGE, y - 0.07, about["title"], size=9.2, color=colour, weight="bold" if ours else "normal", va="center")
    page.text(_EDGE, y + 0.105, about["guarantee"], size=7.0, color=_FAINT, va="center")


def _cell(page: Any, results: Results, side: str, measure: Measure, where: tuple[float, float, float, float]) -> None:
    left, y, per_value, longest = where
    spread = results.spread_of(measure, side)
    if spread is None:
        page.text(left, y, "\N{EN DASH}", size=8, color=_LINE, va="center")
        return
    ours = side == OURS
    colour = _OURS if ours else _POSTGRES if results.sides[side]["store"] == "Postgres" else _OTHERS
    shown = Spread(*(min(value, longest) for value in spread))
    page.barh(y, shown.median * per_value, left=left, height=0.19, color=colour, zorder=2)
    page.plot(
        [left + shown.least * per_value, left + shown.most * per_value], [y, y], color=_INK, linewidth=0.9, zorder=3
    )
    page.text(
        left + max(shown.most, shown.median) * per_value + 0.05,
        y,
        f"{_GOES_ON if shown.most < spread.most else ''}{_number(spread.median)}",
        size=8.2,
        va="center",
        color=_OURS if ours else _INK,
        weight="bold" if ours else "normal",
    )


def _subtitle(results: Results) -> str:
    stores = {about["store"] for about in results.sides.values()} - {"Postgres"}
    others = f", sand on {' and '.join(sorted(stores))}" if stores else ""
    return (
        f"Bar: median of {results.num_runs} interleaved runs; line: least to most. One worker process, ten jobs at once"
        f" unless a name says otherwise. Blue and grey on Postgres{others}."
    )


def _caption(results: Results) -> str:
    about = results.machine
    versions: dict[str, str] = {**results.stores, "Python": about["python"]}
    for side in results.sides.values():
        versions.update(side["versions"])
    noise = results.noise()
    shared = (
        f" Others used {noise.median:.0f} % of it meanwhile ({noise.least:.0f} to {noise.most:.0f} %):"
        " believe the ratios, not the rates."
        if noise is not None and noise.most > NOISY
        else ""
    )
    text = (
        f"{results.at}; {results.jobs:,} jobs a run, sent beforehand; {about['cores']} cores of {about['cpu']}.{shared}"
        " Postgres: fsync and synchronous_commit on; Redis: appendonly, fsync each second."
        " atomic: a job's write and its completion commit together; fenced: a worker taken for dead cannot complete. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
    return "\n".join(textwrap.wrap(text, 200))


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
