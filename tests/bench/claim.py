"""
`python -m tests.bench.claim [--jobs N] [--backlog N] [--looks N]`: does a claim grow with the jobs that have passed?

Jobs pass through one after the other, as a dispatcher's statements have it, once by themselves and once while another
session holds a transaction open. Prints what a claim and a heartbeat cost at the beginning, on the way and at the end:
the server's time and blocks, by EXPLAIN ANALYZE, and the client's time of the claims on the way. On an embedded
Postgres with autovacuum.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple
from uuid import uuid4

import psycopg

from tests.factories import own_database, own_server
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.lease_statements import REGISTER_WORKER, RENEW_LEASE
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema
from worker.queue.statements import CLAIM_JOBS, FINISH_JOBS

_SCHEMA = Schema()
_BATCH = 50
_CHUNK = 1000
_POINTS = 8

_ME: dict[str, Any] = {"worker": uuid4(), "queues": ["default"], "actors": ["charge"]}
_CLAIM = {**_ME, "limit": _BATCH, "free": _BATCH, "holding": [], "checkouts": 0, "idle": True}
_BEAT = {**_ME, "known_queues": ["default"], "known_actors": ["charge"]}
_BOOT = {**_ME, "name": "bench", "slots": _BATCH, "pool_size": 1, "lease": 3600}


class Cost(NamedTuple):
    """Of one statement on the server: milliseconds and blocks of 8 kB."""

    milliseconds: float
    blocks: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="that pass through, each time (100000)")
    parser.add_argument("--backlog", type=int, default=2000, help="that wait meanwhile (2000)")
    parser.add_argument("--looks", type=int, default=15, help="at each point, of which the median counts (15)")
    options = parser.parse_args()
    with own_server(fast=False) as server:
        for held in (False, True):
            with own_database(server.url) as url:
                print(f"\n{'another session holds a transaction open' if held else 'nobody is in the way'}")
                run(url, options.jobs, options.backlog, options.looks, held=held)


def run(url: str, jobs: int, backlog: int, looks: int, *, held: bool) -> None:
    with dispatching(url) as db, psycopg.connect(url) as other:
        send(db, backlog)
        first = report(db, 0, looks, 0.0)
        if held:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM worker.job")
        for point in range(1, _POINTS + 1):
            spent = pass_through(db, jobs // _POINTS)
            last = report(db, point * (jobs // _POINTS), looks, spent)
        print(f"  a claim costs {last.milliseconds / first.milliseconds:.2f} times as long as at the beginning")


@contextmanager
def dispatching(url: str) -> Iterator[psycopg.Connection]:
    """A session like the dispatcher's."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SET enable_seqscan = off")
        db.execute("SET jit = off")
        History(_SCHEMA).maintain(db)
        db.execute(_SCHEMA.render(REGISTER_WORKER).encode(), _BOOT)
        yield db


def pass_through(db: psycopg.Connection, number: int) -> float:
    """Send, claim and finish so many; milliseconds of a claim on the client, in the middle."""
    took = []
    for _ in range(0, number, _CHUNK):
        send(db, _CHUNK)
        for _ in range(_CHUNK // _BATCH):
            started = time.perf_counter()
            claimed = db.execute(_SCHEMA.render(CLAIM_JOBS).encode(), _CLAIM).fetchall()
            took.append(time.perf_counter() - started)
            proofs = {"ids": [row[0] for row in claimed], "tokens": [row[1] for row in claimed]}
            db.execute(_SCHEMA.render(FINISH_JOBS).encode(), proofs)
    return 1000 * statistics.median(took)


def send(db: psycopg.Connection, number: int) -> None:
    for _ in range(0, number, _CHUNK // 2):
        made = [NewJob(uuid7(), "default", "charge", 0, 0.0, 0.0, "{}", "{}", None) for _ in range(_CHUNK // 2)]
        insert(db, _SCHEMA, made)


def report(db: psycopg.Connection, passed: int, looks: int, spent: float) -> Cost:
    claim, beat = cost(db, CLAIM_JOBS, _CLAIM, looks), cost(db, RENEW_LEASE, _BEAT, looks)
    print(
        f"  after {passed:8,} jobs: a claim of {_BATCH} {claim.milliseconds:7.2f} ms, {claim.blocks:6.0f} blocks"
        f" ({spent:6.2f} ms at the client on the way); a heartbeat {beat.milliseconds:7.2f} ms,"
        f" {beat.blocks:6.0f} blocks",
        flush=True,
    )
    return claim


def cost(db: psycopg.Connection, statement: LiteralString, parameters: dict[str, Any], looks: int) -> Cost:
    """In the middle of so many looks; each is undone."""
    query = f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) {_SCHEMA.render(statement)}".encode()
    found = []
    for _ in range(looks):
        with db.transaction(force_rollback=True):
            ((plan,),) = db.execute(query, parameters).fetchall()
        blocks = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
        found.append(Cost(plan[0]["Execution Time"], blocks))
    return Cost(*map(statistics.median, zip(*found, strict=True)))


if __name__ == "__main__":
    main()
