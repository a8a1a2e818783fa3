"""`worker schedules next` and `check`: what is to come, without a database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Worker
from worker.schedule import declaration

JOBS = """
import dramatiq
from worker import cron, every

@cron("30 2 * * *", tz="America/New_York", name="{prefix} nightly")
@every(hours=1, name="{prefix} hourly")
@dramatiq.actor(actor_name="{prefix}_purge")
def purge(): ...
"""


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declaration, "_registry", {})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a jobs module with two schedules, 'NAME nightly' and 'NAME hourly'."""
    name = f"sample_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(JOBS.format(prefix=name))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_json_of_next_is_a_list_of_ticks_strictly_after_the_start(worker: Worker) -> None:
    options = ["--tz", "America/New_York", "--from", "2026-03-07T05:00:00Z", "--count", "2", "--json"]

    ended = worker("schedules", "next", "--cron", "0 0 * * *", *options)

    assert [(tick["utc"], tick["local"]) for tick in json.loads(ended.stdout)] == [
        ("2026-03-08T05:00:00Z", "2026-03-08T00:00:00-05:00"),
        ("2026-03-09T04:00:00Z", "2026-03-09T00:00:00-04:00"),
    ]
    assert (ended.exit_code, ended.stderr) == (0, "")


def test_next_shows_local_time_utc_and_what_the_clock_does(worker: Worker) -> None:
    ended = worker(
        "schedules", "next", "--cron", "30 2 * * *", "--tz", "America/New_York", "--from", "2026-03-08", "--count", "1"
    )

    assert ended.stdout.splitlines()[1].split("  ") == [
        "2026-03-08T03:30:00-04:00",
        "2026-03-08T07:30:00Z",
        "moved: the clock skips 02:30",
    ]


@pytest.mark.parametrize(
    ("options", "ticks"),
    [
        (["--gap", "skip"], ["2026-03-09T06:30:00Z"]),
        (["--gap", "run"], ["2026-03-08T07:30:00Z"]),
    ],
)
def test_next_takes_the_policies_of_a_text(worker: Worker, options: list[str], ticks: list[str]) -> None:
    zone = ["--tz", "America/New_York", "--from", "2026-03-08", "--count", "1", "--json"]

    ended = worker("schedules", "next", "--cron", "30 2 * * *", *zone, *options)

    assert [tick["utc"] for tick in json.loads(ended.stdout)] == ticks


def test_next_takes_seconds_when_asked_for(worker: Worker) -> None:
    ended = worker("schedules", "next", "--cron", "*/30 0 0 * * *", "--seconds", "--from", "2026-01-01", "--json")

    assert [tick["utc"] for tick in json.loads(ended.stdout)][:2] == ["2026-01-01T00:00:30Z", "2026-01-02T00:00:00Z"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cron", "0 25 * * *"], "field 2 (hour), '25': 25 is out of range"),
        (["--cron", "0 0 * * *", "--tz", "Europe/Berln"], "did you mean 'Europe/Berlin'?"),
        (["--cron", "0 0 * * *", "--gap", "move"], "gap='move' is unknown, expected one of run, skip"),
        (["--cron", "0 0 * * *", "--from", "soon"], "'soon' is no time, expected such as 2026-03-08T05:00:00Z"),
        (["nightly", "--cron", "0 0 * * *"], "give a NAME or --cron, not both"),
    ],
)
def test_what_next_cannot_work_with_is_refused_in_a_line(worker: Worker, options: list[str], said: str) -> None:
    ended = worker("schedules", "next", *options)

    assert ended.exit_code == 2
    assert said in ended.stderr


def test_next_of_a_name_looks_into_the_jobs_modules(worker: Worker, module: str) -> None:
    ended = worker(
        "schedules", "next", f"{module} nightly", "--jobs", module, "--from", "2026-03-09", "--count", "1", "--json"
    )

    (tick,) = json.loads(ended.stdout)
    assert (tick["schedule"], tick["utc"]) == (f"{module} nightly", "2026-03-09T06:30:00Z")


def test_next_of_all_schedules_is_in_the_order_of_time(worker: Worker, module: str) -> None:
    ended = worker("schedules", "next", "--jobs", module, "--from", "2026-03-09T05:15Z", "--count", "3", "--json")

    assert [(tick["utc"][11:16], tick["schedule"].split()[1]) for tick in json.loads(ended.stdout)] == [
        ("06:00", "hourly"),
        ("06:30", "nightly"),
        ("07:00", "hourly"),
    ]


def test_next_of_an_unknown_name_says_where_it_looked(worker: Worker, module: str) -> None:
    ended = worker("schedules", "next", "nobody", "--jobs", module)

    assert ended.exit_code == 5
    assert f"schedule 'nobody' is not declared in {module}, and no database was named" in ended.stderr


def test_check_lists_every_schedule_and_warns_of_the_next_gap(worker: Worker, module: str) -> None:
    ended = worker("schedules", "check", "--jobs", module, "--json")

    hourly, nightly = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert (hourly["schedule"], hourly["warning"], hourly["problem"]) == (f"{module} hourly", None, None)
    assert "the clock skips 02:30: it runs at 03:30 instead" in nightly["warning"]
    assert nightly["local"].endswith(("02:30:00-05:00", "02:30:00-04:00", "03:30:00-04:00"))


def test_check_ends_with_1_and_names_every_module_with_a_problem(worker: Worker, module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}_broken.py").write_text("from worker import cron\ncron('0 25 * * *')(None)")
    options = ["--jobs", f"{module}_broken", "--jobs", module, "--jobs", f"{module}_missing", "--json"]

    ended = worker("schedules", "check", *options)

    problems = [row["problem"] for row in json.loads(ended.stdout)]
    assert ended.exit_code == 1
    assert "put @job directly below it" in problems[0]
    assert f"jobs module '{module}_missing' was not found" in problems[1]
    assert problems[2:] == [None, None]
