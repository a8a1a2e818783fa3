"""
`python -m tests.bench.schedules [--schedules N] [--at-once N] [--seconds N]`: what schedules cost one worker.

Prints statements and CPU time per second of an idle worker without schedules and with many, and how late each is when
hundreds tick in the same second. On an embedded Postgres, whose log counts the statements.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

from tests.factories import own_database, own_server

_HERE = Path(__file__).parents[2]

_JOBS = """
from worker import cron, job

@job
def nothing() -> None: ...

for number in range({idle}):
    cron(f"{{number % 60}} {{number % 24}} 1 1 *", tz="Europe/Berlin", name=f"idle {{number}}")(nothing)
for number in range({busy}):
    cron("*/5 * * * * *", seconds=True, tz="Europe/Berlin", overlap="allow", name=f"busy {{number}}")(nothing)
"""


class Cost(NamedTuple):
    """Of a worker, and of the server on its behalf: per second."""

    statements: float
    worker_cpu: float
    server_cpu: float

    def __str__(self) -> str:
        cpu = f"{self.worker_cpu * 1000:.1f} ms CPU of the worker and {self.server_cpu * 1000:.1f} ms of the server"
        return f"{self.statements:.1f} statements, {cpu} per second"


@contextmanager
def running(url: str, folder: Path, *, idle: int = 0, busy: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with so many schedules that never tick, and so many that tick each fifth second."""
    name = f"bench_{idle}_{busy}"
    (folder / f"{name}.py").write_text(_JOBS.format(idle=idle, busy=busy))
    environment = {
        **os.environ,
        "WORKER_DATABASE_URL": url,
        "WORKER_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{folder}:{_HERE}",
    }
    command = [sys.executable, "-m", "worker", "run", "--jobs", name, "--pool-size", "5"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def idle_cost(url: str, log: Path, folder: Path, schedules: int, seconds: float) -> Cost:
    """What a worker with *schedules* costs while nothing ticks."""
    with running(url, folder, idle=schedules) as process, psycopg.connect(url, autocommit=True) as db:
        _wait(db, "SELECT count(*) FROM worker.worker", 1)
        _wait(db, "SELECT count(*) FROM worker.schedule", schedules)
        time.sleep(3.0)
        pid = _number(db, "SELECT pid FROM worker.worker")
        before = log.stat().st_size, _cpu(process.pid), _cpu(pid)
        time.sleep(seconds)
        said = log.read_bytes()[before[0] :]
        statements = said.count(b"execute ") + said.count(b"statement: ")
        return Cost(statements / seconds, (_cpu(process.pid) - before[1]) / seconds, (_cpu(pid) - before[2]) / seconds)


def lateness(url: str, folder: Path, at_once: int, rounds: int) -> tuple[list[float], list[float]]:
    """
    Seconds from the tick to its decision, and to the claim of its job; both sorted.

    Of each tick when *at_once* schedules tick together.
    """
    with running(url, folder, busy=at_once), psycopg.connect(url, autocommit=True) as db:
        _wait(db, "SELECT count(*) FROM worker.tick", at_once * (rounds + 1))
        _wait(db, "SELECT count(*) FROM worker.job_history", at_once * (rounds + 1))
        # The first round met the boot.
        rows = db.execute("""
            SELECT lateness, extract(epoch FROM started_at - tick)::float8
            FROM worker.tick JOIN worker.job_history ON id = job_id
            WHERE tick > (SELECT min(tick) FROM worker.tick)""").fetchall()
        return sorted(row[0] for row in rows), sorted(row[1] for row in rows)


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(db: psycopg.Connection, query: str, least: int) -> None:
    deadline = time.monotonic() + 120
    while _number(db, query) < least:
        if time.monotonic() > deadline:
            raise TimeoutError(query)
        time.sleep(0.5)


def _number(db: psycopg.Connection, query: str) -> int:
    row = db.execute(query.encode()).fetchone()
    return 0 if row is None else int(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with own_server() as server, tempfile.TemporaryDirectory() as made:
        log, folder = server.folder / "server.log", Path(made)
        for count in (0, options.schedules):
            with own_database(server.url) as url:
                with psycopg.connect(url, autocommit=True) as db:
                    name = sql.Identifier(db.info.dbname)
                    db.execute(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(name))
                cost = idle_cost(url, log, folder, count, options.seconds)
            print(f"idle with {count} schedules: {cost}", flush=True)
        for count in (1, options.at_once):
            with own_database(server.url) as url:
                decided, begun = lateness(url, folder, count, options.rounds)
            print(
                f"{count} at once, {options.rounds} times: decided {_spread(decided)}; begun {_spread(begun)}",
                flush=True,
            )


def _spread(late: list[float]) -> str:
    middle, most = late[len(late) // 2] * 1000, late[int(len(late) * 0.99)] * 1000
    return f"{middle:.0f} ms late in the middle, {most:.0f} ms at the 99th percentile, {late[-1] * 1000:.0f} ms at most"


if __name__ == "__main__":
    main()
