"""Runs the works on every side, round by round, so that what else happens on the machine meets all alike."""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psycopg
from psycopg import sql

from tests.bench import machine, stores
from tests.bench.peer import Places
from tests.bench.results import Results
from tests.bench.server import count_statements, cpu_seconds, process_cpu_seconds
from tests.bench.side import WARM_UP

PATIENCE = 600.0
_LATENCIES = 100
_COUNTED = 1000

Figures = dict[str, float]


@dataclass
class Bench:
    """The servers, and who takes part; results are collected in `results`."""

    db: psycopg.Connection
    places: Places
    pids: list[int]
    jobs: int
    results: Results
    say: Callable[[str], None]
    counts: bool
    counted: dict[tuple[str, str], Figures] = field(default_factory=dict)

    def describe(self, names: list[str]) -> None:
        """Ask each side what it is; those that cannot be had are left out, by name."""
        for name in names:
            with self._database() as places:
                try:
                    self.results.sides[name] = self._stage(name, places, "described", "")
                except SideError as exc:
                    self.results.left_out[name] = str(exc)
                    self.say(f"left out: {name} ({exc})")

    def run(self, work: str, name: str) -> None:
        """One run of *work* on one side; a side that fails is left out of this work from now on."""
        if name in self.results.failed.get(work, {}):
            return
        try:
            with self._database() as places, self._noise() as others:
                found = WORKS[work](self, name, places)
        except SideError as exc:
            self.results.failed.setdefault(work, {})[name] = str(exc)
            self.say(f"{work:8} {name:18} failed: {exc}")
            return
        found["others % of machine"] = others()
        self.results.runs.setdefault(work, {}).setdefault(name, []).append(found)
        first, value = next(iter(found.items()), ("", 0.0))
        self.say(f"{work:8} {name:18} {value:12,.1f} {first}")

    # The works

    def drain(self, name: str, places: Places) -> Figures:
        """Jobs that do nothing, sent beforehand."""
        return self._ran(name, places, "drain")

    def inserts(self, name: str, places: Places) -> Figures:
        """Jobs with one INSERT, ours completed in the same transaction."""
        return self._ran(name, places, "inserts")

    def enqueue(self, name: str, places: Places) -> Figures:
        """Sends one by one, each on its own; a fifth of the jobs."""
        return dict(self._stage(name, places, "sent", "enqueue", max(1, self.jobs // 5)))

    def bulk(self, name: str, places: Places) -> Figures:
        """Sends of many at once, where there is a call for it."""
        return dict(self._stage(name, places, "sent", "bulk"))

    def latency(self, name: str, places: Places) -> Figures:
        """From a send to the start of its job, one each 50 ms to an idle worker."""
        number = _LATENCIES + WARM_UP
        self._stage(name, places, "filled", "latency", 0)
        with self._started(name, places, "ran", "latency", number) as worker:
            worker.line()
            self._stage(name, places, "paced", "latency", number)
            delays = sorted(json.loads(worker.line())["delays"][WARM_UP:])
        return {"p50 ms": 1000 * statistics.median(delays), "p99 ms": 1000 * delays[int(len(delays) * 0.99)]}

    def idle(self, name: str, places: Places) -> Figures:
        """A worker with nothing to do for 20 s."""
        found = self._stage(name, places, "idled", "drain")
        return {
            "commits per s": found["commits"] / found["seconds"],
            "worker CPU % of a core": 100 * found["worker cpu"] / found["seconds"],
            "connections": found["connections"],
        }

    def _ran(self, name: str, places: Places, work: str) -> Figures:
        if self.counts and (name, work) not in self.counted:
            self.counted[name, work] = self._count(name, work)
        self._stage(name, places, "filled", work)
        found = self._stage(name, places, "ran", work)
        per_job = {"commands per job": found["commands"] / self.jobs} if "commands" in found else {}
        return {
            "jobs per s": self.jobs / found["seconds"],
            "worker us CPU per job": 1e6 * found["worker cpu"] / self.jobs,
            "server us CPU per job": 1e6 * found["server cpu"] / self.jobs,
            "connections": found["connections"],
            **per_job,
            **self.counted.get((name, work), {}),
        }

    def _count(self, name: str, work: str) -> Figures:
        """Statements of a short run of its own, as counting slows the server down."""
        with self._database() as places:
            with psycopg.connect(places.postgres, autocommit=True) as db:
                if not count_statements(db):
                    return {}
            self._stage(name, places, "filled", f"counted {work}", _COUNTED)
            with psycopg.connect(places.postgres, autocommit=True) as db:
                db.execute("SELECT pg_stat_statements_reset()")
            found = self._stage(name, places, "ran", f"counted {work}", _COUNTED)
        counts = {"statements per job": found["statements at the server"], "round trips per job": found.get("trips")}
        return {what: count / _COUNTED for what, count in counts.items() if count is not None}

    # Processes

    def _stage(self, name: str, places: Places, stage: str, work: str, jobs: int | None = None) -> Any:
        with self._started(name, places, stage, work, self.jobs if jobs is None else jobs) as process:
            return json.loads(process.line())

    @contextmanager
    def _started(self, name: str, places: Places, stage: str, work: str, jobs: int) -> Iterator[_Process]:
        told = {"peer": name, "places": asdict(places), "stage": stage, "work": work, "jobs": jobs}
        with _Process(json.dumps(told)) as process:
            yield process

    @contextmanager
    def _database(self) -> Iterator[Places]:
        """An empty database, and an empty Redis."""
        name = f"bench_{secrets.token_hex(4)}"
        identifier = sql.Identifier(name)
        self.db.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        if self.places.redis is not None:
            stores.flush_redis(self.places.redis)
        try:
            yield replace(self.places, postgres=stores.database_url(self.places.postgres, name))
        finally:
            self.db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))

    @contextmanager
    def _noise(self) -> Iterator[Callable[[], float]]:
        """Tells afterwards which part of the machine, in percent, was used by processes that are not of the bench."""
        started, busy, own = time.monotonic(), machine.busy_seconds(), self._own_seconds()
        ended: list[float] = []
        yield lambda: ended[0]
        seconds = (time.monotonic() - started) * (os.cpu_count() or 1)
        used = machine.busy_seconds() - busy - (self._own_seconds() - own)
        ended.append(max(0.0, 100 * used / seconds))

    def _own_seconds(self) -> float:
        """CPU of ourselves, of the sides that have ended, and of the stores."""
        return cpu_seconds(self.db) + sum(map(process_cpu_seconds, [os.getpid(), *self.pids]))


class SideError(Exception):
    """A side could not do what was asked; the last line that it said."""


class _Process:
    """A side's process; killed at the end of the block if it has not ended by then."""

    def __init__(self, told: str) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in `__exit__`)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.side"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(f"{told}\n")
        self._process.stdin.close()

    def line(self) -> str:
        """
        The next line that it says.

        Raises:
            SideError: It ended without one.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(PATIENCE)
            self._said.seek(0)
            raise SideError(self._said.read().strip().rpartition("\n")[2] or "it said nothing")
        return line

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._process.wait(PATIENCE if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._said.close()


WORKS: dict[str, Callable[[Bench, str, Places], Figures]] = {
    work.__name__: work for work in (Bench.drain, Bench.inserts, Bench.enqueue, Bench.bulk, Bench.latency, Bench.idle)
}


def measure(
    works: list[str],
    names: list[str],
    *,
    jobs: int,
    runs: int,
    node_modules: str | None,
    say: Callable[[str], None],
    keep: Callable[[Results], None],
    counts: bool = False,
) -> Results:
    """
    Every work on every side, *runs* times, the sides in another order each time.

    Args:
        say: Called with a line for each run.
        counts: Also count statements and round trips, in a short run of each side beforehand.
        keep: Called after each run with what there is by then.
    """
    results = Results.begin(jobs=jobs, runs=runs)
    with ExitStack() as stack:
        postgres = stack.enter_context(stores.postgres())
        others = {
            store: stack.enter_context(start()) if any(store in name for name in names) else None
            for store, start in stores.OTHERS.items()
        }
        urls = {store: found and found.url for store, found in others.items()}
        db = stack.enter_context(psycopg.connect(postgres.url, autocommit=True))
        results.stores = {found.store: found.version for found in [postgres, *others.values()] if found is not None}
        pids = [found.pid for found in others.values() if found is not None]
        bench = Bench(db, Places(postgres.url, node_modules=node_modules, **urls), pids, jobs, results, say, counts)
        bench.describe(names)
        for turn in range(runs):
            for work in works:
                for name in _rotated([*results.sides], turn):
                    bench.run(work, name)
                    keep(results)
    return results


def _rotated(names: list[str], turn: int) -> list[str]:
    turn %= max(1, len(names))
    return names[turn:] + names[:turn]
