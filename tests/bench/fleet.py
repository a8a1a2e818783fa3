"""
`python -m tests.bench.fleet [--workers 64,32,16,8,4,2,1] [--jobs N]`: does a job cost the same in a large fleet?

All workers start on one Postgres, and leave step by step. The fleet is watched while it has nothing to do; then, at
each size, jobs are committed in one transaction, and what the server spends until the last one is done is told: its
CPU, in rounds by themselves, and then statements, and rows that claims locked and rows that they passed over because
another worker had them, by the plans that the server writes to its log. Exit code 0 when the targets hold.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

import worker
from tests.bench import machine, stores
from tests.bench.peer import SLOTS, Places
from tests.bench.peers.carpool import Carpool
from tests.bench.results import OURS
from tests.bench.server import count_statements, cpu_seconds, own_seconds, process_cpu_seconds, statements
from tests.bench.side_process import SideProcess, ask
from tests.bench.tally import Tally
from tests.bench.verdict import Verdict, conclude
from tests.factories import opened_pool, scalar
from tests.waiting import wait_until
from worker.queue.schema import Schema

MOST_TIMES = 1.3
"""As much as in the smallest fleet a job costs in the largest one."""

_WORK = "drain"
_PATIENCE = 300.0
_SETTLED = 5.0

Figures = dict[str, float]


class Locks(NamedTuple):
    """What the claims in a server's log did: rows they looked at, and rows they locked."""

    claims: int
    seen: float
    locked: float


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--workers", default="64,32,16,8,4,2,1", help="sizes, the largest first (64,32,16,8,4,2,1)")
    parser.add_argument("--jobs", type=int, default=20_000, help="in each round (20000)")
    parser.add_argument("--runs", type=int, default=3, help="rounds at each size (3)")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to watch the idle fleet (20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    sizes = sorted({int(size) for size in options.workers.split(",")}, reverse=True)
    settings = {"max_connections": str(100 + (SLOTS + 1) * sizes[0]), "session_preload_libraries": "auto_explain"}
    with ExitStack() as stack:
        server = stack.enter_context(stores.postgres(**settings))
        admin = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        url = stack.enter_context(stores.database(admin, server.url))
        assert server.log is not None
        fleet = Fleet(Places(url), stack.enter_context(psycopg.connect(url, autocommit=True)), server.log)
        noise = machine.Noise(lambda: own_seconds(admin) + fleet.cpu_seconds())
        stack.callback(fleet.shrink, 0)
        fleet.grow(sizes[0])
        idle = fleet.idle(options.idle)
        print(
            f"{sizes[0]} idle workers: {idle['statements per s']:.1f} statements a second in all,"
            f" {idle['server CPU % of a core']:.1f} % of a core at the server, {idle['connections']:.0f} connections"
        )
        found: dict[int, Figures] = {}
        for size in sizes:
            fleet.shrink(size)
            found[size] = {**fleet.cost(options.jobs, options.runs), **fleet.counts(options.jobs)}
            print(_line(size, found[size]), flush=True)
        smallest, largest = found[sizes[-1]], found[sizes[0]]
        verdicts = [
            Verdict(f"{figure}, {sizes[0]} workers / {sizes[-1]}", largest[figure] / smallest[figure], MOST_TIMES)
            for figure in ("server us CPU per job", "statements per job")
        ]
        kept = {"jobs": options.jobs, "idle": idle, "workers": found}
        return conclude(verdicts, kept, others=noise.percent(), keep=options.json)


class Fleet:
    """Workers that run, and what they cost the server."""

    def __init__(self, places: Places, db: psycopg.Connection, log: Path) -> None:
        self._places = places
        self._db = db
        self._log = log
        self._workers: list[SideProcess] = []
        self._sender = Carpool(replace(places), Tally())
        ask(OURS, places, "filled", _WORK)
        count_statements(db)
        db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def grow(self, size: int) -> None:
        """Start workers until there are *size*, and wait until all are there."""
        self._workers += [SideProcess(OURS, self._places, "served", _WORK) for _ in range(size - len(self._workers))]
        for each in self._workers:
            each.answer()
        time.sleep(_SETTLED)

    def shrink(self, size: int) -> None:
        """End workers until there are *size*."""
        leaving, self._workers = self._workers[size:], self._workers[:size]
        for each in leaving:
            each.end()
        for each in leaving:
            with each:
                pass

    def cpu_seconds(self) -> float:
        """Of the workers that are there."""
        return sum(process_cpu_seconds(each.pid) for each in self._workers)

    def idle(self, seconds: float) -> Figures:
        self._counting(True)
        before, cpu = statements(self._db), cpu_seconds(self._db)
        time.sleep(seconds)
        found = {
            "statements per s": (statements(self._db) - before) / seconds,
            "server CPU % of a core": 100 * (cpu_seconds(self._db) - cpu) / seconds,
            "connections": float(
                scalar(
                    self._db,
                    "SELECT count(*) - 1 FROM pg_stat_activity"
                    " WHERE datname = current_database() AND backend_type = 'client backend'",
                )
            ),
        }
        self._counting(False)
        return found

    def cost(self, jobs: int, runs: int) -> Figures:
        rounds = [self._round(jobs) for _ in range(runs)]
        return {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}

    def counts(self, jobs: int) -> Figures:
        """Statements, and rows that claims looked at, in a round of its own, as counting slows the server down."""
        self._counting(True)
        before, written = statements(self._db), self._log.stat().st_size
        self._round(jobs)
        count = statements(self._db) - before
        self._counting(False)
        locks = Locks(*map(sum, zip((0, 0, 0), *_claims(self._log, written), strict=True)))
        return {
            "statements per job": count / jobs,
            "claims per job": locks.claims / jobs,
            "rows locked per job": locks.locked / jobs,
            "rows passed over per job": (locks.seen - locks.locked) / jobs,
        }

    def _round(self, jobs: int) -> Figures:
        self._db.execute("VACUUM ANALYZE")
        self._db.execute("CHECKPOINT")
        for each in self._workers:
            _done(each)
        with (
            opened_pool(self._places.postgres) as pool,
            self._sender.broker.on(pool, Schema()),
            pool.connection() as conn,
            worker.bind(conn),
        ):
            self._sender.send_many(_WORK, range(jobs))
            cpu, started = cpu_seconds(self._db), time.monotonic()
        wait_until(self._is_done, _PATIENCE, "the fleet to drain")
        seconds, spent = time.monotonic() - started, cpu_seconds(self._db) - cpu
        did = [_done(each) for each in self._workers]
        if (ran := sum(each["jobs"] for each in did)) < jobs:
            raise RuntimeError(f"the fleet ran {ran:.0f} jobs of {jobs}")
        return {
            "jobs per s": jobs / seconds,
            "server us CPU per job": 1e6 * spent / jobs,
            "worker us CPU per job": 1e6 * sum(each["worker cpu"] for each in did) / jobs,
            "workers with work": sum(each["jobs"] > 0 for each in did),
        }

    def _is_done(self) -> bool:
        return not scalar(self._db, "SELECT EXISTS (SELECT FROM worker.job)")

    def _counting(self, yes: bool) -> None:
        """Let every session count statements and write the plans of what it runs to the log, or stop it."""
        tracked, from_seconds = ("top", "0") if yes else ("none", "-1")
        for setting in (
            f"pg_stat_statements.track = {tracked}",
            f"auto_explain.log_min_duration = {from_seconds}",
            "auto_explain.log_analyze = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_format = json",
        ):
            self._db.execute(f"ALTER SYSTEM SET {setting}".encode())
        self._db.execute("SELECT pg_reload_conf()")
        time.sleep(1.0)


def _done(worker: SideProcess) -> Figures:
    worker.tell("what have you done since I asked last?")
    done: Figures = worker.answer()
    return done


def _claims(log: Path, start: int) -> Iterator[Locks]:
    """The plans that lock rows, which are the claims, in what was written to *log* from byte *start* on."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    # A plan is written over several lines, all but its first one indented by a tab.
    for found in re.finditer(r"plan:\n((?:\t.*\n)+)", text):
        try:
            plan = json.loads(found[1])
        except json.JSONDecodeError:
            continue
        locking = [*_nodes(plan["Plan"], "LockRows")]
        if locking and "SKIP LOCKED" in plan["Query Text"]:
            yield Locks(1, sum(map(_rows, (each["Plans"][0] for each in locking))), sum(map(_rows, locking)))


def _nodes(plan: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    if plan["Node Type"] == kind:
        yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child, kind)


def _rows(node: dict[str, Any]) -> float:
    return float(node["Actual Rows"]) * float(node["Actual Loops"])


def _line(size: int, found: Figures) -> str:
    return (
        f"{size:3} workers: {found['jobs per s']:7,.0f} jobs a second, {found['workers with work']:.0f} had some; a job"
        f" costs {found['server us CPU per job']:.0f} us of the server and {found['worker us CPU per job']:.0f} us of a"
        f" worker, {found['statements per job']:.3f} statements; claims lock {found['rows locked per job']:.2f} rows"
        f" for it and pass {found['rows passed over per job']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
