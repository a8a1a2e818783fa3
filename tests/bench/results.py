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
RATES = {
    "drain": "jobs per s",
    "inserts": "jobs per s",
    "enqueue": "per s",
    "bulk": "per s by 500",
    "latency": "p50 ms",
}
"""By which figure the sides are compared; of the latency less is better."""


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

    def ratio(self, work: str, side: str) -> Spread | None:
        """How many times as fast we were, of each round; None without us, or without them."""
        ours, theirs = (self._rates(work, name) for name in (OURS, side))
        if work == "latency":
            ours, theirs = theirs, ours
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=False) if other]
        return Spread.of(ratios) if ratios else None

    def noise(self) -> Spread | None:
        """Percent of the machine that processes other than ours used, of all runs."""
        values = [run["others % of machine"] for sides in self.runs.values() for runs in sides.values() for run in runs]
        return Spread.of(values) if values else None

    def order(self, work: str) -> list[str]:
        """The sides that were measured, the best first."""
        ranked = [(spread.median, side) for side in self.runs.get(work, {}) if (spread := self._rate(work, side))]
        return [side for _, side in sorted(ranked, reverse=work != "latency")]

    def _rate(self, work: str, side: str) -> Spread | None:
        return self.spread(work, side, RATES[work]) if work in RATES else None

    def _rates(self, work: str, side: str) -> list[float]:
        figure = RATES.get(work, "")
        return [run[figure] for run in self.runs.get(work, {}).get(side, []) if figure in run]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [*map(_rounded, value)] if isinstance(value, list) else value
