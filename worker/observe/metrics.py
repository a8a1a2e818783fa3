"""Numbers in Prometheus' text format: counters and histograms that are kept here, samples that are read elsewhere."""

from __future__ import annotations

import math
import operator
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a no-op to a job that runs for an hour.
_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0)


class Sample(NamedTuple):
    """One line: a value under labels, and what the line's name has beyond the family's."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Family(NamedTuple):
    """
    A metric: its name, type, help, and samples.

    Args:
        together: What several processes' samples with the same labels make: their "sum", the "min" or the "max".
    """

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]
    together: str = "sum"

    def telling(self) -> list[Any]:
        """As JSON can carry it."""
        return [self.name, self.kind, self.help, [list(sample) for sample in self.samples], self.together]

    @classmethod
    def told(cls, told: list[Any]) -> Family:
        """The other way."""
        name, kind, text, samples, together = told
        return cls(name, kind, text, [Sample(*sample) for sample in samples], together)


class Counter:
    """A number that only grows, for each combination of *labels*; safe from any thread."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], float] = {}

    def add(self, *values: str, amount: float = 1.0) -> None:
        """Count *amount* more under the label values *values*."""
        with self._lock:
            self._counts[values] = self._counts.get(values, 0.0) + amount

    def family(self) -> Family:
        with self._lock:
            counts = sorted(self._counts.items())
        samples = [Sample(dict(zip(self._labels, values, strict=True)), count) for values, count in counts]
        return Family(self._name, "counter", self._help, samples)


class Histogram:
    """How often values were at most so large, for each combination of *labels*; safe from any thread."""

    def __init__(self, name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = _BUCKETS) -> None:
        self._name, self._help, self._labels, self._buckets = name, help_text, labels, buckets
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count *value* under the label values *values*."""
        place = bisect_left(self._buckets, value)
        with self._lock:
            if (counts := self._counts.get(values)) is None:
                counts = self._counts[values] = [0] * (len(self._buckets) + 1)
                self._sums[values] = 0.0
            counts[place] += 1
            self._sums[values] += value

    def family(self) -> Family:
        with self._lock:
            found = sorted((values, list(counts), self._sums[values]) for values, counts in self._counts.items())
        samples = []
        for values, counts, total in found:
            labels = dict(zip(self._labels, values, strict=True))
            below = 0
            for bound, count in zip((*self._buckets, math.inf), counts, strict=True):
                below += count
                samples.append(Sample({**labels, "le": _number(bound)}, below, "_bucket"))
            samples += [Sample(labels, total, "_sum"), Sample(labels, below, "_count")]
        return Family(self._name, "histogram", self._help, samples)


_TOGETHER: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "min": min, "max": max}


def together(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """The families of several processes as those of one."""
    kept: dict[str, Family] = {}
    values: dict[str, dict[tuple[tuple[tuple[str, str], ...], str], float]] = {}
    for families in processes:
        for family in families:
            kept.setdefault(family.name, family)
            combine = _TOGETHER[family.together]
            of_family = values.setdefault(family.name, {})
            for labels, value, suffix in family.samples:
                key = tuple(labels.items()), suffix
                of_family[key] = combine(of_family[key], value) if key in of_family else value
    return [
        family._replace(
            samples=[Sample(dict(labels), value, suffix) for (labels, suffix), value in values[name].items()]
        )
        for name, family in kept.items()
    ]


def only_growing(families: Iterable[Family]) -> list[Family]:
    """Those of *families* that must not shrink when their process ends."""
    return [family for family in families if family.kind in ("counter", "histogram")]


def render(families: Iterable[Family]) -> str:
    """*families* as a page for Prometheus."""
    lines = []
    for family in families:
        lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
        for sample in family.samples:
            labels = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in sample.labels.items())
            shown = f"{{{labels}}}" if labels else ""
            lines.append(f"{family.name}{sample.suffix}{shown} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
