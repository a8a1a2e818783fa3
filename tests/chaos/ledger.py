"""
A ledger of money under kill -9 and restarts: `python -m tests.chaos.ledger [--transfers N] [--workers N] [--seed N]`.

Worker processes book transfers, each in its job's transaction, and each sends a receipt. Meanwhile workers are killed
with -9 and started again at random, and Postgres is restarted, now fast, now immediate. At the end every transfer must
be booked exactly once, with exactly one receipt, the balances must match, nothing may be left over. Prints what it saw
and a verdict; exit code 1 if anything is wrong. Repeat a run by its seed.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from tests.chaos.ledger_jobs import SCHEMA, transfer
from tests.chaos.logs import complaints
from tests.chaos.server import Server, started
from worker import bind
from worker.queue.schema import Schema

ROOT = Path(__file__).parents[2]
ACCOUNTS = 100
OPENING_BALANCE = 1_000_000
_BATCH = 1000
_LOOK = 0.25

# Each finds what must not be: a name, and how many.
AUDITS = {
    "transfers not booked": "SELECT count(*) FROM generate_series(1, %(transfers)s) AS n"
    " WHERE NOT EXISTS (SELECT FROM booking WHERE transfer = n)",
    "transfers booked twice": "SELECT count(*) FROM (SELECT FROM booking GROUP BY transfer HAVING count(*) > 1) AS x",
    "receipts missing": "SELECT count(*) FROM booking WHERE NOT EXISTS"
    " (SELECT FROM receipt WHERE receipt.transfer = booking.transfer)",
    "receipts doubled": "SELECT count(*) FROM (SELECT FROM receipt GROUP BY transfer HAVING count(*) > 1) AS x",
    "audits missing": "SELECT count(*) FROM receipt WHERE transfer %% 10 = 0"
    " AND NOT EXISTS (SELECT FROM audited WHERE audited.transfer = receipt.transfer)",
    "wrong balances": "SELECT count(*) FROM account WHERE balance <> %(opening)s"
    " + coalesce((SELECT sum(amount) FROM booking WHERE target = id), 0)"
    " - coalesce((SELECT sum(amount) FROM booking WHERE source = id), 0)",
    "money made or lost": "SELECT abs(sum(balance) - count(*) * %(opening)s)::bigint FROM account",
    "jobs left": "SELECT count(*) FROM worker.job",
    "jobs dead": "SELECT count(*) FROM worker.job_dead",
}


class Fleet:
    """Worker processes, some of which are dead at any time."""

    def __init__(self, url: str, size: int, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._num_started = 0
        self.workers = [self._start() for _ in range(size)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._num_started += 1
        environment = {**os.environ, "WORKER_DATABASE_URL": self._url, "WORKER_LOG_FORMAT": "json"}
        arguments = ["run", "--jobs", "tests.chaos.ledger_jobs", "--pool-size", "5"]
        with Path(self._folder, f"worker-{self._num_started}.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "worker", *arguments], cwd=ROOT, stderr=log, env=environment)

    def kill(self, chance: random.Random) -> None:
        """kill -9 one of them, and start another in its place."""
        place = chance.randrange(len(self.workers))
        self.workers[place].kill()
        self.workers[place].wait(30)
        self.workers[place] = self._start()

    def revive(self) -> int:
        """Start those anew that ended by themselves; how many."""
        ended = [place for place, worker in enumerate(self.workers) if worker.poll() is not None]
        for place in ended:
            self.workers[place] = self._start()
        return len(ended)

    def stop(self) -> list[int]:
        """End all of them in order; their exit codes."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        return [worker.wait(60) for worker in self.workers]

    def end(self) -> None:
        """Whatever still runs runs no more."""
        for worker in self.workers:
            worker.kill()
            worker.wait(30)


