"""Graphile Worker, of Node: the work is done by `graphile_worker.cjs`, and told to the tally of this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.peer import SLOTS, Guarantee, Peer
from tests.bench.server import process_cpu_seconds
from tests.factories import scalar

_PATIENCE = 60.0


class GraphileWorker(Peer):
    name = "graphile-worker"
    title = "Graphile Worker, Node"
    store = "Postgres"
    packages = ("graphile-worker",)
    guarantee = Guarantee("durable, at least once", atomic=False, fenced=False)
    settings = f"concurrency {SLOTS}, local queue of 500, completions in batches, as its page on performance has it"

    process: subprocess.Popen[str] | None = None

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        node, modules = shutil.which("node"), self.places.node_modules
        if node is None:
            raise ImportError("there is no `node` in the PATH")
        if modules is None or not Path(modules, "graphile-worker").is_dir():
            raise ImportError(
                "no graphile-worker in --node-modules (`npm install graphile-worker` makes such a folder)"
            )
        self.node, self.modules = node, modules

    def prepare(self) -> None:
        self._ask("prepare")

    def fill(self, work: str, number: int) -> None:
        with psycopg.connect(self.places.postgres, autocommit=True) as conn:
            conn.execute(
                "SELECT graphile_worker.add_job(%s, payload := to_json(n)) FROM generate_series(0, %s - 1) AS n",
                [work, number],
            )

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with self._start("work") as self.process:
            listener = threading.Thread(target=self._listen, args=[self.process])
            listener.start()
            try:
                yield
            finally:
                self.process.terminate()
                self.process.wait(_PATIENCE)
                listener.join(_PATIENCE)

    def num_left(self) -> int:
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM graphile_worker.jobs"))

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with psycopg.connect(self.places.postgres, autocommit=True) as conn:

            def send(work: str, argument: float) -> None:
                conn.execute("SELECT graphile_worker.add_job(%s, %s::json)", [work, json.dumps(argument)])

            yield send

    def enqueue(self, number: int) -> float:
        return float(self._ask("send", number, 1))

    def bulk(self, number: int, size: int) -> float:
        return float(self._ask("send", number, size))

    def cpu_seconds(self) -> float:
        return 0.0 if self.process is None else process_cpu_seconds(self.process.pid)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("late "):
                self.tally.delays.append(float(line.split()[1]))
            self.tally.count()

    def _ask(self, *command: object) -> str:
        with self._start(*command) as process:
            said, _ = process.communicate(timeout=_PATIENCE)
        if process.returncode:
            raise RuntimeError(f"node ended with {process.returncode} in {command}")
        return said

    def _start(self, *command: object) -> subprocess.Popen[str]:
        mode, *numbers = map(str, command)
        script = str(Path(__file__).with_suffix(".cjs"))
        return subprocess.Popen(
            [self.node, script, mode, self.places.postgres, str(SLOTS), *numbers],
            env={**os.environ, "NODE_PATH": self.modules},
            stdout=subprocess.PIPE,
            text=True,
        )


PEER = GraphileWorker
