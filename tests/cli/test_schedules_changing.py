"""`worker schedules` against a database: add, list, why, pause, run, remove."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import psycopg
import pytest

from tests.cli.conftest import Worker
from worker import PostgresBroker
from worker.schedule import declaration

JOBS = """
from worker import job

@job
def report_{number}(report_id: int) -> None: ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A jobs module with the job `report_N`, N the module's number."""
    monkeypatch.setattr(declaration, "_registry", {})
    before = dramatiq.get_broker()
    dramatiq.set_broker(PostgresBroker(schema="worker"))
    number = abs(hash(tmp_path))
    (tmp_path / f"sample_{number}.py").write_text(JOBS.format(number=number))
    monkeypatch.syspath_prepend(tmp_path)
    yield f"sample_{number}"
    dramatiq.set_broker(before)


@pytest.fixture
def schedules(worker: Worker, database: str, module: str) -> Any:
    """Runs `worker schedules VERB ...` on the database; returns what it printed, and asserts its exit code."""

    def run(verb: str, *arguments: str, code: int = 0) -> str:
        jobs = ("--jobs", module) if verb in ("add", "change", "run", "next") else ()
        ended = worker("schedules", verb, *arguments, *jobs, WORKER_DATABASE_URL=database)
        assert ended.exit_code == code, ended.output
        return ended.output

    return run


def job_of(module: str) -> str:
    return module.replace("sample", "report")


def test_a_schedule_is_added_listed_and_removed(schedules: Any, module: str) -> None:
    options = ["--cron", "0 7 * * mon", "--tz", "Europe/Berlin", "--args", '{"report_id": 7}']
    assert schedules("add", "weekly", "--job", job_of(module), *options).startswith("added weekly: next at 20")

    (row,) = json.loads(schedules("list", "--json"))
    assert (row["schedule"], row["state"], row["spec"], row["args"]) == (
        "weekly",
        "active",
        "0 7 * * mon",
        {"report_id": 7},
    )
    assert row["utc"].endswith(("T05:00:00Z", "T06:00:00Z"))

    (tick,) = json.loads(schedules("next", "weekly", "--from", "2026-03-25", "--count", "1", "--json"))
    assert tick["local"] == "2026-03-30T07:00:00+02:00"

    schedules("change", "weekly", "--cron", "30 2 * * *")
    assert "the clock skips 02:30: it runs at 03:30 instead" in schedules("list")
    schedules("remove", "weekly")
    assert json.loads(schedules("list", "--json")) == []


def test_pause_run_and_why(schedules: Any, module: str, db: psycopg.Connection) -> None:
    schedules("add", "weekly", "--job", job_of(module), "--every", "3600", "--args", "[7]")

    assert schedules("pause", "weekly") == "paused weekly\n"
    assert json.loads(schedules("list", "--json"))[0]["state"] == "paused"
    assert schedules("run", "weekly").startswith("sent job ")
    assert "an earlier tick is not done" in schedules("run", "weekly", code=6)
    assert "weekly was run by hand at" in schedules("why", "weekly")
    assert json.loads(schedules("why", "weekly", "--json"))[0]["manual"] is True
    assert schedules("resume", "weekly") == "resumed weekly\n"
    assert schedules("resume", "weekly") == "weekly was not paused\n"
    assert db.execute("SELECT count(*) FROM worker.job").fetchone() == (1,)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["remove", "nobody"], 5, "schedule 'nobody' is not in the database"),
        (["why", "nobody"], 5, "schedule 'nobody' is neither in the database nor in its ledger"),
        (["run", "nobody"], 5, "schedule 'nobody' is not in the database"),
        (["add", "weekly", "--job", "nobody", "--every", "60"], 2, "job 'nobody' is not declared by the loaded"),
        (["add", "weekly", "--job", "x", "--every", "60", "--args", "7"], 2, "expected an object by name"),
        (["add", "weekly", "--job", "x", "--every", "60", "--args", "{"], 2, "is no JSON"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(schedules: Any, arguments: list[str], code: int, said: str) -> None:
    assert said in schedules(*arguments, code=code)