def main() -> int:
    options = _options()
    chance = random.Random(options.seed)  # noqa: S311  # chaos, repeatable
    print(f"seed {options.seed}: {options.transfers} transfers, {options.workers} workers", flush=True)
    with started() as server, tempfile.TemporaryDirectory(prefix="carpool-ledger-") as folder:
        _prepare(server, options.transfers, chance)
        with _fleet(server, options.workers, Path(folder)) as fleet:
            story = _run(server, fleet, options, chance)
            codes = fleet.stop()
        wrong = _audit(server, options.transfers)
        print(f"{story}; exit codes at the end {codes}; errors in the logs {dict(complaints(Path(folder)))}")
    if codes != [0] * len(codes):
        wrong["workers that did not stop in order"] = sum(code != 0 for code in codes)
    for name, count in wrong.items():
        print(f"{name}: {count}")
    print("the ledger is wrong" if any(wrong.values()) else "the ledger is right")
    return 1 if any(wrong.values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ledger", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--transfers", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds between two kill -9, on average")
    parser.add_argument("--restarts", type=int, default=2, help="of Postgres; every second one is immediate")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds until it gives up")
    return parser.parse_args()


def _prepare(server: Server, transfers: int, chance: random.Random) -> None:
    with psycopg.connect(server.url, autocommit=True) as conn:
        Schema().migrate(conn)
        conn.execute(SCHEMA)
        conn.execute("INSERT INTO account SELECT n, %s FROM generate_series(1, %s) AS n", [OPENING_BALANCE, ACCOUNTS])
    with psycopg.connect(server.url) as conn:
        for first in range(1, transfers + 1, _BATCH):
            with conn.transaction(), bind(conn):
                for number in range(first, min(first + _BATCH, transfers + 1)):
                    source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
                    transfer.send(number, source, target, chance.randint(1, 100))


@contextmanager
def _fleet(server: Server, size: int, folder: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        fleet = Fleet(server.url, size, folder)
        stack.callback(fleet.end)
        yield fleet


def _run(server: Server, fleet: Fleet, options: argparse.Namespace, chance: random.Random) -> str:
    """Until no job is left: kill, restart, look. Restarts are spread over the work; returns what was done."""
    begun = time.monotonic()
    restart_at = [options.transfers * (1 - (n + 1) / (options.restarts + 1)) for n in range(options.restarts)]
    kills = restarts = ended = 0
    next_kill = begun + chance.expovariate(1 / options.kill_every)
    while (left := _transfers_left(server)) or _jobs_left(server):
        if time.monotonic() - begun > options.patience:
            print(f"gave up after {options.patience:g} s with {left} transfers left")
            break
        if server.restarts and restarts < len(restart_at) and left <= restart_at[restarts]:
            server.restart(immediate=restarts % 2 == 1)
            restarts += 1
        if time.monotonic() >= next_kill:
            fleet.kill(chance)
            kills += 1
            next_kill = time.monotonic() + chance.expovariate(1 / options.kill_every)
        ended += fleet.revive()
        time.sleep(_LOOK)
    took = time.monotonic() - begun
    return f"{took:.0f} s, {kills} kill -9, {restarts} restarts of Postgres, {ended} workers ended by themselves"


def _transfers_left(server: Server) -> int:
    return _count(server, "SELECT count(*) FROM worker.job WHERE actor = 'transfer'")


def _jobs_left(server: Server) -> int:
    return _count(server, "SELECT count(*) FROM worker.job")


def _audit(server: Server, transfers: int) -> dict[str, int]:
    parameters = {"transfers": transfers, "opening": OPENING_BALANCE}
    return {name: _count(server, query, parameters) for name, query in AUDITS.items()}


def _count(server: Server, query: str, parameters: dict[str, int] | None = None) -> int:
    with psycopg.connect(server.url, autocommit=True) as conn:
        row = conn.execute(query.encode(), parameters).fetchone()
    return 0 if row is None else int(row[0])


if __name__ == "__main__":
    sys.exit(main())
