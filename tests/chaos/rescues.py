"""
How soon a killed worker's job runs elsewhere: `python -m tests.chaos.rescues [--rounds N] [--survivors N] [--busy]`.

Each round a job begins without a NOTIFY, its worker is killed -9 some moments later, and the time counts until another
has claimed it. With `--busy` the survivors run short jobs meanwhile, and have to be done with them: who runs a job that
may have killed its worker, runs it alone. On an embedded Postgres; with WORKER_TEST_DATABASE_URL on that server.
Exit code 1 when one took more than 3 s.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID

import psycopg

from tests.chaos.server import started
from tests.factories import column, scalar
from tests.waiting import wait_until
from worker import JobFilter, Jobs
from worker.queue.schema import Schema

_SETTLE = 90.0
_AT_MOST = 3.0
# Beyond a survivor's poll, so that a kill meets each moment between two.
_SPREAD = 3.0
_BUSY = 40


class Fleet:
    """Workers, found by the id that their row has."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url = url
        self._stack = stack
        self._by_pid: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.rescued_jobs", "--pool-size", "3"]
        environment = {**os.environ, "WORKER_DATABASE_URL": self._url, "WORKER_LOG_LEVEL": "error"}
        process = subprocess.Popen(command, env=environment)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self._by_pid[process.pid] = process

    def kill(self, db: psycopg.Connection, worker: UUID) -> float:
        """Kill -9; returns when, monotonic."""
        name = scalar(db, "SELECT name FROM worker.worker WHERE id = %s", worker)
        process = self._by_pid.pop(int(name.rpartition(":")[2]))
        killed_at = time.monotonic()
        process.kill()
        process.wait()
        return killed_at

    def await_all(self, db: psycopg.Connection) -> None:
        def live() -> bool:
            pids = {int(name.rpartition(":")[2]) for name in column(db, "SELECT name FROM worker.worker")}
            return pids == set(self._by_pid)

        wait_until(live, _SETTLE, "the workers")


def claimed_by(db: psycopg.Connection, job_id: UUID) -> UUID | None:
    found = column(db, "SELECT claimed_by FROM worker.job WHERE id = %s AND state = 'running'", job_id)
    return found[0] if found else None


def one_round(db: psycopg.Connection, fleet: Fleet, chance: random.Random) -> float:
    """Seconds from the kill until another worker has the job."""
    fleet.await_all(db)
    time.sleep(chance.uniform(0.0, 2.0))
    job_id = scalar(db, "INSERT INTO worker.job (actor) VALUES ('hold') RETURNING id")
    first = wait_until(lambda: claimed_by(db, job_id), _SETTLE, "the job to begin")
    assert first is not None
    time.sleep(chance.uniform(0.02, _SPREAD))
    killed_at = fleet.kill(db, first)
    wait_until(lambda: claimed_by(db, job_id) not in (None, first), _SETTLE, "its rescue")
    took = time.monotonic() - killed_at
    Jobs(db).cancel(JobFilter(id=job_id))
    fleet.start()
    wait_until(lambda: claimed_by(db, job_id) is None, _SETTLE, "its end")
    return took


@contextmanager
def busy(url: str) -> Iterator[None]:
    """Some short jobs wait at any time."""
    over = threading.Event()

    def feed() -> None:
        with psycopg.connect(url, autocommit=True) as db:
            while not over.wait(0.05):
                waiting = scalar(db, "SELECT count(*) FROM worker.job WHERE actor = 'brief'")
                db.execute(
                    "INSERT INTO worker.job (actor) SELECT 'brief' FROM generate_series(1, %s)", [_BUSY - waiting]
                )

    thread = threading.Thread(target=feed, name="feed")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--survivors", type=int, default=1)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311  # chance that can be repeated
    with started() as server, ExitStack() as stack:
        db = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        Schema().migrate(db)
        fleet = Fleet(server.url, stack)
        for _ in range(options.survivors + 1):
            fleet.start()
        if options.busy:
            stack.enter_context(busy(server.url))
        took = sorted(one_round(db, fleet, chance) for _ in range(options.rounds))
    print(" ".join(f"{seconds:.2f}" for seconds in took))
    late = sum(seconds > _AT_MOST for seconds in took)
    print(
        f"{options.rounds} rounds, {options.survivors} {'busy' if options.busy else 'idle'} survivors, seed"
        f" {options.seed}: {took[0]:.2f} to {took[-1]:.2f} s, median {statistics.median(took):.2f} s,"
        f" {late} of more than {_AT_MOST:g} s"
    )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
