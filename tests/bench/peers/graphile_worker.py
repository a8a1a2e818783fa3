"""Graphile Worker, of Node."""

from __future__ import annotations

from pathlib import Path

import psycopg

from tests.bench.node_side import NodeSide
from tests.bench.peer import SLOTS, Guarantee
from tests.factories import scalar


class GraphileWorker(NodeSide):
    name = "graphile-worker"
    title = "Graphile Worker, Node"
    packages = ("graphile-worker",)
    guarantee = Guarantee("durable, at least once", atomic=False, fenced=False)
    settings = f"concurrency {SLOTS}, local queue of 500, completions in batches, as its page on performance has it"
    script = Path(__file__).with_suffix(".cjs")

    def num_left(self) -> int:
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM graphile_worker.jobs"))


PEER = GraphileWorker
