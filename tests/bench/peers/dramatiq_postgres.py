"""Dramatiq on the broker of dramatiq-postgres."""

from __future__ import annotations

from typing import Any

import dramatiq
import psycopg
from dramatiq_postgres import PostgresBroker
from dramatiq_postgres.schema import init

from tests.bench.dramatiq_side import DramatiqSide
from tests.bench.peer import SLOTS, Guarantee
from tests.factories import scalar


class DramatiqPostgres(DramatiqSide):
    name = "dramatiq-postgres"
    title = "Dramatiq, dramatiq-postgres"
    store = "Postgres"
    packages = ("dramatiq", "dramatiq-postgres", "psycopg")
    guarantee = Guarantee("durable, at least once", atomic=False, fenced=False)
    settings = f"defaults, without results; {SLOTS} threads"

    def make_broker(self) -> dramatiq.Broker:
        broker: Any = PostgresBroker(url=self.places.postgres, results=False)
        return broker  # type: ignore[no-any-return]

    def prepare(self) -> None:
        with psycopg.connect(self.places.postgres) as conn:
            init(conn.cursor())

    def num_left(self) -> int:
        with psycopg.connect(self.places.postgres) as db:
            return int(scalar(db, "SELECT count(*) FROM dramatiq.queue"))


PEER = DramatiqPostgres
