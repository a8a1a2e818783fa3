"""What keyed sends and jobs' own words ask rests on indexes, however many keys and jobs there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import own_database
from tests.queue.conftest import SCHEMA
from worker.queue.jobs import JobFilter, Jobs
from worker.queue.progress import WRITE_PROGRESS
from worker.queue.sending_statements import (
    FIND_HOLDERS,
    FORGET_KEYS,
    FORGET_PROGRESS,
    FORGET_STEPS,
    FORGET_TAGS,
    LOCK_HOLDERS,
    TAKE_OVER_KEYS,
)
from worker.queue.step_statements import FIND_STEP, RECORD_STEP

ROWS = """
    INSERT INTO worker.job (id, queue, actor, args)
    SELECT md5(n::text)::uuid, 'other', 'charge', '{}' FROM generate_series(1, 50000) AS n;
    INSERT INTO worker.job_key (actor, key, job_id, scope)
    SELECT 'charge', n::text, md5(n::text)::uuid, 'queued' FROM generate_series(1, 50000) AS n;
    INSERT INTO worker.job_tag (tag, job_id)
    SELECT 'customer:' || n, md5(n::text)::uuid FROM generate_series(1, 50000) AS n;
    INSERT INTO worker.job_progress (job_id, token, attempt, fraction)
    SELECT md5(n::text)::uuid, 0, 1, 0.5 FROM generate_series(1, 50000) AS n;
    INSERT INTO worker.job_step (job_id, name, value, attempt, args_hash)
    SELECT md5(n::text)::uuid, 'one', '1', 1, 0 FROM generate_series(1, 50000) AS n;
    UPDATE worker.job SET state = 'running', claimed_by = id WHERE id = md5('7')::uuid"""

RUNNING = UUID(hashlib.md5(b"7", usedforsecurity=False).hexdigest())
FORGET: dict[str, Any] = {"after": None, "portion": 2000, "keep": 14}
KEYS = {"actors": ["charge"], "keys": ["7"], "ids": [uuid4()], "scopes": ["queued"], "windows": [None]}
CASES: dict[str, tuple[LiteralString, dict[str, Any]]] = {
    "find the holder": (FIND_HOLDERS, {"actors": ["charge"], "keys": ["7"]}),
    "take over": (TAKE_OVER_KEYS, {**KEYS, "holders": [uuid4()]}),
    "lock the holder": (LOCK_HOLDERS, {"ids": [uuid4()], "wake": "worker_wake"}),
    "forget keys": (FORGET_KEYS, FORGET),
    "forget tags": (FORGET_TAGS, FORGET),
    "forget progress": (FORGET_PROGRESS, FORGET),
    "forget steps": (FORGET_STEPS, FORGET),
    "write progress": (WRITE_PROGRESS, {"ids": [RUNNING], "tokens": [0], "fractions": [0.7], "notes": [None]}),
    "find a step": (FIND_STEP, {"id": RUNNING, "token": 0, "name": "one"}),
    "record a step": (RECORD_STEP, {"id": RUNNING, "token": 0, "name": "two", "value": "1"}),
}
FEW = 100


@pytest.fixture(scope="module")
def crowded(server: str) -> Iterator[psycopg.Connection]:
    with own_database(server) as url, psycopg.connect(url, autocommit=True) as db:
        db.execute(ROWS)
        db.execute("VACUUM ANALYZE worker.job, worker.job_key, worker.job_tag, worker.job_progress, worker.job_step")
        yield db


@pytest.mark.parametrize("name", CASES)
def test_a_statement_reads_only_a_few_blocks(crowded: psycopg.Connection, name: str) -> None:
    statement, parameters = CASES[name]

    explained = crowded.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SCHEMA.render(statement)}".encode(), parameters
    ).fetchone()

    assert explained is not None
    plan = explained[0][0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < FEW, plan


def test_a_tag_finds_its_job_among_many(crowded: psycopg.Connection) -> None:
    [found] = Jobs(crowded, SCHEMA).find(JobFilter(tags=["customer:7"]))

    assert found.tags == ["customer:7"]
