"""What the README says about speed is what was measured and kept beside its figure."""

from __future__ import annotations

from pathlib import Path

from tests.bench import report
from tests.bench.results import OURS, Results

ROOT = Path(__file__).parents[2]


def test_the_ratios_in_the_readme_are_those_that_were_measured() -> None:
    results = Results.load(ROOT / "deploy" / "bench.json")

    readme = (ROOT / "README.md").read_text()

    assert report.table(results) in readme
    assert results.at in readme


def test_all_sides_were_measured_in_every_round() -> None:
    results = Results.load(ROOT / "deploy" / "bench.json")

    assert OURS in results.sides
    assert {len(runs) for sides in results.runs.values() for runs in sides.values()} == {results.num_runs}
    assert not results.failed
