"""The results as text: ratios first, then every figure with its spread, and what to think of the machine."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.results import MEASURES, NOISY, OURS, Results, Spread


def text(results: Results, meanings: dict[str, str]) -> str:
    """
    Args:
        meanings: A sentence on each work.
    """
    return "\n".join([*_head(results), *_ratios(results), *_works(results, meanings), *_missing(results)])


def table(results: Results) -> str:
    """The ratios as a table of Markdown, with what each side gives, as it stands in the README."""
    measures = results.measures()
    lines = [
        f"| beside | gives | {' | '.join(each.column for each in measures)} |",
        "| --- " * (2 + len(measures)) + "|",
    ]
    for side, about in results.sides.items():
        if side != OURS:
            ratios = " | ".join(_short(results.ratio(measure, side)) for measure in measures)
            lines.append(f"| {about['title']} | {about['guarantee']} | {ratios} |")
    return "\n".join(lines)


def _head(results: Results) -> Iterator[str]:
    about = results.machine
    stores = ", ".join(f"{name} {version}" for name, version in results.stores.items())
    yield f"{results.at}, {results.num_runs} runs of {results.jobs} jobs, {about['cores']} x {about['cpu']},"
    yield f"Python {about['python']}, {stores}; medians, with the least and the most in brackets"
    if (noise := results.noise()) is not None:
        yield f"other processes used {noise.median:.0f} % of the machine ({noise.least:.0f} to {noise.most:.0f})"
        if noise.most > NOISY:
            yield "WARNING: the machine was noisy. Believe the ratios, as the runs were interleaved; not the rates."
    for name, side in results.sides.items():
        versions = ", ".join(f"{package} {version}" for package, version in side["versions"].items())
        yield f"  {name:22} {side['guarantee']}; {side['settings']} ({versions})"


def _ratios(results: Results) -> Iterator[str]:
    others = [side for side in results.sides if side != OURS]
    measures = results.measures()
    if OURS not in results.sides or not others or not measures:
        return
    yield f"\nhow many times as fast as each is {OURS}\n{'':24}" + "".join(f"{each.column:>22}" for each in measures)
    for side in others:
        yield f"  {side:22}" + "".join(f"{_times(results.ratio(measure, side)):>22}" for measure in measures)


def _works(results: Results, meanings: dict[str, str]) -> Iterator[str]:
    for work, sides in results.runs.items():
        yield f"\n{work}: {meanings[work]}"
        measure = next((measure for measure in MEASURES if measure.work == work), None)
        for side in sides if measure is None else results.order(measure):
            yield f"  {side}"
            for figure in sides[side][0]:
                if (spread := results.spread(work, side, figure)) is not None:
                    yield f"    {figure:24} {spread.median:12,.3f}  ({spread.least:,.3f} to {spread.most:,.3f})"


def _missing(results: Results) -> Iterator[str]:
    for name, reason in results.left_out.items():
        yield f"\nleft out: {name}, {reason}"
    for work, sides in results.failed.items():
        for name, reason in sides.items():
            yield f"\nfailed: {name} at {work}, {reason}"


def _short(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    median, least, most = (f"{value:.1f}" if value < 20 else f"{value:.0f}" for value in spread)
    return f"{median} ({least}-{most})"


def _times(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.1f} ({spread.least:.1f} to {spread.most:.1f})"
