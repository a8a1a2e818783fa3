"""PgQueuer at its fastest: as many tasks at once as it likes, where all others run ten."""

from __future__ import annotations

from typing import ClassVar

from tests.bench.peers.pgqueuer import Pgqueuer


class PgqueuerBatch(Pgqueuer):
    name = "pgqueuer-batch"
    title = "PgQueuer, without a limit"
    settings = "asyncpg, uvloop; any number of tasks at once, batches of 200"

    batching: ClassVar[dict[str, int]] = {"batch_size": 200}


PEER = PgqueuerBatch
