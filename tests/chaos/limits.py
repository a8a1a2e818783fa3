"""
Limits of queues under fire: `python -m tests.chaos.limits [--workers N] [--jobs N] [--seed N] [--only PHASE]`.

Real workers run jobs that write down when they began and ended, by the database's clock. Meanwhile workers are killed
-9, limits are set, changed and lifted, and the queue is paused. At the end never more jobs were inside than allowed, no
span of a rate's seconds saw more starts, and the places were used. On an embedded Postgres; with
WORKER_TEST_DATABASE_URL on that server. Exit code 1 when a limit was not kept.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.chaos.limited_jobs import TABLE
from tests.chaos.server import started
from worker import Queues
from worker.queue.schema import Schema

# What a worker that starts, or a phase, may take on a busy machine.
_SETTLE = 120.0
# Within this a change holds on every worker.
_PROMISED = 2.0


class Stay(NamedTuple):
    """A job's time inside; until its worker was killed, when that came first."""

    worker: str
    claimed_at: float
    begun_at: float
    ended_at: float


class Fleet:
    """Some workers of eight slots each, of which any may be killed and replaced."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self._url, self._folder, self._stack = url, folder, stack
        self._started = 0
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._started += 1
        command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.limited_jobs", "--pool-size", "9"]
        environment = {**os.environ, "WORKER_DATABASE_URL": self._url, "WORKER_LOG_FORMAT": "json"}
        with (self._folder / f"{self._started}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self.workers.append(process)

    def kill(self, victim: int) -> None:
        """Kill -9, and start another."""
        process = self.workers.pop(victim)
        process.kill()
        process.wait()
        self.start()

    def stop(self) -> None:
        for process in self.workers:
            process.terminate()
        for process in self.workers:
            process.wait(_SETTLE)


class Round:
    """One fleet on one database: sends jobs, waits for them, and looks at what they have written down."""

    def __init__(self, db: psycopg.Connection[Any], fleet: Fleet, jobs: int, seed: int) -> None:
        self.db, self.fleet, self.jobs = db, fleet, jobs
        self.chance = random.Random(seed)  # noqa: S311  # chance that can be repeated
        self.problems: list[str] = []

    def now(self) -> float:
        return float(self.one("SELECT extract(epoch FROM clock_timestamp())::float8"))

    def one(self, query: str, *parameters: Any) -> Any:
        row = self.db.execute(query.encode(), parameters).fetchone()
        assert row is not None, query
        return row[0]

    def begin(self, **limits: Any) -> None:
        """A phase under these limits, which every worker knows from now on."""
        self.db.execute("DELETE FROM stay")
        Queues(self.db).limit("limited", **limits)
        time.sleep(_PROMISED)

    def send(self, number: int, low: float, high: float, *, queue: str = "limited") -> None:
        actor = "stay" if queue == "limited" else "stay_open"
        jobs = [(queue, actor, f'{{"seconds": {self.chance.uniform(low, high)}}}') for _ in range(number)]
        with self.db.cursor() as cur:
            cur.executemany("INSERT INTO worker.job (queue, actor, args) VALUES (%s, %s, %s)", jobs)
        self.db.execute("NOTIFY worker_wake")

    def wait_for(self, ended: int) -> None:
        self._wait(lambda: self.one("SELECT count(ended_at) FROM stay") >= ended, f"{ended} jobs")

    def wait_for_all(self) -> None:
        self._wait(lambda: self.one("SELECT count(*) FROM worker.job") == 0, "all jobs")

    def kill_one(self) -> None:
        victim = self.chance.randrange(len(self.fleet.workers))
        killed = self.one(
            "SELECT id::text FROM worker.worker WHERE name LIKE %s", f"%:{self.fleet.workers[victim].pid}"
        )
        self.fleet.kill(victim)
        dead_at, gone = self.now(), "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE %s"
        self._wait(lambda: self.one(gone, f"carpool {killed}%"), "its sessions to end")
        # What ran there has ended by then, whatever it could still write.
        query = "UPDATE stay SET ended_at = to_timestamp(%s) WHERE worker = %s AND ended_at IS NULL"
        self.db.execute(query, [dead_at, killed])

    def stays(self, queue: str = "limited") -> list[Stay]:
        query = """
            SELECT worker, extract(epoch FROM claimed_at)::float8, extract(epoch FROM begun_at)::float8,
                extract(epoch FROM coalesce(ended_at, clock_timestamp()))::float8
            FROM stay
            WHERE queue = %s
            ORDER BY begun_at"""
        return [Stay(*row) for row in self.db.execute(query, [queue])]

    def expect(self, holds: bool, text: str) -> None:
        print(f"{'' if holds else 'WRONG: '}{text}", flush=True)
        if not holds:
            self.problems.append(text)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _SETTLE
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_SETTLE:g} s: {what}")
            time.sleep(0.02)


def inside(stays: Sequence[Stay], at: float) -> int:
    return sum(stay.begun_at <= at < stay.ended_at for stay in stays)


def most(stays: Sequence[Stay]) -> int:
    return max((inside(stays, stay.begun_at) for stay in stays), default=0)


def most_starts(stays: Sequence[Stay], per: float) -> int:
    starts = sorted(stay.claimed_at for stay in stays)
    return max(sum(start - per < other <= start for other in starts) for start in starts)


def used(stays: Sequence[Stay], places: int) -> float:
    """Which part of the *places* was in use from the first beginning to the last."""
    first, last = min(stay.begun_at for stay in stays), max(stay.begun_at for stay in stays)
    return sum(min(stay.ended_at, last) - stay.begun_at for stay in stays) / (places * (last - first))


def at_once(play: Round) -> None:
    for places, low, high in ((5, 0.06, 0.14), (1, 0.06, 0.14), (5, 0.005, 0.015), (16, 0.06, 0.14)):
        play.begin(running=places)
        play.send(play.jobs, low, high)
        play.wait_for_all()
        stays = play.stays()
        workers = len({stay.worker for stay in stays})
        text = f"{places} at once, {len(stays)} jobs of {low} to {high} s on {workers} workers: {most(stays)} at most"
        play.expect(most(stays) == places, f"{text}, {used(stays, places):.0%} of the places in use")


def killed(play: Round) -> None:
    play.begin(running=5)
    play.send(play.jobs, 0.06, 0.14)
    for part in (0.2, 0.5):
        play.wait_for(int(play.jobs * part))
        play.kill_one()
    play.wait_for_all()
    stays = play.stays()
    play.expect(most(stays) == 5, f"5 at once while two workers are killed -9: {most(stays)} at most")


def changed(play: Round) -> None:
    play.begin(running=6)
    queues = Queues(play.db)
    play.send(2 * play.jobs, 0.06, 0.14)
    play.wait_for(play.jobs // 2)
    queues.limit("limited", running=2)
    lowered = play.now()
    play.wait_for(play.jobs)
    raised = play.now()
    queues.limit("limited", running=8)
    play.wait_for(3 * play.jobs // 2)
    lifted = play.now()
    queues.unlimit("limited")
    play.wait_for_all()
    stays = play.stays()
    before = [stay for stay in stays if stay.begun_at < lowered]
    too_many = [stay.begun_at - lowered for stay in stays
                if lowered < stay.begun_at < raised and inside(stays, stay.begun_at) > 2]  # fmt: skip
    up = next((stay.begun_at - raised for stay in stays
               if raised < stay.begun_at < lifted and inside(stays, stay.begun_at) == 8), 99.0)  # fmt: skip
    off = next((stay.begun_at - lifted for stay in stays
                if stay.begun_at > lifted and inside(stays, stay.begun_at) > 8), 99.0)  # fmt: skip
    play.expect(most(before) == 6, f"before the change: {most(before)} at most, of 6")
    late = max(too_many, default=0.0)
    play.expect(late < _PROMISED, f"lowered to 2: {len(too_many)} began beyond it, the last after {late:.2f} s")
    play.expect(up < _PROMISED, f"raised to 8: 8 inside after {up:.2f} s")
    play.expect(off < _PROMISED, f"lifted: more than 8 inside after {off:.2f} s")


def paused(play: Round) -> None:
    play.begin(running=4)
    queues = Queues(play.db)
    play.send(play.jobs, 0.06, 0.14)
    play.wait_for(play.jobs // 4)
    queues.pause("limited")
    begun = play.now()
    time.sleep(_PROMISED + 1.0)
    resumed = play.now()
    queues.resume("limited")
    play.wait_for_all()
    stays = play.stays()
    late = max((stay.begun_at - begun for stay in stays if begun < stay.begun_at < resumed), default=0.0)
    play.expect(late < _PROMISED, f"paused beside the limit: the last began {late:.2f} s later")
    play.expect(most(stays) == 4, f"before and after the pause: {most(stays)} at most, of 4")


def starts(play: Round) -> None:
    for number, per, kills in ((20, 2.0, 1), (1, 0.2, 0), (50, 0.5, 0)):
        play.begin(starts=number, per=per)
        jobs = play.jobs // 2 if number > 1 else play.jobs // 8
        play.send(jobs, 0.01, 0.03)
        for _ in range(kills):
            play.wait_for(jobs // 2)
            play.kill_one()
        play.wait_for_all()
        stays = play.stays()
        span = max(stay.claimed_at for stay in stays) - min(stay.claimed_at for stay in stays)
        least = (jobs - 1) // number * per
        text = f"{number} starts in {per:g} s, {kills} killed: {most_starts(stays, per)} at most in any such span"
        play.expect(most_starts(stays, per) <= number, f"{text}; {jobs} jobs in {span:.2f} s, {least:.2f} s at least")


def beside(play: Round) -> None:
    """A limited queue and one without a limit on the same slots: each goes on."""
    play.begin(running=3)
    play.send(play.jobs * 10, 0.002, 0.004, queue="open")
    play.send(play.jobs // 2, 0.02, 0.04)
    play.wait_for_all()
    limited, others = play.stays(), play.stays("open")
    first = min(stay.begun_at for stay in [*limited, *others])
    ends = [max(stay.ended_at for stay in stays) - first for stays in (limited, others)]
    during = sum(stay.begun_at - first < ends[0] for stay in others)
    text = (
        f"3 at once beside {len(others)} jobs without a limit: {most(limited)} at most, {used(limited, 3):.0%} in use"
    )
    over = f"over after {ends[0]:.2f} s with {during} others begun; those after {ends[1]:.2f} s"
    play.expect(most(limited) == 3 and during > 0, f"{text}, {over}")


PHASES = {phase.__name__: phase for phase in (at_once, killed, changed, paused, starts, beside)}


def chaos(url: str, folder: Path, phases: Sequence[str], *, workers: int, jobs: int, seed: int) -> list[str]:
    """Some *phases*, one after the other; returns what is wrong."""
    with psycopg.connect(url, autocommit=True) as db, ExitStack() as stack:
        Schema().migrate(db)
        db.execute(TABLE)
        fleet = Fleet(url, folder, stack)
        for _ in range(workers):
            fleet.start()
        play = Round(db, fleet, jobs, seed)
        play._wait(lambda: play.one("SELECT count(*) FROM worker.worker") == workers, "the workers")
        for name in phases:
            before = time.monotonic()
            PHASES[name](play)
            print(f"-- {name}: {time.monotonic() - before:.1f} s", flush=True)
        fleet.stop()
        left = play.one("SELECT count(*) FROM worker.job_dead")
        play.expect(left == 0, f"{left} dead jobs")
    return play.problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=PHASES, help="repeat for more")
    options = parser.parse_args()
    phases, play = (
        options.only or list(PHASES),
        {"workers": options.workers, "jobs": options.jobs, "seed": options.seed},
    )
    with started() as server, tempfile.TemporaryDirectory() as logs:
        found = chaos(server.url, Path(logs), phases, **play)
    print("the limits were kept" if not found else f"{len(found)} of it wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
