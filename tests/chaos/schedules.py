"""
Workers are killed -9 at random: `python -m tests.chaos.schedules [--seconds N] [--workers N] [--seed N]`.

Meanwhile the server crashes (`pg_ctl stop -m immediate`) and is down over some ticks, and half-way a new deploy changes
a schedule's spec while workers of the old one go on. At the end the ledger has each tick of each schedule once, none
missing and none double, each with its job, and no job's effect counts twice. On an embedded Postgres; with
WORKER_TEST_DATABASE_URL on that server, which is not restarted. Exit code 1 when a tick is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos import scheduled_jobs
from tests.chaos.scheduled_jobs import DEPLOY_VARIABLE, DEPLOYED, NEW, OLD
from tests.chaos.server import Server, started
from worker.queue.schema import Schema
from worker.schedule import Schedule, registered
from worker.schedule.trigger import Every, Trigger

# What a worker that starts may take, on a busy machine.
_SETTLE = 60.0
# Seconds from one crash of the server to the next.
_CRASH_EVERY = 25.0


class Fleet:
    """Some workers, of which any may be killed and replaced at any time."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self._url = url
        self._folder = folder
        self._stack = stack
        self._started = 0
        self.deploy = "old"
        self.workers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self) -> None:
        self._started += 1
        log = self._folder / f"{self._started}.log"
        command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.scheduled_jobs", "--pool-size", "3"]
        environment = {
            **os.environ,
            "WORKER_DATABASE_URL": self._url,
            "WORKER_LOG_FORMAT": "json",
            "WORKER_LEASE": "5",
            DEPLOY_VARIABLE: self.deploy,
        }
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stderr=file)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self.workers.append((process, log))

    def kill(self, victim: int) -> None:
        """Kill -9, and start another."""
        process, _ = self.workers.pop(victim)
        process.kill()
        process.wait()
        self.start()

    def deploy_new(self) -> int:
        """
        From now on workers of the new deploy start; returns how many of the old one go on.

        One that still boots is replaced: it would declare the old spec after the new one, and be the newest deploy.
        """
        self.deploy = "new"
        old = [each for each in self.workers if _has_declared(each[1])]
        for each in [each for each in self.workers if each not in old]:
            self.kill(self.workers.index(each))
        return len(old)

    def revive(self) -> None:
        """Replace those that ended by themselves: while the server is down none can boot."""
        for process, _ in [each for each in self.workers if each[0].poll() is not None]:
            self.kill([each[0] for each in self.workers].index(process))

    def stop(self) -> None:
        for process, _ in self.workers:
            process.send_signal(signal.SIGTERM)
        for process, _ in self.workers:
            process.wait(_SETTLE)


def chaos(server: Server, folder: Path, *, seconds: float, workers: int, seed: int) -> list[str]:
    """Run *workers* on the database of *server* for *seconds*, killing; returns what is wrong with the ledger."""
    chance = random.Random(seed)  # noqa: S311  # chance that can be repeated
    url = server.url
    with psycopg.connect(url, autocommit=True) as db:
        Schema().migrate(db)
        db.execute("CREATE TABLE noted (schedule text NOT NULL, tick timestamptz NOT NULL)")
    with ExitStack() as stack:
        fleet = Fleet(url, folder, stack)
        for _ in range(workers):
            fleet.start()
        _wait(url, "SELECT count(*) >= %s FROM worker.schedule WHERE last_tick > declared_at", len(_mine()))
        (begun,) = _one(url, "SELECT declared_at FROM worker.schedule WHERE name = %s", DEPLOYED)
        kills = crashes = old = 0
        start = crashed = time.monotonic()
        while (now := time.monotonic()) < start + seconds:
            time.sleep(chance.uniform(0.2, 3.0))
            if fleet.deploy == "old" and now > start + seconds / 2:
                old = fleet.deploy_new()
            if server.restarts and now > crashed + _CRASH_EVERY:
                server.restart(immediate=True, down=chance.uniform(0.0, 5.0))
                crashes, crashed = crashes + 1, now
            fleet.kill(chance.randrange(workers))
            fleet.revive()
            kills += 1
        (now_there,) = _one(url, "SELECT clock_timestamp()")
        _wait(url, "SELECT bool_and(last_tick > %s) FROM worker.schedule", now_there, meanwhile=fleet.revive)
        _wait(url, "SELECT count(*) = 0 FROM worker.job WHERE due_at < %s", now_there, meanwhile=fleet.revive)
        fleet.stop()
    with psycopg.connect(url, autocommit=True) as db:
        found = [problem for schedule in _mine() for problem in problems(db, schedule, begun)]
        ticks, latest = _row(db, "SELECT count(*), max(lateness) FROM worker.tick")
    print(
        f"{kills} kills of {workers} workers, {crashes} crashes of the server, a deploy beside {old} old workers"
        f" in {seconds:g} s; {ticks} ticks, the latest {latest:.1f} s late"
    )
    return found


