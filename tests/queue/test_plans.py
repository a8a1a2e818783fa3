"""The statements of every pass rest on their indexes, however many jobs of others the table holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH

from tests.factories import own_database
from tests.plans import explained, num_blocks
from worker import Queues
from worker.queue import session
from worker.queue.lease_statements import LIST_CLAIMED, RENEW_LEASE, RESCUE_JOBS
from worker.queue.limited_claim import CLAIM_WITHIN_LIMITS
from worker.queue.mark_statements import FIND_HEADS
from worker.queue.marks import Marks
from worker.queue.new_job import columns
from worker.queue.schema import Schema
from worker.queue.sending_statements import FORGET_KEYS, FORGET_PROGRESS, FORGET_STEPS, FORGET_TAGS, REPLACE_JOBS
from worker.queue.statements import CLAIM_JOBS, FINISH_JOBS, MARK_BEGUN, PROMOTE_DUE, SETTLE_JOBS

OTHERS = """
    INSERT INTO worker.job (id, queue, actor, state, due_at, rank, claimed_by, enqueued_at, args)
    SELECT gen_random_uuid(), 'other', 'charge', state, due, due, owner, now(), '{}'
    FROM (
        SELECT CASE n % 10 WHEN 0 THEN 'scheduled' WHEN 1 THEN 'running' ELSE 'available' END AS state,
            now() + CASE n % 10 WHEN 0 THEN 1 ELSE -1 END * n * interval '1 second' AS due,
            CASE n % 10 WHEN 1 THEN gen_random_uuid() END AS owner
        FROM generate_series(1, 50000) AS n
    ) AS made"""

CLAIM: dict[str, Any] = {
    **Marks().parameters(["default", "mail"]),
    "actors": ["charge"],
    "limit": 10,
    "free": 10,
    "holding": ["hold"],
    "checkouts": 2,
    "idle": False,
    "worker": uuid4(),
}
WITHIN_LIMITS = {**CLAIM, **Marks().parameters(["billing"], "limited_")}

CASES: dict[str, tuple[LiteralString, dict[str, Any], str]] = {
    "claim": (CLAIM_JOBS, CLAIM, "job_available"),
    "claim within limits": (CLAIM_WITHIN_LIMITS, WITHIN_LIMITS, "job_available"),
    "count what runs of a queue": (CLAIM_WITHIN_LIMITS, WITHIN_LIMITS, "job_running"),
    "promote": (PROMOTE_DUE, {"due_low": None}, "job_scheduled"),
    "rescue": (RESCUE_JOBS, {"dead": uuid4(), "max_crashes": 3, "reason": "crashed"}, "job_running"),
    "reconcile": (LIST_CLAIMED, {"worker": uuid4()}, "job_running"),
}

# Blocks of 8 kB: a few levels of an index, and some more; the table alone has about a thousand.
FEW = 100


@pytest.fixture(scope="module")
def crowded(server: str) -> Iterator[psycopg.Connection]:
    """A session like the dispatcher's on a table that holds 50,000 jobs of another queue; the tests only look."""
    with own_database(server) as url, psycopg.connect(url, autocommit=True) as db:
        db.execute(OTHERS)
        Queues(db).limit("billing", running=5, starts=10, per=60, force=True)
        db.execute("INSERT INTO worker.job (queue, actor, args) VALUES ('billing', 'charge', '{}')")
        db.execute("VACUUM ANALYZE worker.job")
        session.prepare(db, statement_timeout=10.0)
        yield db


@pytest.mark.parametrize("name", CASES)
def test_a_statement_uses_its_index_and_reads_only_a_few_blocks(crowded: psycopg.Connection, name: str) -> None:
    statement, parameters, index = CASES[name]

    with crowded.transaction(force_rollback=True):
        plan = explained(crowded, statement, parameters)["Plan"]

    assert index in indexes(plan)
    assert num_blocks(crowded, statement, parameters) < FEW


QUEUES, OF_EACH = 50, 500
ACTORS = [f"actor {n}" for n in range(100)]
MANY = """
    INSERT INTO worker.job (id, queue, actor, state, due_at, rank, enqueued_at, args)
    SELECT gen_random_uuid(), 'queue ' || queue, 'actor ' || n %% 100, 'available', due, due, now(), '{}'
    FROM generate_series(1, %(queues)s) AS queue
    CROSS JOIN (SELECT n, now() - n * interval '1 second' AS due FROM generate_series(1, %(of_each)s) AS n) AS made
    ORDER BY due"""


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "not yet analyzed"])
@pytest.mark.parametrize("statement", [CLAIM_JOBS, CLAIM_WITHIN_LIMITS], ids=["claim", "claim within limits"])
def test_a_claim_of_many_queues_reads_only_the_first_jobs_of_each(
    db: psycopg.Connection, statement: LiteralString, *, analyzed: bool
) -> None:
    session.prepare(db, statement_timeout=10.0)
    db.execute("ALTER TABLE worker.job SET (autovacuum_enabled = false)")
    db.execute(MANY, {"queues": QUEUES, "of_each": OF_EACH})
    if analyzed:
        db.execute("ANALYZE worker.job")
    queues = [f"queue {n}" for n in range(1, QUEUES + 1)]
    looked_at = {**Marks().parameters(queues), **Marks().parameters([], "limited_")}
    room = {**CLAIM, **looked_at, "limit": 2, "free": 2, "actors": ACTORS, "holding": [], "checkouts": 0}

    assert num_blocks(db, statement, room) < QUEUES * 20


