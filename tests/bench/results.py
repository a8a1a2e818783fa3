"""What was measured: kept as JSON, so that tables and figures can be checked against it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import machine

OURS = "carpool"
NOISY = 15.0
"""Percent of the machine that others may use before the numbers are called noisy."""


class Measure(NamedTuple):
    """A figure by which the sides are compared."""

    work: str
    figure: str
    column: str
    """Its heading in a table."""
    title: str
    unit: str
    less_is_better: bool = False


MEASURES = (
    Measure("drain", "jobs per s", "drain", "No-op jobs", "jobs per second"),
    Measure("inserts", "jobs per s", "inserts", "Jobs that write a row", "jobs per second"),
    Measure("distant", "jobs per s", "inserts, 1 ms away", "... with 1 ms of network", "jobs per second"),
    Measure("enqueue", "per s", "enqueue", "Sends, one by one", "sends per second"),
    Measure("bulk", "per s by 500", "by 500", "Sends, 500 at once", "sends per second"),
    Measure("bulk", "per s by 10000", "by 10,000", "Sends, 10,000 at once", "sends per second"),
    Measure("latency", "p50 ms", "latency", "Send to start", "ms, each 50 ms", less_is_better=True),
    Measure("sparse", "p50 ms", "latency, idle", "Send to start", "ms, each 2 s", less_is_better=True),
)


class Spread(NamedTuple):
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = [*values]
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Results:
    at: str
    jobs: int
    num_runs: int
    machine: dict[str, Any]
    stores: dict[str, str] = field(default_factory=dict)
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each is: title, store, guarantee, settings, versions."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    """By work and side, the figures of each run."""
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def begin(cls, *, jobs: int, runs: int) -> Results:
        return cls(datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"), jobs, runs, machine.describe())

    @classmethod
    def load(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n")

    def spread(self, work: str, side: str, figure: str) -> Spread | None:
        """Median, least and most; None if it was not measured."""
        values = [run[figure] for run in self.runs.get(work, {}).get(side, []) if figure in run]
        return Spread.of(values) if values else None

    def spread_of(self, measure: Measure, side: str) -> Spread | None:
        return self.spread(measure.work, side, measure.figure)

    def measures(self) -> list[Measure]:
        """Those that were taken, of any side."""
        return [measure for measure in MEASURES if any(self._values(measure, side) for side in self.sides)]

    def ratio(self, measure: Measure, side: str) -> Spread | None:
        """How many times as fast we were, of each round; None without us, or without them."""
        ours, theirs = (self._values(measure, name) for name in (OURS, side))
        if measure.less_is_better:
            ours, theirs = theirs, ours
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=False) if other]
        return Spread.of(ratios) if ratios else None

    def noise(self) -> Spread | None:
        """Percent of the machine that processes other than ours used, of all runs."""
        values = [run["others % of machine"] for sides in self.runs.values() for runs in sides.values() for run in runs]
        return Spread.of(values) if values else None

    def order(self, measure: Measure) -> list[str]:
        """The sides that were measured, the best first."""
        ranked = [(Spread.of(values).median, side) for side in self.sides if (values := self._values(measure, side))]
        return [side for _, side in sorted(ranked, reverse=not measure.less_is_better)]

    def _values(self, measure: Measure, side: str) -> list[float]:
        runs = self.runs.get(measure.work, {}).get(side, [])
        return [run[measure.figure] for run in runs if measure.figure in run]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [*map(_rounded, value)] if isinstance(value, list) else value