def problems(db: psycopg.Connection[Any], schedule: Schedule, begun: datetime) -> list[str]:
    """What the ledger has wrong about *schedule*, from its declaration to the last tick that it decided."""
    changed, until = _row(db, "SELECT declared_at, last_tick FROM worker.schedule WHERE name = %s", schedule.name)
    if schedule.name == DEPLOYED:
        before = _ticks(Every(OLD), begun, changed)
        expected = [*before, *_ticks(Every(NEW), changed, until)]
    else:
        before, expected = [], _ticks(schedule.trigger, changed, until)
    query = "SELECT tick, outcome, job_id, reason FROM worker.tick WHERE schedule = %s"
    rows = db.execute(query, [schedule.name]).fetchall()
    times = Counter(row[0] for row in rows)
    found = [f"{schedule.name}: {instant} is missing" for instant in expected if not times[instant]]
    found += [f"{schedule.name}: {instant} is no tick of it" for instant in times.keys() - set(expected)]
    # What the old deploy had not come to when the new one took over, is recorded as such.
    unfired = [row for row in rows if row[2] is None and not (row[3] == "changed" and row[0] in before)]
    found += [f"{schedule.name}: {row[0]} did not fire but {row[1]}" for row in unfired]
    found += [f"{schedule.name}: {count} times {instant}" for instant, count in times.items() if count > 1]
    jobs = Counter(row[2] for row in rows if row[2] is not None)
    found += [f"{schedule.name}: job {job_id} of {count} ticks" for job_id, count in jobs.items() if count > 1]
    return found + _effects(db, schedule, {row[0] for row in rows if row[2] is not None})


def _ticks(trigger: Trigger, since: datetime, until: datetime) -> list[datetime]:
    found, tick = [], trigger.after(since)
    while tick <= until:
        found.append(tick)
        tick = trigger.after(tick)
    return found


def _effects(db: psycopg.Connection[Any], schedule: Schedule, fired: set[datetime]) -> list[str]:
    noted = Counter(row[0] for row in db.execute("SELECT tick FROM noted WHERE schedule = %s", [schedule.name]))
    found = [f"{schedule.name}: the job of {tick} had {count} effects" for tick, count in noted.items() if count > 1]
    found += [f"{schedule.name}: a job of {tick}, which is not in the ledger" for tick in noted.keys() - fired]
    # Jobs that were there at each of three crashes are put aside, others may still wait.
    waiting, dead = _row(
        db,
        """
        SELECT
            (SELECT count(*) FROM worker.job WHERE options ->> 'schedule' = %s),
            (SELECT count(*) FROM worker.job_dead WHERE options ->> 'schedule' = %s)""",
        schedule.name,
        schedule.name,
    )
    if len(noted) + waiting + dead != len(fired):
        jobs = f"{len(noted)} effects, {waiting} waiting jobs and {dead} dead ones"
        found.append(f"{schedule.name}: {len(fired)} ticks fired, but {jobs}")
    return found


def _mine() -> list[Schedule]:
    return [schedule for schedule in registered() if schedule.actor is scheduled_jobs.note]


def _has_declared(log: Path) -> bool:
    declared = [f"schedule.{change}" for change in ("added", "changed", "confirmed")]
    return any(DEPLOYED in line and any(map(line.__contains__, declared)) for line in log.read_text().splitlines())


def _wait(url: str, query: str, *parameters: Any, meanwhile: Any = lambda: None) -> None:
    deadline = time.monotonic() + _SETTLE
    while not _one(url, query, *parameters)[0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_SETTLE:g} s: {query}")
        meanwhile()
        time.sleep(0.2)


def _one(url: str, query: str, *parameters: Any) -> tuple[Any, ...]:
    # A connection each time: the server may have crashed since the last.
    with psycopg.connect(url, autocommit=True) as db:
        return _row(db, query, *parameters)


def _row(db: psycopg.Connection[Any], query: str, *parameters: Any) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = db.execute(query.encode(), parameters).fetchone()
    assert row is not None, query
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with started() as server, tempfile.TemporaryDirectory() as logs:
        found = chaos(server, Path(logs), seconds=options.seconds, workers=options.workers, seed=options.seed)
    print("\n".join(found) or "each tick is in the ledger once, with its job; no effect counts twice")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