# What is left of a job that is gone.
LEFT_OVER = """
    INSERT INTO worker.job_key (actor, key, job_id, scope, taken_at)
    VALUES ('charge', '1', %(id)s, 'queued', '2001-1-1');
    INSERT INTO worker.job_tag (tag, job_id, tagged_at) VALUES ('customer', %(id)s, '2001-1-1');
    INSERT INTO worker.job_progress (job_id, token, attempt, begun_at) VALUES (%(id)s, 1, 1, '2001-1-1');
    INSERT INTO worker.job_step (job_id, name, value, attempt, args_hash, recorded_at)
    VALUES (%(id)s, 'one', '1', 1, 0, '2001-1-1')"""
NOBODY = [uuid4()]
FORGET: dict[str, Any] = {"after": None, "portion": 2000, "keep": 14}
SETTLED: dict[str, Any] = {
    **Schema().channels,
    "ids": NOBODY,
    "tokens": [1],
    "outcomes": ["retry"],
    "delays": [0.0],
    "errors": [None],
    "options": [None],
    "messages": [None],
    "new_parents": [],
    **columns([], prefix="new_"),
}
REPLACED: dict[str, Any] = {
    **Schema().channels,
    **columns([]),
    "holders": NOBODY,
    "postpones": [False],
    "priorities": [0],
    "delays": [0.0],
    "args": ["{}"],
    "options": ["{}"],
}
BY_ID: dict[str, tuple[LiteralString, dict[str, Any]]] = {
    "claim": (CLAIM_JOBS, {**CLAIM, **Marks().parameters(["queue 1"]), "actors": ACTORS, "checkouts": 0, "limit": 2}),
    "mark": (MARK_BEGUN, {"ids": NOBODY, "tokens": [1]}),
    "promote": (PROMOTE_DUE, {"due_low": None}),
    "finish": (FINISH_JOBS, {"ids": NOBODY, "tokens": [1]}),
    "settle": (SETTLE_JOBS, SETTLED),
    "rescue": (RESCUE_JOBS, {"dead": uuid4(), "max_crashes": 3, "reason": "crashed"}),
    "replace": (REPLACE_JOBS, REPLACED),
    "forget keys": (FORGET_KEYS, FORGET),
    "forget tags": (FORGET_TAGS, FORGET),
    "forget progress": (FORGET_PROGRESS, FORGET),
    "forget steps": (FORGET_STEPS, FORGET),
}


@pytest.fixture
def grown(db: psycopg.Connection) -> psycopg.Connection:
    """A session like the dispatcher's on a table that was empty when the server looked last, and is not any more."""
    session.prepare(db, statement_timeout=10.0)
    db.execute("ALTER TABLE worker.job SET (autovacuum_enabled = false)")
    db.execute(MANY, {"queues": QUEUES, "of_each": 1})
    db.execute("DELETE FROM worker.job")
    db.execute("VACUUM (ANALYZE, TRUNCATE off) worker.job")
    db.execute(MANY, {"queues": QUEUES, "of_each": OF_EACH})
    psycopg.ClientCursor(db).execute(LEFT_OVER, {"id": NOBODY[0]})
    return db


@pytest.mark.parametrize("name", BY_ID)
def test_jobs_are_found_by_their_ids_where_the_server_takes_the_table_for_empty(
    grown: psycopg.Connection, name: str
) -> None:
    assert num_blocks(grown, *BY_ID[name]) < FEW


@pytest.mark.parametrize(
    "statement", [CLAIM_JOBS, RENEW_LEASE, FINISH_JOBS, SETTLE_JOBS, MARK_BEGUN, PROMOTE_DUE, FIND_HEADS]
)
def test_a_statement_of_a_pass_is_short_enough_that_psycopg_parses_it_once(statement: LiteralString) -> None:
    assert len(Schema().render(statement).encode()) <= MAX_CACHED_STATEMENT_LENGTH


def indexes(plan: dict[str, Any]) -> set[str]:
    found = {plan["Index Name"]} if "Index Name" in plan else set()
    return found.union(*map(indexes, plan.get("Plans", [])))
