"""Runs the works on every side, round by round, so that what else happens on the machine meets all alike."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import psycopg

from tests.bench import machine, stores
from tests.bench.network import Distance, distant
from tests.bench.peer import Places
from tests.bench.results import Results
from tests.bench.server import count_statements, cpu_seconds, process_cpu_seconds
from tests.bench.side_process import SideError, SideProcess, ask

SENDS = ("enqueue", "bulk")
"""The works for which a side need only send."""
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
    distance: Distance | None = None
    counted: dict[tuple[str, str], Figures] = field(default_factory=dict)

    def describe(self, names: list[str]) -> None:
        """Ask each side what it is; those that cannot be had are left out, by name."""
        for name in names:
            with self._database() as places:
                try:
                    self.results.sides[name] = ask(name, places, "described")
                except SideError as exc:
                    self.results.left_out[name] = str(exc)
                    self.say(f"left out: {name} ({exc})")

    def run(self, work: str, name: str) -> None:
        """One run of *work* on one side; a side that fails is left out of this work from now on."""
        if name in self.results.failed.get(work, {}) or (self.results.sides[name]["only_sends"] and work not in SENDS):
            return
        try:
            with self._database() as places:
                noise = machine.Noise(self._own_seconds)
                found = WORKS[work](self, name, places)
        except SideError as exc:
            self.results.failed.setdefault(work, {})[name] = str(exc)
            self.say(f"{work:8} {name:18} failed: {exc}")
            return
        if not found:
            return  # it has no call for it
        found["others % of machine"] = noise.percent()
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

    def distant(self, name: str, places: Places) -> Figures:
        """Jobs with one INSERT while each round trip to the stores takes 1 ms longer."""
        assert self.distance is not None
        found = self._ran(name, places, "inserts", far=self.distance)
        return {**found, "ms more per round trip": self.distance.milliseconds()}

    def enqueue(self, name: str, places: Places) -> Figures:
        """Sends one by one, each on its own; a fifth of the jobs."""
        return dict(ask(name, places, "sent", "enqueue", max(1, self.jobs // 5)))

    def bulk(self, name: str, places: Places) -> Figures:
        """Sends of 500 and of 10,000 at once, where there is a call for it."""
        return dict(ask(name, places, "sent", "bulk", self.jobs))

    def latency(self, name: str, places: Places) -> Figures:
        """From a send to the start of its job, one each 50 ms to an idle worker."""
        return self._paced(name, places, 0.05, number=100, warm_up=10)

    def sparse(self, name: str, places: Places) -> Figures:
        """From a send to the start of its job, one each 2 s to an idle worker."""
        return self._paced(name, places, 2.0, number=5, warm_up=1)

    def idle(self, name: str, places: Places) -> Figures:
        """A worker with nothing to do for 20 s."""
        found = ask(name, places, "idled", "drain")
        calls = {
            f"{what} per s": found[what] / found["seconds"] for what in ("statements", "commands") if what in found
        }
        return {
            **calls,
            "worker CPU % of a core": 100 * found["worker cpu"] / found["seconds"],
            "connections": found["connections"],
        }

    def _ran(self, name: str, places: Places, work: str, far: Distance | None = None) -> Figures:
        if self.counts and (name, work) not in self.counted:
            self.counted[name, work] = self._count(name, work)
        ask(name, places, "filled", work, self.jobs)
        found = ask(name, places if far is None else far.places(places), "ran", work, self.jobs)
        per_job = {"commands per job": found["commands"] / self.jobs} if "commands" in found else {}
        return {
            "jobs per s": self.jobs / found["seconds"],
            "worker us CPU per job": 1e6 * found["worker cpu"] / self.jobs,
            "server us CPU per job": 1e6 * found["server cpu"] / self.jobs,
            "connections": found["connections"],
            **per_job,
            **self.counted.get((name, work), {}),
        }

    def _paced(self, name: str, places: Places, pace: float, *, number: int, warm_up: int) -> Figures:
        ask(name, places, "filled", "latency")
        with SideProcess(name, places, "awaited", "latency", number + warm_up) as worker:
            worker.answer()
            ask(name, places, "paced", "latency", number + warm_up, pace=pace)
            delays = sorted(worker.answer()[warm_up:])
        return {
            "p50 ms": 1000 * statistics.median(delays),
            "p99 ms": 1000 * delays[int(len(delays) * 0.99)],
        }

    def _count(self, name: str, work: str) -> Figures:
        """Statements of a short run of its own, as counting slows the server down."""
        with self._database() as places:
            with psycopg.connect(places.postgres, autocommit=True) as db:
                if not count_statements(db):
                    return {}
            ask(name, places, "filled", f"counted {work}", _COUNTED)
            with psycopg.connect(places.postgres, autocommit=True) as db:
                db.execute("SELECT pg_stat_statements_reset()")
            found = ask(name, places, "ran", f"counted {work}", _COUNTED)
        counts = {"statements per job": found["statements at the server"], "round trips per job": found.get("trips")}
        return {what: count / _COUNTED for what, count in counts.items() if count is not None}

    @contextmanager
    def _database(self) -> Iterator[Places]:
        """An empty database, and an empty Redis."""
        if self.places.redis is not None:
            stores.flush_redis(self.places.redis)
        with stores.database(self.db, self.places.postgres) as url:
            yield replace(self.places, postgres=url)

    def _own_seconds(self) -> float:
        """CPU of ourselves, of the sides that have ended, and of the stores."""
        return cpu_seconds(self.db) + sum(map(process_cpu_seconds, [os.getpid(), *self.pids]))


WORKS: dict[str, Callable[[Bench, str, Places], Figures]] = {
    work.__name__: work
    for work in (
        Bench.drain,
        Bench.inserts,
        Bench.distant,
        Bench.enqueue,
        Bench.bulk,
        Bench.latency,
        Bench.sparse,
        Bench.idle,
    )
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
        rabbitmq_pid = None if (rabbitmq := others["rabbitmq"]) is None else rabbitmq.pid
        places = Places(postgres.url, node_modules=node_modules, rabbitmq_pid=rabbitmq_pid, **urls)
        bench = Bench(db, places, pids, jobs, results, say, counts)
        if "distant" in works:
            bench.distance = stack.enter_context(distant(places))
            pids.append(bench.distance.pid)
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
