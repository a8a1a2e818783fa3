"""A job that is stuck keeps its thread, and not its slot: as an operator sees it."""

from __future__ import annotations

import signal
from uuid import UUID

import psycopg

from tests.factories import scalar
from tests.lifecycle.conftest import WAIT, Ask, Gate, StartWorker, WorkerProcess, done, row, send
from tests.waiting import wait_until
from worker import exits
from worker.config import Address


def told(page: Ask, name: str) -> str | None:
    """The value of a metric, None when it is not there."""
    found = [line.rpartition(" ")[2] for line in page("/metrics").body.splitlines() if line.startswith(f"{name}")]
    return found[0] if found else None


def job_threads(worker: WorkerProcess) -> list[str]:
    """As SIGUSR2 names them."""
    before = len(worker.events)
    worker.send(signal.SIGUSR2)

    def named() -> list[str]:
        threads = [event["thread"] for event in worker.events[before:] if event["event"] == "worker.stack"]
        # The main thread is the one that tells; it was there first, so it comes last.
        return threads if "MainThread" in threads else []

    return sorted(name for name in wait_until(named, WAIT, "the stacks") if name.startswith("job-"))


def test_a_worker_of_two_slots_runs_two_jobs_beside_one_that_is_stuck(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, address: Address, page: Ask, gate: Gate
) -> None:
    worker = start_worker(database, "--slots", "2", "--http", str(address)).running()
    before = job_threads(worker)
    job_id = send(noted, "deaf_until", gate=gate.path)
    replaced = worker.event("slot.replaced")

    meeting = [send(noted, "meet") for _ in range(20)]
    assert {done(noted, each) for each in meeting} == {"done"}
    during = job_threads(worker)
    numbers = told(page, "worker_jobs_stuck "), told(page, "worker_slots_replaced_total{")
    live = page("/livez").status
    gate.open()

    assert done(noted, job_id) == "dead"
    assert (before, during) == (["job-1", "job-2"], sorted([*before, replaced["successor"]]))
    assert (numbers, live) == (("1", "1"), 200)
    wait_until(lambda: told(page, "worker_jobs_stuck ") == "0", WAIT, "the gauge")
    wait_until(lambda: replaced["thread"] not in job_threads(worker), WAIT, "the end of the thread")
    assert len(job_threads(worker)) == len(before)
    assert worker.end() == 0


def stopping_with_a_stuck_job(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> tuple[WorkerProcess, UUID]:
    worker = start_worker(database, "--slots", "2").running()
    job_id = send(noted, "deaf_until", gate=gate.path)
    worker.event("slot.replaced")
    worker.send(signal.SIGTERM)
    return worker, job_id


def test_a_stop_waits_for_a_stuck_job_and_gives_it_its_own_verdict(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> None:
    worker, job_id = stopping_with_a_stuck_job(start_worker, database, noted, gate)
    draining = worker.event("worker.draining")
    gate.open()

    assert worker.wait() == 0
    assert (draining["running"], worker.event("worker.drained")["left"]) == (1, 0)
    assert done(noted, job_id) == "dead"
    assert "ran longer than its timeout" in str(scalar(noted, "SELECT error FROM worker.job_dead"))


def test_a_second_signal_waits_no_longer_for_a_stuck_job_than_for_any_other(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> None:
    worker, job_id = stopping_with_a_stuck_job(start_worker, database, noted, gate)
    worker.event("worker.draining")
    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.event("worker.cutting")["running"] == 1
    assert worker.event("worker.drained")["left"] == 1
    # Given back with the worker's last word, behind which nothing of it runs.
    assert row(noted, job_id) == ("available", 0)


def test_a_worn_worker_waits_for_a_stuck_job(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> None:
    worker = start_worker(database, "--slots", "2", "--max-jobs", "3").running()
    job_id = send(noted, "deaf_until", gate=gate.path)
    worker.event("slot.replaced")
    meeting = [send(noted, "meet") for _ in range(2)]
    worker.event("worker.draining")
    gate.open()

    assert worker.wait() == exits.RECYCLED
    assert {done(noted, each) for each in meeting} == {"done"}
    assert done(noted, job_id) == "dead"


def test_a_worker_that_runs_until_empty_is_not_while_a_job_is_stuck(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, gate: Gate
) -> None:
    jobs = [send(noted, "deaf_until", gate=gate.path), *(send(noted, "meet") for _ in range(2))]
    worker = start_worker(database, "--slots", "2", "--until-empty").running()
    worker.event("slot.replaced")
    assert done(noted, jobs[1]) == "done"
    assert worker.process.poll() is None
    gate.open()

    assert worker.wait() == 0
    assert done(noted, jobs[0]) == "dead"
