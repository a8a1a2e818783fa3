"""Whatever ends a run between two steps or in one: what was recorded is not repeated, what was not left nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from tests.factories import column
from tests.lifecycle.conftest import WAIT, StartWorker, WorkerProcess, done, send
from tests.waiting import wait_until
from worker import JobFilter, Jobs

NOTES = "SELECT word FROM note WHERE word IN ('one', 'two', 'three') ORDER BY word"


def command(database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WORKER_DATABASE_URL": database}
    return subprocess.run(
        [sys.executable, "-m", "worker", "jobs", *arguments],
        env=environment, capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip


def hanging(db: psycopg.Connection) -> None:
    wait_until(lambda: column(db, "SELECT word FROM note WHERE word = 'hanging'"), WAIT, "the job to hang")


def kill(worker: WorkerProcess, database: str, job_id: UUID) -> None:
    worker.end(signal.SIGKILL)


def stop(worker: WorkerProcess, database: str, job_id: UUID) -> None:
    assert worker.end(signal.SIGTERM) == 0


def cancel(worker: WorkerProcess, database: str, job_id: UUID) -> None:
    assert command(database, "cancel", str(job_id)).returncode == 0
    with psycopg.connect(database, autocommit=True) as conn:
        dead = "SELECT id FROM worker.job_dead"
        wait_until(lambda: column(conn, dead) == [job_id], WAIT, "the end of the cancelled job")
    worker.end(signal.SIGTERM)
    assert command(database, "redrive", str(job_id)).returncode == 0


def time_out(worker: WorkerProcess, database: str, job_id: UUID) -> None:
    worker.event("job.timed_out")


@pytest.mark.parametrize("hang_in", ["job", "step"])
@pytest.mark.parametrize("end", [kill, stop, cancel, time_out])
def test_each_step_is_done_once(
    start_worker: StartWorker,
    database: str,
    noted: psycopg.Connection,
    end: Callable[[WorkerProcess, str, UUID], None],
    hang_in: str,
) -> None:
    worker = start_worker(database, "--grace", "0.5").running()
    options = {"time_limit": 3000} if end is time_out else {}
    job_id = send(noted, "in_steps", hang_in=hang_in, options=options)
    hanging(noted)
    noted.execute("INSERT INTO note VALUES ('go')")

    end(worker, database, job_id)
    if worker.process.poll() is not None:
        start_worker(database).running()

    wait_until(lambda: "three" in column(noted, NOTES), WAIT, "the last step")
    query = "SELECT count(*) FROM worker.job_history WHERE id = %s AND outcome = 'done'"
    wait_until(lambda: column(noted, query, job_id) == [1], WAIT, "the end of the job")
    assert column(noted, NOTES) == ["one", "three", "two"]
    assert [step.name for step in Jobs(noted).steps(job_id)] == ["one", "two", "three"]
    [found] = Jobs(noted).find(JobFilter(id=job_id))
    assert found.progress == 1


def test_a_stopped_process_that_comes_back_records_nothing_and_does_no_further_step(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    """Its successor has the job by then."""
    stopped = start_worker(database, WORKER_LEASE="2").running()
    job_id = send(noted, "in_steps", hang_in="step")
    hanging(noted)
    noted.execute("INSERT INTO note VALUES ('go')")

    stopped.send(signal.SIGSTOP)
    start_worker(database, WORKER_LEASE="2").running()
    assert done(noted, job_id) == "done"
    stopped.send(signal.SIGCONT)

    assert stopped.end(signal.SIGTERM) == 0
    assert column(noted, NOTES) == ["one", "three", "two"]


def test_a_long_loop_ends_in_order_when_its_worker_is_to_stop(
    start_worker: StartWorker, database: str, noted: psycopg.Connection
) -> None:
    worker = start_worker(database, "--grace", "25").running()
    job_id = send(noted, "polls")
    wait_until(lambda: column(noted, "SELECT word FROM note"), WAIT, "the loop to begin")

    assert worker.end(signal.SIGTERM) == 0

    assert column(noted, "SELECT word FROM note ORDER BY word") == ["polling", "shutdown"]
    assert column(noted, "SELECT state FROM worker.job WHERE id = %s AND attempt = 0", job_id) == ["available"]
    assert "worker.cutting" not in worker.said
