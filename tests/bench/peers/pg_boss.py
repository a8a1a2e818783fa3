"""pg-boss, of Node, with batches that complete together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from tests.bench.node_side import NodeSide
from tests.bench.peer import SLOTS, Guarantee
from tests.factories import scalar

BATCH = 500


class PgBoss(NodeSide):
    name = "pg-boss"
    title = "pg-boss, Node"
    packages = ("pg-boss",)
    guarantee = Guarantee("durable, at least once", atomic=False, fenced=True)
    settings = f"two workers with batches of {BATCH}, {SLOTS} jobs at once, burst, LISTEN, partitioned queues"
    script = Path(__file__).with_name("pg_boss.cjs")

    shape: ClassVar[dict[str, str]] = {"BENCH_BATCH": str(BATCH), "BENCH_WORKERS": "2"}

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        os.environ.update(self.shape)

    def num_left(self) -> int:
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM pgboss.job WHERE state < 'completed'"))


PEER = PgBoss
