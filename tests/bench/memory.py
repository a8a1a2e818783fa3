"""
`python -m tests.bench.memory [--jobs N] [--work drain|inserts]`: what does a worker weigh, and does it grow?

`worker run` with its defaults on an embedded Postgres; its resident memory after the boot and after each twentieth of a
million jobs. Exit code 0 when the targets hold.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from tests.bench import machine, stores
from tests.bench.server import own_seconds, process_cpu_seconds
from tests.bench.verdict import Verdict, conclude
from tests.factories import opened_pool, scalar
from tests.waiting import wait_until
from worker import PostgresBroker, job
from worker.queue.schema import Schema

MOST_AFTER_BOOT = 64.0
MOST_GROWTH = 1.03
"""Times as much as after the first tenth it weighs at the end."""

_HERE = Path(__file__).parents[2]
_PATIENCE = 120.0
_SETTLED = 3.0
_PARTS = 20
_SENT_AT_ONCE = 5000

_JOBS = """
from psycopg import Connection
from worker import job

@job
def drain(number: int) -> None: ...

@job
def inserts(conn: Connection, number: int) -> None:
    conn.execute("INSERT INTO bench (number) VALUES (%s)", [number])
"""


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.memory", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="that it runs (1000000)")
    parser.add_argument("--work", choices=["drain", "inserts"], default="drain", help="do nothing, or write one row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(stores.postgres())
        admin = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        url = stack.enter_context(stores.database(admin, server.url))
        db = stack.enter_context(psycopg.connect(url, autocommit=True))
        db.execute("CREATE TABLE bench (number int)")
        Schema().migrate(db)
        process = stack.enter_context(_worker(url))
        noise = machine.Noise(lambda: own_seconds(admin) + process_cpu_seconds(process.pid))
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.worker"), _PATIENCE, "the boot of the worker")
        time.sleep(_SETTLED)
        boot = resident(process.pid)
        print(f"after the boot: {boot:.1f} MB", flush=True)
        weights = []
        for ran in _running(url, db, options.work, options.jobs):
            weights.append(resident(process.pid))
            print(f"after {ran:9,} jobs: {weights[-1]:.1f} MB", flush=True)
        verdicts = [
            Verdict("resident after the boot, MB", boot, MOST_AFTER_BOOT),
            Verdict("resident at the end / after a tenth", weights[-1] / weights[_PARTS // 10 - 1], MOST_GROWTH),
        ]
        kept = {"jobs": options.jobs, "work": options.work, "MB after the boot": boot, "MB after each part": weights}
        return conclude(verdicts, kept, others=noise.percent(), keep=options.json)


def resident(pid: int) -> float:
    """Megabytes (of 2^20) of the process that are in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


@contextmanager
def _worker(url: str) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryDirectory(prefix="carpool-bench-") as folder:
        Path(folder, "bench_jobs.py").write_text(_JOBS)
        environment = {
            **os.environ,
            "WORKER_DATABASE_URL": url,
            "WORKER_LOG_LEVEL": "warning",
            "PYTHONPATH": f"{folder}:{_HERE}",
        }
        command = [sys.executable, "-m", "worker", "run", "--jobs", "bench_jobs"]
        with subprocess.Popen(command, env=environment) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(_PATIENCE)


def _running(url: str, db: psycopg.Connection, work: str, jobs: int) -> Iterator[int]:
    """Send the jobs, never many more than run soon; yield after each part how many have run."""
    broker = PostgresBroker(schema="worker")

    @job(broker=broker, actor_name=work)
    def same(number: int) -> None: ...

    part = jobs // _PARTS
    with opened_pool(url) as pool, broker.on(pool, Schema()):
        for number in range(1, _PARTS + 1):
            for first in range(0, part, _SENT_AT_ONCE):
                same.send_many([(n,) for n in range(first, min(part, first + _SENT_AT_ONCE))])
                wait_until(lambda: _num_left(db) < _SENT_AT_ONCE, _PATIENCE, "the worker to catch up")
            wait_until(lambda: _num_left(db) == 0, _PATIENCE, "the jobs")
            yield number * part


def _num_left(db: psycopg.Connection) -> int:
    return int(scalar(db, "SELECT count(*) FROM worker.job"))


if __name__ == "__main__":
    sys.exit(main())
