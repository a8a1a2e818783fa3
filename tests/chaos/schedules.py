"""
Workers are killed -9 at random: `python -m tests.chaos.schedules [--seconds N] [--workers N] [--seed N]`.

At the end the ledger has each tick of each schedule once, none missing and none double, each with its job, and no job's
effect counts twice. Uses WORKER_TEST_DATABASE_URL, or an embedded Postgres. Exit code 1 when a tick is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import psycopg

from tests.chaos import scheduled_jobs
from tests.factories import own_database, own_server
from worker.schedule import Schedule, registered

# What a worker that starts may take, on a busy machine.
_SETTLE = 60.0


def chaos(url: str, *, seconds: float, workers: int, seed: int) -> list[str]:
    """Run *workers* on the database *url* for *seconds*, killing; returns what is wrong with the ledger."""
    chance = random.Random(seed)  # noqa: S311  # chance that can be repeated
    with psycopg.connect(url, autocommit=True) as db, ExitStack() as stack:
        db.execute("CREATE TABLE noted (schedule text NOT NULL, tick timestamptz NOT NULL)")
        running = [_start(url, stack) for _ in range(workers)]
        _wait(db, "SELECT count(*) >= %s FROM worker.schedule WHERE last_tick > declared_at", len(_mine()))
        kills, ends_at = 0, time.monotonic() + seconds
        while time.monotonic() < ends_at:
            time.sleep(chance.uniform(0.2, 3.0))
            victim = chance.randrange(workers)
            running[victim].kill()
            running[victim].wait()
            running[victim] = _start(url, stack)
            kills += 1
        (now,) = _one(db, "SELECT clock_timestamp()")
        _wait(db, "SELECT bool_and(last_tick > %s) FROM worker.schedule", now)
        _wait(db, "SELECT count(*) = 0 FROM worker.job WHERE due_at < %s", now)
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(_SETTLE)
        found = [problem for schedule in _mine() for problem in problems(db, schedule)]
        ticks, latest = _one(db, "SELECT count(*), max(lateness) FROM worker.tick")
        print(f"{kills} kills of {workers} workers in {seconds:g} s; {ticks} ticks, the latest {latest:.1f} s late")
    return found


def problems(db: psycopg.Connection, schedule: Schedule) -> list[str]:
    """What the ledger has wrong about *schedule*, from its declaration to the last tick that it decided."""
    since, until = _one(db, "SELECT declared_at, last_tick FROM worker.schedule WHERE name = %s", schedule.name)
    expected, tick = [], schedule.trigger.after(since)
    while tick <= until:
        expected.append(tick)
        tick = schedule.trigger.after(tick)
    rows = db.execute("SELECT tick, outcome, job_id FROM worker.tick WHERE schedule = %s", [schedule.name]).fetchall()
    times = Counter(row[0] for row in rows)
    found = [f"{schedule.name}: {instant} is missing" for instant in expected if not times[instant]]
    found += [f"{schedule.name}: {instant} is no tick of it" for instant in times.keys() - set(expected)]
    found += [f"{schedule.name}: {row[0]} did not fire but {row[1]}" for row in rows if row[2] is None]
    found += [f"{schedule.name}: {count} times {instant}" for instant, count in times.items() if count > 1]
    jobs = Counter(row[2] for row in rows)
    found += [f"{schedule.name}: job {job_id} of {count} ticks" for job_id, count in jobs.items() if count > 1]
    return found + _effects(db, schedule, times)


def _effects(db: psycopg.Connection, schedule: Schedule, times: Counter[datetime]) -> list[str]:
    noted = Counter(row[0] for row in db.execute("SELECT tick FROM noted WHERE schedule = %s", [schedule.name]))
    found = [f"{schedule.name}: the job of {tick} had {count} effects" for tick, count in noted.items() if count > 1]
    found += [f"{schedule.name}: a job of {tick}, which is not in the ledger" for tick in noted.keys() - times.keys()]
    # Jobs that were there at each of three crashes are put aside, others may still wait.
    waiting, dead = _one(
        db,
        """
        SELECT
            (SELECT count(*) FROM worker.job WHERE options ->> 'schedule' = %s),
            (SELECT count(*) FROM worker.job_dead WHERE options ->> 'schedule' = %s)""",
        schedule.name,
        schedule.name,
    )
    if len(noted) + waiting + dead != len(times):
        jobs = f"{len(noted)} effects, {waiting} waiting jobs and {dead} dead ones"
        found.append(f"{schedule.name}: {len(times)} ticks, but {jobs}")
    return found


def _start(url: str, stack: ExitStack) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.scheduled_jobs", "--pool-size", "3"]
    environment = {**os.environ, "WORKER_DATABASE_URL": url, "WORKER_LOG_LEVEL": "warning", "WORKER_LEASE": "5"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _mine() -> list[Schedule]:
    return [schedule for schedule in registered() if schedule.actor is scheduled_jobs.note]


def _wait(db: psycopg.Connection, query: str, *parameters: Any) -> None:
    deadline = time.monotonic() + _SETTLE
    while not _one(db, query, *parameters)[0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_SETTLE:g} s: {query}")
        time.sleep(0.2)


def _one(db: psycopg.Connection, query: str, *parameters: Any) -> tuple[Any, ...]:
    row = db.execute(query.encode(), parameters).fetchone()
    assert row is not None, query
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with ExitStack() as stack:
        server = os.environ.get("WORKER_TEST_DATABASE_URL") or stack.enter_context(own_server()).url
        url = stack.enter_context(own_database(server))
        found = chaos(url, seconds=options.seconds, workers=options.workers, seed=options.seed)
    print("\n".join(found) or "each tick is in the ledger once, with its job; no effect counts twice")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
