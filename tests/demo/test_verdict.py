"""The demo's verdict: what is wrong is said, and is a failure."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from worker.cli.demo.compare import Comparison, Totals
from worker.cli.demo.processes import DemoFailed, Stopped, WorkerProcess
from worker.cli.demo.verdict import Duplicates, Verdict, show
from worker.cli.demo.watch import Counts

TOTALS = Totals(files=3, bytes=11, digest="ab" * 32)
GOOD = Verdict(
    comparison=Comparison(table=TOTALS, walk=TOTALS, statuses=Counter(ok=2, link=1)),
    duplicates=Duplicates(files=1, wasted=4),
    counts=Counts(files=3, waiting=0, done=7, dead=0, ticks=2),
    samples=[0, 3],
    dead=[],
    seconds=2.0,
    rate=3.5,
    most_sessions=10,
    allowed_sessions=10,
    sessions_left=0,
    stopped=Stopped(drain=0.1, code=0),
    restarts=0,
    log_end="the last line",
)


def test_a_good_run_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(GOOD)
    assert capsys.readouterr().out.endswith("equal: the table holds what the folder holds\n")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"most_sessions": 11}, "11 connections were seen at one moment, 10 are allowed"),
        ({"sessions_left": 1}, "1 connections were left after the worker had stopped"),
        ({"stopped": Stopped(0.1, 3)}, "the worker ended with exit code 3; the end of its log:\nthe last line"),
        ({"counts": GOOD.counts._replace(ticks=0)}, "the two-second schedule did not fire"),
        ({"dead": ["job fingerprint {} is dead: why"]}, "job fingerprint {} is dead: why"),
        (
            {"comparison": replace(GOOD.comparison, walk=TOTALS._replace(files=4), differences=["'x': differs"])},
            "'x': differs",
        ),
    ],
)
def test_each_fault_is_named_and_fails(capsys: pytest.CaptureFixture[str], wrong: dict[str, object], said: str) -> None:
    assert not show(replace(GOOD, **wrong))  # type: ignore[arg-type]  # each value fits its field
    assert f"wrong: {said}" in capsys.readouterr().out


def test_of_many_samples_some_are_shown_and_always_the_last() -> None:
    rows = dict(replace(GOOD, samples=list(range(100))).rows())

    assert rows["its samples"] == "8 21 34 47 60 73 86 99 files"


def test_of_many_differences_the_first_are_shown_and_the_rest_counted() -> None:
    comparison = replace(GOOD.comparison, differences=[f"'{i}': differs" for i in range(1000)])

    faults = replace(GOOD, comparison=comparison).faults()

    assert faults[9:11] == ["'9': differs", "... and 990 more paths that differ"]


@pytest.fixture
def worker(tmp_path: Path) -> WorkerProcess:
    (tmp_path / "log").write_text("\n".join(f"line {i}" for i in range(100)))
    return WorkerProcess("postgresql://nowhere/none", pool_size=3, log=tmp_path / "log")


def test_a_worker_that_ended_by_itself_fails_the_demo_with_the_end_of_its_log(worker: WorkerProcess) -> None:
    with pytest.raises(DemoFailed, match=r"ended with exit code 3; the end of its log:\nline 85(.|\n)*line 99$"):
        worker.restart(3)


def test_the_command_line_is_one_that_a_person_can_type(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    assert worker.command_line.startswith("cd ")
    assert worker.command_line.endswith(
        f"&& {sys.executable} -m worker run --jobs jobs --database-url postgresql://nowhere/none"
        " --pool-size 3 --grace 5"
    )
