"""
`python -m tests.bench.claim [--jobs N] [--backlog N] [--looks N] [--held]`: does a claim grow with the jobs passed?

Jobs pass through one after the other, in exchanges like the dispatcher's, once by themselves and once while another
session holds a transaction open. Prints what a claim, a heartbeat and the full looks between them cost at the
beginning, on the way and at the end: the server's time and blocks, by EXPLAIN ANALYZE, and the client's time of the
exchanges on the way. On an embedded Postgres with autovacuum.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg

from tests.factories import own_database, own_server, scalar
from tests.plans import blocks, explained
from worker import clock
from worker.queue import session
from worker.queue.exchange import Errand, exchange, follow
from worker.queue.feed import Room
from worker.queue.flow import Flow
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.lease import Lease
from worker.queue.lease_statements import RENEW_LEASE
from worker.queue.mark_statements import FIND_HEADS
from worker.queue.marks import Marks
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement
from worker.queue.statements import CLAIM_JOBS

_SCHEMA = Schema()
_BATCH = 50
_CHUNK = 1000
_POINTS = 8
_BEAT = 1.0

_QUEUES, _ACTORS = ["default"], ["charge"]
_ROOM = Room(_QUEUES, _ACTORS, _BATCH, idle=True)


class Cost(NamedTuple):
    """Of one statement on the server: milliseconds and blocks of 8 kB."""

    milliseconds: float
    blocks: float

    def __str__(self) -> str:
        return f"{self.milliseconds:7.2f} ms {self.blocks:7.0f} blocks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="that pass through, each time (100000)")
    parser.add_argument("--backlog", type=int, default=2000, help="that wait meanwhile (2000)")
    parser.add_argument("--looks", type=int, default=15, help="at each point, of which the median counts (15)")
    parser.add_argument("--held", action="store_true", help="only while another session holds a transaction open")
    options = parser.parse_args()
    with own_server(fast=False) as server:
        for held in (True,) if options.held else (False, True):
            with own_database(server.url) as url:
                print(f"\n{'another session holds a transaction open' if held else 'nobody is in the way'}")
                run(url, options.jobs, options.backlog, options.looks, held=held)


def run(url: str, jobs: int, backlog: int, looks: int, *, held: bool) -> None:
    with dispatching(url) as passage, psycopg.connect(url) as other:
        passage.send(backlog)
        first = passage.report(0, looks, 0.0)
        if held:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM worker.job")
        for point in range(1, _POINTS + 1):
            spent = passage.pass_through(jobs // _POINTS)
            last = passage.report(point * (jobs // _POINTS), looks, spent)
        print(
            f"  a claim costs {last.milliseconds / first.milliseconds:.2f} times the time and"
            f" {last.blocks / first.blocks:.2f} times the blocks of the beginning;"
            f" the table has {scalar(passage.db, 'SELECT pg_total_relation_size(%s) / 1048576', 'worker.job')} MiB"
        )


@contextmanager
def dispatching(url: str) -> Iterator[Passage]:
    """A session like the dispatcher's."""
    with psycopg.connect(url, autocommit=True) as db:
        session.prepare(db, statement_timeout=60.0)
        History(_SCHEMA).maintain(db)
        yield Passage(db)


class Passage:
    """A dispatcher by hand, that finishes what it claims at once."""

    def __init__(self, db: psycopg.Connection) -> None:
        self.db = db
        self._marks = Marks()
        self._lease = Lease(_SCHEMA, duration=3600.0, slots=_BATCH, pool_size=1)
        self._lease.register(db, [_ROOM])
        self._beat_at = 0.0

    def pass_through(self, number: int) -> float:
        """Send, claim and finish so many; milliseconds of an exchange on the client, in the middle."""
        took = []
        settlements: list[Settlement] = []
        for _ in range(0, number, _CHUNK):
            self.send(_CHUNK)
            for _ in range(_CHUNK // _BATCH):
                started = time.perf_counter()
                settlements = self._exchange(settlements)
                took.append(time.perf_counter() - started)
        self._exchange(settlements, room=0)
        return 1000 * statistics.median(took)

    def _exchange(self, settlements: list[Settlement], room: int = _BATCH) -> list[Settlement]:
        renewing = clock.monotonic() >= self._beat_at
        if renewing:
            self._beat_at = clock.monotonic() + _BEAT
        search = self._marks.search([_ROOM], moving=room > 0)
        rooms = [_ROOM] if room else []
        errand = Errand(
            settlements, rooms=rooms, renewing=renewing, served=[_ROOM], marks=self._marks, search=search, mine=[]
        )
        reply = exchange(self.db, _SCHEMA, self._lease, errand)
        follow(errand, reply, workers=1)
        return [Settlement(*claim.proof, Outcome.DONE) for claims in reply.claims for claim in claims]

    def send(self, number: int) -> None:
        for _ in range(0, number, _CHUNK // 2):
            made = [NewJob(uuid7(), "default", "charge", 0, 0.0, 0.0, "{}", "{}", None) for _ in range(_CHUNK // 2)]
            insert(self.db, _SCHEMA, made)

    def report(self, passed: int, looks: int, spent: float) -> Cost:
        mine: list[UUID] | None = [] if self._marks.are_used else None
        look = self._lease.parameters([_ROOM], Flow(), self._marks, mine)
        everywhere = self._lease.parameters([_ROOM], Flow(), Marks(), None)
        room = {"limit": _BATCH, "free": _BATCH, "holding": [], "checkouts": 0, "idle": True}
        claim = self._cost(CLAIM_JOBS, {**look, **room}, looks)
        beat = self._cost(RENEW_LEASE, look, looks)
        full_beat = self._cost(RENEW_LEASE, {**look, "full": True}, 3)
        full_look = self._cost(FIND_HEADS, {**everywhere, "sizes": [1]}, 3)
        print(
            f"  after {passed:9,} jobs: a claim of {_BATCH} {claim}, a heartbeat {beat}; in full {full_beat},"
            f" a full look {full_look}; an exchange {spent:6.2f} ms at the client",
            flush=True,
        )
        return claim

    def _cost(self, statement: LiteralString, parameters: dict[str, Any], looks: int) -> Cost:
        """In the middle of so many looks; each is undone."""
        found = []
        for _ in range(looks):
            with self.db.transaction(force_rollback=True):
                answer = explained(self.db, statement, parameters)
            found.append(Cost(answer["Execution Time"], blocks(answer["Plan"])))
        return Cost(*map(statistics.median, zip(*found, strict=True)))


if __name__ == "__main__":
    main()
