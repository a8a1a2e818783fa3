"""No queue at all: what a durable row costs, as a measure for sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from tests.bench.peer import INSERT, Guarantee, Sender


class BareInsert(Sender):
    name = "bare-insert"
    title = "a bare INSERT, no queue"
    store = "Postgres"
    packages = ("psycopg",)
    guarantee = Guarantee("durable", atomic=False, fenced=False)
    settings = "psycopg, autocommit, one number in a table without an index"

    def prepare(self) -> None:
        with psycopg.connect(self.places.postgres, autocommit=True) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS bench (number int)")

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with psycopg.connect(self.places.postgres, autocommit=True) as conn:

            def send(work: str, argument: float) -> None:
                conn.execute(INSERT, [argument])

            yield send


PEER = BareInsert
