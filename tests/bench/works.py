"""The kinds of work that are measured; each run begins with an empty queue and returns figures by name."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tests.bench import jobs
from tests.bench.server import commits, cpu_seconds
from tests.factories import opened_pool, scalar
from tests.waiting import wait_until
from worker.queue.insertion import insert
from worker.queue.schema import Schema

Figures = dict[str, float]

_SCHEMA = Schema()
_TRAFFIC_JOBS = 2000
_LATENCY_INTERVAL = 0.05
_CHUNK = 5000
_BOOT = 120.0


def drain(database: str, number: int) -> Figures:
    """Jobs that do nothing, sent beforehand."""
    return _drained(database, number, lambda n: jobs.nothing.message())


def inserts(database: str, number: int) -> Figures:
    """Jobs with one INSERT on the injected connection, completed in the same transaction."""
    return _drained(database, number, jobs.insert.message)


def enqueue(database: str, number: int) -> Figures:
    """Sends one by one, each durable on return."""
    with opened_pool(database) as pool, jobs.broker.on(pool, _SCHEMA):
        jobs.nothing.send()
        started = time.monotonic()
        for _ in range(number):
            jobs.nothing.send()
        return {"per s": number / (time.monotonic() - started)}


def bulk(database: str, number: int) -> Figures:
    """Sends of 500 and of 10 000 in one statement."""
    with psycopg.connect(database, autocommit=True) as conn:
        return {f"per s by {size}": _bulk(conn, number, size) for size in (500, 10_000)}


def latency(database: str, number: int) -> Figures:
    """From a send to the start of its job, one each 50 ms to an idle worker; at most 200 of them, in milliseconds."""
    number = min(number, 200)
    worker = _start(database, number, "latency")
    with psycopg.connect(database, autocommit=True) as db:
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.worker") == 1, _BOOT, "the worker")
    with opened_pool(database) as pool, jobs.broker.on(pool, _SCHEMA):
        for _ in range(number):
            time.sleep(_LATENCY_INTERVAL)
            jobs.late.send(time.time())
        delays = sorted(_finish(worker)["started_after"])
    return {
        "p50 ms": 1000 * statistics.median(delays),
        "p99 ms": 1000 * delays[min(len(delays) - 1, int(len(delays) * 0.99))],
    }


def idle(database: str, number: int) -> Figures:
    """A worker with nothing to do for 20 s."""
    seconds = 20
    with psycopg.connect(database, autocommit=True) as db:
        worker = _start(database, seconds, "idle")
        found = _finish(worker)
        time.sleep(1.5)  # what its sessions did is reported with a delay
        return {
            "CPU % of a core": 100 * found["cpu"] / found["seconds"],
            "commits per s, boot and end included": commits(db) / found["seconds"],
            "sessions": found["sessions"],
        }


WORKS: dict[str, Callable[[str, int], Figures]] = {
    work.__name__: work for work in (drain, inserts, enqueue, bulk, latency, idle)
}


def _drained(database: str, number: int, message: Callable[[int], Any]) -> Figures:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("CREATE TABLE IF NOT EXISTS bench (number int)")
        traffic = _run(database, db, _TRAFFIC_JOBS, message, "traffic")["traffic"]
        before = cpu_seconds(db)
        found = _run(database, db, number, message, "drain")
        server = cpu_seconds(db) - before
    return {
        "jobs per s": number / found["seconds"],
        "worker us CPU per job": 1e6 * found["cpu"] / number,
        "server us CPU per job": 1e6 * server / number,
        "sessions": found["sessions"],
        **{
            f"{name} per job": count / _TRAFFIC_JOBS
            for name, count in zip(("statements", "round trips", "commits"), traffic, strict=True)
        },
    }


def _run(database: str, db: psycopg.Connection, number: int, message: Callable[[int], Any], kind: str) -> Any:
    db.execute("TRUNCATE worker.job, worker.job_history, bench")
    for first in range(0, number, _CHUNK):
        chunk = range(first, min(number, first + _CHUNK))
        insert(db, _SCHEMA, [jobs.broker.encode(message(n), None) for n in chunk])
    db.execute("VACUUM ANALYZE worker.job")
    db.execute("CHECKPOINT")
    return _finish(_start(database, number, kind))


def _bulk(conn: psycopg.Connection, number: int, size: int) -> float:
    started = time.monotonic()
    for _ in range(max(1, number // size)):
        insert(conn, _SCHEMA, [jobs.broker.encode(jobs.nothing.message(), None) for _ in range(size)])
    return max(1, number // size) * size / (time.monotonic() - started)


def _start(database: str, number: int, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.ours", database, str(number), kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(worker: subprocess.Popen[str]) -> Any:
    output, _ = worker.communicate(timeout=900)
    if worker.returncode:
        raise RuntimeError(f"the measured worker ended with exit code {worker.returncode}")
    return json.loads(output)
