"""
Random faults over several workers: `python -m tests.chaos.faults [--seconds N] [--workers N] [--seed N]`.

Each worker has its own cable to the server. One fault after the other, in an order drawn by chance: kill -9, a freeze
of the process for longer than its lease, cuts of the network in both directions and in one, slowness, resets, refused
connections, terminated sessions, and restarts of Postgres. Jobs are sent all the while. At the end every effect must
be there exactly once, nothing left over, no worker may have had more sessions than its pool, and each must end in
order.
Prints how long each kind of fault was felt after it was over, and a verdict; exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.cable import Cable
from tests.chaos.fault_jobs import NAME, SCHEMA, effect
from tests.chaos.logs import complaints
from tests.chaos.server import Server, started
from worker import bind
from worker.queue.schema import Schema

ROOT = Path(__file__).parents[2]
POOL_SIZE = 4
LEASE = 10.0
# Enough for every worker to have something to do at any time.
_PER_SECOND = 60
_LOOK = 0.02
_PATIENCE = 60.0

AUDITS = {
    "effects missing": "SELECT count(*) FROM generate_series(1, %(sent)s) AS n"
    " WHERE NOT EXISTS (SELECT FROM effect WHERE number = n)",
    "effects doubled": "SELECT count(*) FROM (SELECT FROM effect GROUP BY number HAVING count(*) > 1) AS doubled",
    "followers missing": "SELECT count(*) FROM generate_series(3, %(sent)s, 3) AS n"
    " WHERE NOT EXISTS (SELECT FROM effect WHERE number = -n)",
    "jobs left": "SELECT count(*) FROM worker.job",
    "jobs dead": "SELECT count(*) FROM worker.job_dead",
}


class Worker:
    """A worker process at the end of its own cable."""

    def __init__(self, name: str, cable: Cable, folder: Path) -> None:
        self.name, self.cable = name, cable
        self._folder = folder
        self._num_started = 0
        self.start()

    def start(self) -> None:
        self._num_started += 1
        environment = {
            **os.environ, "WORKER_DATABASE_URL": self.cable.url, "WORKER_LOG_FORMAT": "json", NAME: self.name,
            "WORKER_LEASE": f"{LEASE:g}",
        }  # fmt: skip
        command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.fault_jobs"]
        with Path(self._folder, f"worker-{self.name}-{self._num_started}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--pool-size", str(POOL_SIZE)], cwd=ROOT, stderr=log, env=environment
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def revive(self) -> bool:
        """Start it anew if it has ended by itself, as a service manager would; whether it had."""
        if self.process.poll() is None:
            return False
        self.start()
        return True

    def end(self) -> None:
        """It runs no more."""
        self.process.kill()
        self.process.wait(_PATIENCE)

    @property
    def memory(self) -> float:
        """What it keeps in memory, in MiB."""
        with suppress(OSError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        return 0.0


class Sending(threading.Thread):
    """Sends jobs straight to the server until it is told to stop; what failed is sent again."""

    def __init__(self, url: str) -> None:
        super().__init__(name="sending")
        self._url = url
        self._over = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._over.is_set():
            with suppress(psycopg.Error), psycopg.connect(self._url) as conn, bind(conn):
                while not self._over.wait(1 / _PER_SECOND):
                    with conn.transaction():
                        effect.send(self.sent + 1)
                        # It is known only afterwards whether a commit that failed was one: so it is asked.
                        conn.execute("INSERT INTO sent VALUES (%s)", [self.sent + 1])
                    self.sent += 1
            self._count_again()

    def _count_again(self) -> None:
        while not self._over.is_set():
            with suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True) as conn:
                self.sent = _count(conn, "SELECT count(*) FROM sent")
                return

    def stop(self) -> int:
        """End it; how many jobs were sent."""
        self._over.set()
        self.join(_PATIENCE)
        with psycopg.connect(self._url, autocommit=True) as conn:
            self.sent = _count(conn, "SELECT count(*) FROM sent")
        return self.sent


class Scene:
    """Server, workers, and what was seen of them."""

    def __init__(self, server: Server, workers: list[Worker], chance: random.Random) -> None:
        self.server, self.workers, self.chance = server, workers, chance
        self.felt: dict[str, list[float]] = defaultdict(list)
        self.most_sessions = self.num_ended = 0
        self.lame: list[str] = []
        """Workers that did nothing more after a fault."""

    def strike(self) -> None:
        """One fault by chance, from its beginning until the last worker that it hit works again."""
        name = self.chance.choice(list(FAULTS if self.server.restarts else OF_WORKERS))
        if name in OF_WORKERS:
            hit = [self.chance.choice(self.workers)]
            OF_WORKERS[name](self, hit[0])
        else:
            hit = self.workers
            FAULTS[name](self)
        begun = time.monotonic()
        for worker in hit:
            self.wait_for(worker)
        self.felt[name].append(time.monotonic() - begun)

    def wait_for(self, worker: Worker) -> None:
        """Until *worker* has done another job; too long a wait makes it a lame one."""
        deadline = time.monotonic() + _PATIENCE
        before: Any = None
        while time.monotonic() < deadline:
            self.num_ended += worker.revive()
            with suppress(psycopg.Error), psycopg.connect(self.server.url, autocommit=True) as conn:
                self.look(conn)
                before = before or conn.execute("SELECT clock_timestamp()").fetchone()
                newest = "SELECT count(*) FROM effect WHERE worker = %(name)s AND at > %(before)s"
                while time.monotonic() < deadline and worker.process.poll() is None:
                    if before and _count(conn, newest, {"name": worker.name, "before": before[0]}):
                        return
                    time.sleep(_LOOK)
        self.lame.append(worker.name)

    def look(self, conn: psycopg.Connection[Any]) -> None:
        """The most sessions that any worker had at once."""
        count = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'carpool %' GROUP BY application_name"
        )
        self.most_sessions = max([self.most_sessions, *(row[0] for row in conn.execute(count))])

    def hold(self, least: float, most: float) -> None:
        time.sleep(self.chance.uniform(least, most))


def _kill(scene: Scene, worker: Worker) -> None:
    worker.end()
    worker.start()


def _freeze(scene: Scene, worker: Worker) -> None:
    """For longer than its lease: when it wakes, others have its jobs, and it may write nothing for them."""
    worker.signal(signal.SIGSTOP)
    scene.hold(LEASE + 2, LEASE + 5)
    worker.signal(signal.SIGCONT)


def _cut(least: float, most: float, **directions: bool) -> Callable[[Scene, Worker], None]:
    def cut(scene: Scene, worker: Worker) -> None:
        worker.cable.cut(**directions)
        scene.hold(least, most)
        worker.cable.mend()

    return cut


def _slow(scene: Scene, worker: Worker) -> None:
    worker.cable.slow_down(0.1)
    scene.hold(3, 6)
    worker.cable.mend()


def _pull(scene: Scene, worker: Worker) -> None:
    worker.cable.pull()


def _refuse(scene: Scene, worker: Worker) -> None:
    worker.cable.refuse()
    scene.hold(2, 5)
    worker.cable.mend()


def _terminate(scene: Scene) -> None:
    with psycopg.connect(scene.server.url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'carpool %'")


OF_WORKERS: dict[str, Callable[[Scene, Worker], None]] = {
    "kill -9 and a new process": _kill,
    "frozen for longer than its lease": _freeze,
    "cut for a moment": _cut(0.5, 3.0),
    "cut for longer than its lease": _cut(LEASE + 2, LEASE + 5),
    "cut towards the server": _cut(2.0, 6.0, to_worker=False),
    "cut towards the worker": _cut(2.0, 6.0, to_server=False),
    "0.1 s slower": _slow,
    "connections reset": _pull,
    "connections refused": _refuse,
}
FAULTS: dict[str, Callable[..., None]] = {
    **OF_WORKERS,
    "all sessions terminated": _terminate,
    "Postgres restarted, fast": lambda scene: scene.server.restart(immediate=False),
    "Postgres restarted, immediate": lambda scene: scene.server.restart(immediate=True),
}


def main() -> int:
    options = _options()
    print(f"seed {options.seed}: {options.workers} workers, {options.seconds:g} s", flush=True)
    with ExitStack() as stack:
        server = stack.enter_context(started())
        folder = Path(tempfile.mkdtemp(prefix="carpool-faults-"))
        with psycopg.connect(server.url, autocommit=True) as conn:
            Schema().migrate(conn)
            conn.execute(SCHEMA)
            conn.execute("CREATE TABLE sent (number int PRIMARY KEY)")
        workers = []
        for number in range(options.workers):
            worker = Worker(str(number), stack.enter_context(Cable(server.url)), folder)
            stack.callback(worker.end)
            workers.append(worker)
        scene = Scene(server, workers, random.Random(options.seed))  # noqa: S311  # chaos, repeatable
        wrong = _play(scene, options.seconds)
        print(_table(scene.felt))
        print(f"{scene.num_ended} workers ended by themselves; errors in the logs {dict(complaints(folder))}")
        if any(wrong.values()):
            print(f"the logs are in {folder}")
        else:
            shutil.rmtree(folder)
    for name, count in wrong.items():
        print(f"{name}: {count}")
    print("something is wrong" if any(wrong.values()) else "nothing lost, nothing doubled")
    return 1 if any(wrong.values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.faults", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args()


def _play(scene: Scene, seconds: float) -> dict[str, int]:
    """Faults for *seconds*, then the end in order; what is wrong, by name."""
    sending = Sending(scene.server.url)
    sending.start()
    try:
        for worker in scene.workers:
            scene.wait_for(worker)
        memory = [worker.memory for worker in scene.workers]
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not scene.lame:
            scene.strike()
            scene.hold(0.0, 2.0)
    finally:
        sent = sending.stop()
    _wait_until_empty(scene.server.url)
    print(f"{sent} jobs sent; MiB at first {_rounded(memory)}, at last {_rounded(w.memory for w in scene.workers)}")
    for worker in scene.workers:
        worker.signal(signal.SIGTERM)
    codes = [worker.process.wait(_PATIENCE) for worker in scene.workers]
    with psycopg.connect(scene.server.url, autocommit=True) as conn:
        wrong = {name: _count(conn, query, {"sent": sent}) for name, query in AUDITS.items()}
    wrong["sessions over the cap"] = max(0, scene.most_sessions - POOL_SIZE)
    wrong["workers that did nothing more"] = len(scene.lame)
    wrong["workers that did not end in order"] = sum(code != 0 for code in codes)
    return wrong


def _wait_until_empty(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    with psycopg.connect(url, autocommit=True) as conn:
        while _count(conn, "SELECT count(*) FROM worker.job") and time.monotonic() < deadline:
            time.sleep(_LOOK)


def _table(felt: dict[str, list[float]]) -> str:
    lines = [f"{'fault':<36}{'times':>6}{'p50 s':>8}{'max s':>8}   until the worker worked again, after its end"]
    lines += [
        f"{name:<36}{len(felt[name]):>6}{statistics.median(felt[name]):>8.2f}{max(felt[name]):>8.2f}"
        for name in FAULTS
        if name in felt
    ]
    return "\n".join(lines)


def _rounded(numbers: Any) -> list[int]:
    return [round(number) for number in numbers]


def _count(conn: psycopg.Connection[Any], query: str, parameters: dict[str, Any] | None = None) -> int:
    row = conn.execute(query.encode(), parameters).fetchone()
    return 0 if row is None else int(row[0])


if __name__ == "__main__":
    sys.exit(main())
