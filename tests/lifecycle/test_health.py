"""Probes and the service manager, from outside, through a worker's whole life."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.factories import column
from tests.lifecycle.conftest import ROOT, WAIT, Ask, RestartableServer, StartWorker, busy_in_sql, running_in, send
from tests.waiting import wait_until
from worker.config import Address
from worker.observe import Page
from worker.queue.schema import Schema


def reasons(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.body)["reasons"]
    return found


def probe(address: Address, which: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", "status", "--probe", which]
    env = {**os.environ, "WORKER_HTTP": str(address)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT, check=False)


def test_a_draining_worker_lives_and_is_not_ready(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, address: Address, page: Ask
) -> None:
    worker = start_worker(database, "--http", str(address)).running()
    running_in(noted, send(noted, "work", word="slow", seconds=30))
    busy_in_sql(noted)
    assert page("/readyz").status == 200

    worker.send(signal.SIGTERM)
    worker.event("worker.draining")

    assert page("/livez").status == 200
    assert (page("/readyz").status, reasons(page("/readyz"))) == (503, {"stage": "draining: nothing is claimed"})


def test_without_its_database_a_worker_lives_and_is_not_ready(
    start_worker: StartWorker, restartable: RestartableServer, address: Address, page: Ask
) -> None:
    with psycopg.connect(restartable.url, autocommit=True) as conn:
        Schema().migrate(conn)
    start_worker(restartable.url, "--http", str(address)).running()

    restartable.stop()

    wait_until(lambda: "database" in reasons(page("/readyz")), WAIT, "the loss to be noticed")
    assert page("/livez").status == 200
    restartable.start()
    wait_until(lambda: page("/readyz").status == 200, WAIT, "readiness again")


def test_a_dispatcher_that_is_stuck_is_noticed_within_two_seconds(
    start_worker: StartWorker, logged_database: str, address: Address, page: Ask
) -> None:
    """By its own clock: a machine that is busy elsewhere makes everything later."""
    worker = start_worker(logged_database, "--http", str(address)).running()
    with psycopg.connect(logged_database, autocommit=True) as db:
        [pid] = column(db, "SELECT pid FROM worker.worker")
    # The server's end of its session stands still, so that its next statement is never answered.
    os.kill(pid, signal.SIGSTOP)
    try:
        noticed = worker.event("dispatcher.stuck")
        wait_until(lambda: "dispatcher" in reasons(page("/readyz")), WAIT, "readiness to end")
    finally:
        os.kill(pid, signal.SIGCONT)

    # The main thread looks twice a second, and may be late once.
    assert 1.4 < noticed["busy_for"] < 2.5
    assert "dispatcher.py" in noticed["stack"]
    assert page("/livez").status == 200
    worker.event("dispatcher.goes_on")
    wait_until(lambda: page("/readyz").status == 200, WAIT, "readiness again")


def test_an_image_without_a_port_has_probes_all_the_same(
    start_worker: StartWorker, database: str, address: Address
) -> None:
    worker = start_worker(database, "--http", str(address)).running()
    live, ready = probe(address, "live"), probe(address, "ready")
    worker.end()
    gone = probe(address, "live")

    assert (live.returncode, ready.returncode, gone.returncode) == (0, 0, 1)
    assert json.loads(ready.stdout)["worker"] == str(worker.id)
    assert "no worker answers at unix:" in gone.stderr


def test_a_job_that_ran_is_in_the_metrics(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, address: Address, page: Ask
) -> None:
    start_worker(database, "--http", str(address)).running()
    send(noted, "note", word="hello")

    line = 'worker_jobs_total{queue="default",actor="note",outcome="done"} 1\n'
    wait_until(lambda: line in page("/metrics").body, WAIT, "the job to be counted")


# The service manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT)
        yield manager


def heard_until(manager: socket.socket, word: str) -> str:
    """Everything that was said up to *word*."""
    said = ""
    while word not in said:
        said += manager.recv(4096).decode() + "\n"
    return said


def test_the_service_manager_hears_of_every_stage(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, manager: socket.socket, tmp_path: Path
) -> None:
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
    worker = start_worker(database, "--grace", "0.3", **told).running()

    starting = heard_until(manager, "STATUS=running")
    assert starting.startswith("STATUS=starting\n")
    assert starting.endswith("READY=1\n")
    heard_until(manager, "WATCHDOG=1")
    send(noted, "work", word="slow", seconds=60)
    busy_in_sql(noted)
    worker.send(signal.SIGTERM)

    stopping = heard_until(manager, "STATUS=closing")
    assert stopping.index("STATUS=draining: running 1, grace 0.3\nSTOPPING=1") < stopping.index("STATUS=cutting")
    assert "EXTEND_TIMEOUT_USEC=15000000" in stopping
    assert worker.wait() == 0
