"""`worker status` tells what waits, what runs, and who is alive."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from tests.cli.conftest import Worker
from worker import clock
from worker.queue.feed import Room
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.lease import Lease
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema


def enqueue(db: psycopg.Connection, queue: str, *, delay: float = 0.0) -> None:
    insert(db, Schema(), [NewJob(uuid7(), queue, "note", 0, delay, clock.now().timestamp(), "{}", "{}", None)])


def status(worker: Worker, url: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(worker("status", "--json", WORKER_DATABASE_URL=url).stdout)
    return told


def test_each_queue_is_told_with_what_waits_and_what_is_for_later(
    worker: Worker, database: str, db: psycopg.Connection
) -> None:
    enqueue(db, "mail")
    enqueue(db, "mail", delay=3600)
    enqueue(db, "default", delay=3600)

    queues = status(worker, database)["queues"]

    told = [(row["queue"], row["available"], row["scheduled"], row["running"]) for row in queues]
    assert told == [("default", 0, 1, 0), ("mail", 1, 1, 0)]


def test_the_workers_that_live_are_told(worker: Worker, database: str, db: psycopg.Connection) -> None:
    alive, dead = (Lease(Schema(), duration=60.0, slots=3, pool_size=4) for _ in range(2))
    alive.register(db, [Room(["mail"], [], 0)])
    dead.register(db)
    db.execute("UPDATE worker.worker SET heartbeat_at = now() - interval '1 hour' WHERE id = %s", [dead.worker_id])

    [told] = status(worker, database)["workers"]

    assert (told["id"], told["queues"], told["slots"], told["pool_size"]) == (str(alive.worker_id), ["mail"], 3, 4)
    assert told["started_at"].endswith("Z")


def test_for_people_there_are_tables_and_sentences(worker: Worker, database: str, db: psycopg.Connection) -> None:
    enqueue(db, "mail")

    said = worker("status", WORKER_DATABASE_URL=database, COLUMNS="120").stdout

    assert "mail" in said
    assert "no worker is alive" in said
