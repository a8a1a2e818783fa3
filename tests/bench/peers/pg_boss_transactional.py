"""pg-boss, of Node, with batches in transactions: what their jobs write commits with their completion."""

from __future__ import annotations

from typing import ClassVar

from tests.bench.peer import SLOTS, Guarantee
from tests.bench.peers.pg_boss import PgBoss

_BATCH = 50


class PgBossTransactional(PgBoss):
    name = "pg-boss-transactional"
    title = f"pg-boss, Node, {_BATCH} jobs a transaction"
    guarantee = Guarantee("durable, one fails all of a batch", atomic=True, fenced=True)
    settings = f"{SLOTS} workers with transactional batches of {_BATCH}, burst, LISTEN, partitioned queues"

    shape: ClassVar[dict[str, str]] = {
        "BENCH_BATCH": str(_BATCH),
        "BENCH_WORKERS": str(SLOTS),
        "BENCH_TRANSACTIONAL": "1",
    }


PEER = PgBossTransactional
