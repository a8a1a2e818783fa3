"""SIGHUP: to new code and settings, with nothing lost; or on with the old ones, and why."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
import pytest

from tests.factories import column
from tests.lifecycle.conftest import WAIT, StartWorker, WorkerProcess, busy_in_sql, done, send
from tests.waiting import wait_until

GOOD = """
from psycopg import Connection
from worker import job

@job
def say(conn: Connection) -> None:
    conn.execute("INSERT INTO note VALUES (%s)", ["{word}"])

@job
def slow(conn: Connection) -> None:
    conn.execute("SELECT pg_sleep(2)")
    conn.execute("INSERT INTO note VALUES (%s)", ["{word} slowly"])
"""


SESSION_NAMES = """
    SELECT DISTINCT left(application_name, 44) FROM pg_stat_activity
    WHERE application_name LIKE 'carpool %%' AND datname = current_database()"""


class Code:
    """A module of jobs that changes while a worker runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "changing_jobs.py"

    def write(self, text: str) -> None:
        self._file.write_text(text)

    def say(self, word: str) -> None:
        self.write(GOOD.replace("{word}", word))


@pytest.fixture
def code(tmp_path: Path) -> Code:
    code = Code(tmp_path)
    code.say("old")
    return code


@pytest.fixture
def worker(start_worker: StartWorker, database: str, code: Code) -> WorkerProcess:
    return started(start_worker, database, code)


def started(start_worker: StartWorker, database: str, code: Code, *arguments: str, **variables: str) -> WorkerProcess:
    # Without compiled files, whose age is told in whole seconds.
    variables = {"PYTHONPATH": str(code.folder), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return start_worker(database, *arguments, jobs="changing_jobs", **variables).running()


def times(worker: WorkerProcess, event: str) -> int:
    return [each["event"] for each in worker.events].count(event)


def reloaded(worker: WorkerProcess) -> None:
    wait_until(lambda: times(worker, "worker.running") == 2, WAIT, "the new code to run")


def test_good_code_takes_over_under_the_same_process_id(
    worker: WorkerProcess, code: Code, noted: psycopg.Connection
) -> None:
    done(noted, send(noted, "say"))
    code.say("new")
    worker.send(signal.SIGHUP)
    reloaded(worker)

    done(noted, send(noted, "say"))
    assert column(noted, "SELECT word FROM note") == ["old", "new"]
    assert worker.process.poll() is None
    first, second = [each["worker"] for each in worker.events if each["event"] == "worker.running"]
    assert first != second
    assert worker.end() == 0


def test_bad_code_changes_nothing_and_is_told(worker: WorkerProcess, code: Code, noted: psycopg.Connection) -> None:
    code.write("raise ZeroDivisionError('half deployed')")
    worker.send(signal.SIGHUP)
    refused = worker.event("reload.refused")

    assert "jobs module 'changing_jobs' cannot be imported: ZeroDivisionError: half deployed" in refused["reason"]
    done(noted, send(noted, "say"))
    assert column(noted, "SELECT word FROM note") == ["old"]
    assert times(worker, "worker.running") == 1
    assert worker.end() == 0


def test_settings_that_cannot_work_change_nothing(
    start_worker: StartWorker, database: str, code: Code, noted: psycopg.Connection
) -> None:
    file = code.folder / "settings.toml"
    file.write_text("pool_size = 3\n")
    worker = started(start_worker, database, code, "--config", str(file))
    file.write_text("pool_size = 'many'\n")
    worker.send(signal.SIGHUP)

    assert "pool_size='many': expected a whole number" in worker.event("reload.refused")["reason"]
    done(noted, send(noted, "say"))

    file.write_text("pool_size = 5\n")
    worker.send(signal.SIGHUP)
    reloaded(worker)
    wait_until(lambda: column(noted, "SELECT pool_size FROM worker.worker") == [5], WAIT, "the new size")
    assert worker.end() == 0


def test_what_runs_finishes_and_nothing_is_lost_or_doubled(
    worker: WorkerProcess, code: Code, noted: psycopg.Connection
) -> None:
    slow = send(noted, "slow")
    busy_in_sql(noted)
    code.say("new")
    worker.send(signal.SIGHUP)
    jobs = [send(noted, "say") for _ in range(50)]
    reloaded(worker)

    for job_id in [slow, *jobs]:
        assert done(noted, job_id) == "done"
    words = column(noted, "SELECT word FROM note")
    assert len(words) == 51
    assert "old slowly" in words
    assert worker.end() == 0


def test_no_session_of_the_old_one_is_left(worker: WorkerProcess, noted: psycopg.Connection) -> None:
    done(noted, send(noted, "say"))
    worker.send(signal.SIGHUP)
    reloaded(worker)

    names = column(noted, SESSION_NAMES)
    last = [each["worker"] for each in worker.events if each["event"] == "worker.running"][-1]
    assert names == [f"carpool {last}"]
    wait_until(lambda: [str(row) for row in column(noted, "SELECT id FROM worker.worker")] == [last], WAIT, "its row")
    assert worker.end() == 0


def test_a_stop_while_it_drains_for_new_code_ends_it(
    worker: WorkerProcess, code: Code, noted: psycopg.Connection
) -> None:
    job_id = send(noted, "slow")
    busy_in_sql(noted)
    worker.send(signal.SIGHUP)
    worker.event("worker.draining")

    assert worker.end() == 0
    assert done(noted, job_id) == "done"
    assert times(worker, "reload.executing") == 0


def test_asked_many_times_it_comes_out_once_and_well(
    worker: WorkerProcess, code: Code, noted: psycopg.Connection
) -> None:
    """Also while nobody listens, between the old process and the new one."""
    for _ in range(5):
        worker.send(signal.SIGHUP)
    worker.event("reload.executing")
    code.say("new")
    worker.send(signal.SIGHUP)

    def new_code() -> bool:
        done(noted, send(noted, "say"))
        return "new" in column(noted, "SELECT word FROM note")

    wait_until(new_code, WAIT, "the last code to run")
    assert worker.process.poll() is None


def test_the_service_manager_is_told_of_a_reload_and_not_of_a_stop(
    start_worker: StartWorker, database: str, code: Code, manager_socket: Path, heard: list[str]
) -> None:
    worker = started(start_worker, database, code, NOTIFY_SOCKET=str(manager_socket))
    worker.send(signal.SIGHUP)
    reloaded(worker)

    told = wait_until(lambda: heard if "\n".join(heard).count("READY=1") == 2 else [], WAIT, "readiness again")
    text = "\n".join(told)
    assert "STOPPING=1" not in text
    assert text.index("READY=1") < text.index("RELOADING=1") < text.rindex("READY=1")
    assert "MONOTONIC_USEC=" in text
    assert worker.end() == 0
