"""What the faults have shown, for people and for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.faults.fleet import POOL_SIZE
from tests.chaos.faults.watching import Weight

_HEADING = ("fault", "times", "p50 s", "max s")


@dataclass
class Report:
    """A run, and what was wrong with it, by name."""

    seed: int
    num_workers: int
    seconds: float
    felt: Mapping[str, list[float]]
    """For each fault how long, after it was over, until every worker that it had hit had done a job again."""
    most_sessions: int = 0
    num_looks: int = 0
    weights: list[Weight] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    logged: dict[str, int] = field(default_factory=dict)
    """Events of level warning or worse in the workers' logs."""
    wrong: dict[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not any(self.wrong.values())

    def rows(self) -> Iterable[tuple[str, int, float, float]]:
        for name, felt in self.felt.items():
            yield name, len(felt), statistics.median(felt), max(felt)

    def text(self) -> str:
        """For a terminal."""
        lines = [f"{_HEADING[0]:<36}{_HEADING[1]:>6}{_HEADING[2]:>8}{_HEADING[3]:>8}   from its end until all work"]
        lines += [f"{name:<36}{times:>6}{p50:>8.2f}{most:>8.2f}" for name, times, p50, most in self.rows()]
        lines.append(f"most sessions of a worker: {self.most_sessions} of {POOL_SIZE}, in {self.num_looks} looks")
        lines += [
            f"memory of worker {one.worker}, {one.lived:.0f} s: {one.early:.1f} MiB early, {one.late:.1f} late,"
            f" {one.most:.1f} at most"
            for one in self.weights
        ]
        lines += [f"{name}: {count}" for name, count in (*self.counts.items(), *self.wrong.items())]
        lines.append(f"in the logs: {self.logged}")
        lines.append("nothing lost, nothing doubled" if self.holds else "something is wrong")
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table of the README."""
        lines = ["| fault | times | p50 | max |", "| --- | --- | --- | --- |"]
        lines += [f"| {name} | {times} | {p50:.2f} s | {most:.2f} s |" for name, times, p50, most in self.rows()]
        return "\n".join(lines) + "\n"

    def as_json(self) -> str:
        told: dict[str, Any] = {
            "seed": self.seed,
            "workers": self.num_workers,
            "seconds": round(self.seconds, 1),
            "pool_size": POOL_SIZE,
            "faults": [
                {"fault": name, "times": times, "p50": round(p50, 3), "max": round(most, 3)}
                for name, times, p50, most in self.rows()
            ],
            "most_sessions": self.most_sessions,
            "looks": self.num_looks,
            "memory": [one._asdict() for one in self.weights],
            "counts": self.counts,
            "logged": self.logged,
            "wrong": self.wrong,
            "holds": self.holds,
        }
        return json.dumps(told, indent=1) + "\n"
