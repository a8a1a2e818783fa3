"""Draws the results: a panel for each work, ourselves beside the field, guarantees in words, spread as a line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from tests.bench.results import NOISY, OURS, RATES, Results

_PANELS = {
    "drain": ("Jobs that do nothing", "jobs per second"),
    "inserts": ("Jobs that write one row", "jobs per second"),
    "enqueue": ("Sends, one by one", "sends per second, one sender"),
    "latency": ("From a send to its job's start", "milliseconds, less is better"),
}
_OURS, _POSTGRES, _OTHERS, _INK, _FAINT = "#1f6f8b", "#a9b8c2", "#d9d3c7", "#22303a", "#7b8790"
_FONT = "DejaVu Sans"  # comes with matplotlib, so that the figure is the same everywhere
_WIDTH, _ROW, _AROUND = 9.2, 0.42, 0.72


def draw(results: Results, path: Path) -> None:
    """Write the figure to *path*, in the format that its suffix names."""
    works = [work for work in _PANELS if results.runs.get(work)]
    rows = [len(results.order(work)) for work in works]
    heights = [_ROW * number + _AROUND for number in rows]
    foot, head = 0.95, 0.9
    size = (_WIDTH, sum(heights) + foot + head)
    with mpl.rc_context({"font.family": _FONT, "svg.fonttype": "path", "svg.hashsalt": "carpool", "font.size": 9}):
        figure = Figure(figsize=size, facecolor="white")
        figure.text(
            0.02, 1 - 0.33 / size[1], "carpool beside the field", size=15, weight="bold", color=_INK, va="center"
        )
        figure.text(0.02, 1 - 0.62 / size[1], _subtitle(results), size=8.5, color=_FAINT, va="center")
        below = size[1] - head
        for work, number, height in zip(works, rows, heights, strict=True):
            below -= height
            box = (0.30, (below + 0.28) / size[1], 0.67, _ROW * number / size[1])
            _panel(figure.add_axes(box), results, work)
        figure.text(0.02, 0.12 / size[1], _caption(results), size=7.3, color=_FAINT, va="bottom", linespacing=1.45)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})


def _panel(axes: Any, results: Results, work: str) -> None:
    sides = results.order(work)
    title, unit = _PANELS[work]
    spreads = [spread for side in sides if (spread := results.spread(work, side, RATES[work])) is not None]
    widest = max(spread.most for spread in spreads)
    for row, (side, spread) in enumerate(zip(sides, spreads, strict=True)):
        is_ours = side == OURS
        about = results.sides[side]
        colour = _OURS if is_ours else _POSTGRES if about["store"] == "Postgres" else _OTHERS
        axes.barh(row, spread.median, height=0.66, color=colour, zorder=2)
        axes.hlines(row, spread.least, spread.most, color=_INK, linewidth=1.1, zorder=3)
        axes.vlines([spread.least, spread.most], row - 0.13, row + 0.13, color=_INK, linewidth=1.1, zorder=3)
        label = axes.annotate(
            _number(spread.median),
            (max(spread.median, spread.most), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=_INK,
            weight="bold" if is_ours else "normal",
        )
        if (ratio := results.ratio(work, side)) is not None and not is_ours:
            axes.annotate(
                f"carpool {ratio.median:.1f} x",
                (1, 0.5),
                xycoords=label,
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                size=7.5,
                color=_FAINT,
            )
        name = {"transform": axes.get_yaxis_transform(), "ha": "right", "clip_on": False}
        axes.text(-0.015, row - 0.17, about["title"], va="center", size=9, color=_OURS if is_ours else _INK,
                  weight="bold" if is_ours else "normal", **name)  # fmt: skip
        axes.text(-0.015, row + 0.22, about["guarantee"], va="center", size=6.8, color=_FAINT, **name)
    axes.set_title(f"{title}", loc="left", size=10.5, weight="bold", color=_INK, pad=5)
    axes.set_title(unit, loc="right", size=8, color=_FAINT, pad=5)
    axes.set_ylim(len(sides) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.27)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelsize=7.5, labelcolor=_FAINT)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="x", color="#eceff1", zorder=0)
    for edge in axes.spines.values():
        edge.set_visible(False)


def _subtitle(results: Results) -> str:
    return (
        f"Bar: median of {results.num_runs} interleaved runs; line: least to most; one worker process,"
        " ten jobs at once; blue and grey on Postgres, sand on Redis"
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
        " atomic: a job's write and its completion commit together; fenced: a worker taken for dead cannot complete."
        " PgQueuer runs as many tasks at once as it likes where it says so. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
    return "\n".join(textwrap.wrap(text, 165))


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
