"""Settling: every outcome is fenced by its token, a batch can be repeated, and a bad row spoils no other."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.factories import column, scalar
from tests.queue.conftest import SCHEMA, InsertJob, claim, dispatching
from worker import clock
from worker.queue.claim import Claim
from worker.queue.group_commit import GroupCommit
from worker.queue.history import History
from worker.queue.identity import uuid7
from worker.queue.new_job import NewJob
from worker.queue.settlement import Outcome, Settlement, settle, storable
from worker.queue.unique import Unique

EVERY_OUTCOME = list(Outcome)
# What `jsonb` refuses although it is JSON; the encoder never lets it through, so a test must smuggle it in.
POISON = '{"note": "\\u0000"}'


@pytest.fixture(autouse=True)
def _history(db: psycopg.Connection) -> None:
    History(SCHEMA).maintain(db, clock.now().date())


@pytest.fixture
def claimed(insert_job: InsertJob, db: psycopg.Connection) -> Claim:
    """A claimed job: token 1, attempt 1."""
    insert_job(args={"invoice_id": 42})
    (claimed,) = claim(db)
    return claimed


def outcome_of(claimed: Claim, outcome: Outcome = Outcome.DONE, **fields: Any) -> Settlement:
    return Settlement(claimed.id, claimed.token, outcome, **fields)


def child(job_id: UUID | None = None, *, delay: float = 0.0) -> NewJob:
    return NewJob(job_id or uuid7(), "default", "receipt", 0, delay, 0.0, "{}", "{}", None)


def everything(db: psycopg.Connection) -> list[Any]:
    """All that the queue has written, to see that nothing changed."""
    tables = ("job", "job_history", "job_dead")
    return [db.execute(f"SELECT * FROM worker.{table} ORDER BY id".encode()).fetchall() for table in tables]  # noqa: S608


# Outcomes


def test_a_done_job_leaves_the_table(claimed: Claim, db: psycopg.Connection) -> None:
    settle(db, SCHEMA, [outcome_of(claimed)])

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


def test_a_done_job_is_in_the_history_with_what_it_was_and_who_ran_it(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    worker, job_id = uuid4(), insert_job(args={"invoice_id": 42})
    (claimed,) = claim(db, worker=worker)

    settle(db, SCHEMA, [outcome_of(claimed)])

    query = "SELECT id, actor, outcome, attempt, worker, args, started_at <= finished_at FROM worker.job_history"
    assert db.execute(query.encode()).fetchall() == [(job_id, "charge", "done", 1, worker, {"invoice_id": 42}, True)]


def test_a_dead_job_is_kept_whole_with_its_error(claimed: Claim, db: psycopg.Connection) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, Outcome.DEAD, error="card stolen", options='{"retries": 3}')])

    query = "SELECT id, attempt, args, options, error FROM worker.job_dead"
    expected = [(claimed.id, 1, {"invoice_id": 42}, {"retries": 3}, "card stolen")]
    assert db.execute(query.encode()).fetchall() == expected


def test_a_dead_job_is_in_the_history_too(claimed: Claim, db: psycopg.Connection) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, Outcome.DEAD, error="card stolen")])

    assert db.execute("SELECT outcome, error FROM worker.job_history").fetchall() == [("dead", "card stolen")]


def test_a_retried_job_keeps_its_row_its_attempts_and_its_error(claimed: Claim, db: psycopg.Connection) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, Outcome.RETRY, error="card busy", options='{"retries": 1}')])

    query = "SELECT id, state, attempt, error, options FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [(claimed.id, "available", 1, "card busy", {"retries": 1})]


def test_a_retry_with_a_delay_waits_for_its_time(claimed: Claim, db: psycopg.Connection) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, Outcome.RETRY, delay=60.0)])

    query = """
        SELECT state, due_at BETWEEN now() + interval '55 s' AND now() + interval '60 s', rank = due_at
        FROM worker.job"""
    assert db.execute(query.encode()).fetchall() == [("scheduled", True, True)]


def test_a_released_job_gets_its_attempt_back(claimed: Claim, db: psycopg.Connection) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, Outcome.RELEASED)])

    assert db.execute("SELECT state, attempt FROM worker.job").fetchall() == [("available", 0)]


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.RELEASED])
def test_a_returned_job_belongs_to_nobody(claimed: Claim, db: psycopg.Connection, outcome: Outcome) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, outcome)])

    assert db.execute("SELECT claimed_by, claimed_at FROM worker.job").fetchall() == [(None, None)]


def test_a_batch_may_hold_every_outcome(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in EVERY_OUTCOME:
        insert_job()
    batch = [outcome_of(one, outcome) for one, outcome in zip(claim(db), EVERY_OUTCOME, strict=True)]

    assert settle(db, SCHEMA, batch) == {settlement.id for settlement in batch}


# The fence


@pytest.mark.parametrize("outcome", EVERY_OUTCOME)
def test_a_stale_token_writes_nothing(claimed: Claim, db: psycopg.Connection, outcome: Outcome) -> None:
    db.execute("UPDATE worker.job SET token = token + 1")
    before = everything(db)

    settle(db, SCHEMA, [outcome_of(claimed, outcome, error="late", options="{}", following=(child(),))])

    assert everything(db) == before


def test_a_stale_token_is_not_among_the_ids_that_held(claimed: Claim, db: psycopg.Connection) -> None:
    db.execute("UPDATE worker.job SET token = token + 1")

    assert settle(db, SCHEMA, [outcome_of(claimed)]) == set()


@pytest.mark.parametrize("outcome", EVERY_OUTCOME)
def test_a_settled_job_cannot_be_settled_by_the_same_token_again(
    claimed: Claim, db: psycopg.Connection, outcome: Outcome
) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, outcome)])

    assert settle(db, SCHEMA, [outcome_of(claimed)]) == set()


def test_what_follows_from_a_job_is_sent_with_its_outcome(claimed: Claim, db: psycopg.Connection) -> None:
    new = child()

    settle(db, SCHEMA, [outcome_of(claimed, following=(new,))])

    assert column(db, "SELECT id FROM worker.job") == [new.id]


def test_what_follows_from_one_of_a_batch_that_lost_its_lease_is_not_sent(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job()
    insert_job()
    held, lost = claim(db)
    db.execute("UPDATE worker.job SET token = token + 1 WHERE id = %s", [lost.id])
    of_held, of_lost = child(), child()

    settle(db, SCHEMA, [outcome_of(held, following=(of_held,)), outcome_of(lost, following=(of_lost,))])

    assert column(db, "SELECT id FROM worker.job WHERE actor = 'receipt'") == [of_held.id]


def test_so_are_those_with_a_key_or_tags(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    insert_job()
    held, lost = claim(db)
    db.execute("UPDATE worker.job SET token = token + 1 WHERE id = %s", [lost.id])
    keyed = Unique("k").holding(None)
    of_held, of_lost = child()._replace(key=keyed), child()._replace(tags=("a",))

    settle(db, SCHEMA, [outcome_of(held, following=(of_held,)), outcome_of(lost, following=(of_lost,))])

    assert column(db, "SELECT id FROM worker.job WHERE actor = 'receipt'") == [of_held.id]
    assert column(db, "SELECT job_id FROM worker.job_key UNION SELECT job_id FROM worker.job_tag") == [of_held.id]


@pytest.mark.parametrize("outcome", EVERY_OUTCOME)
def test_a_repeated_batch_changes_nothing(claimed: Claim, db: psycopg.Connection, outcome: Outcome) -> None:
    batch = [outcome_of(claimed, outcome, following=(child(), child(delay=60.0)))]
    settle(db, SCHEMA, batch)
    before = everything(db)

    settle(db, SCHEMA, batch)

    assert everything(db) == before


def test_what_was_settled_in_a_transaction_is_undone_with_it(
    claimed: Claim, database: str, db: psycopg.Connection
) -> None:
    before = everything(db)
    with psycopg.connect(database) as conn:
        settle(conn, SCHEMA, [outcome_of(claimed, following=(child(),))])

        conn.rollback()

    assert everything(db) == before


# A row that cannot be stored


def settled_by_dispatcher(database: str, batch: list[Settlement]) -> list[bool]:
    """Whether each held; written in as few statements as the dispatcher can."""
    with dispatching(database) as dispatcher:
        return [future.result(20) for future in [dispatcher.settle(settlement) for settlement in batch]]


def test_an_outcome_that_cannot_be_stored_buries_its_job_with_the_reason(
    claimed: Claim, database: str, db: psycopg.Connection
) -> None:
    settled_by_dispatcher(database, [outcome_of(claimed, Outcome.RETRY, options=POISON)])

    assert "its outcome (retry) could not be stored: unsupported Unicode escape sequence" in scalar(
        db, "SELECT error FROM worker.job_dead"
    )


def test_an_outcome_that_cannot_be_stored_spoils_no_other_of_its_batch(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    for _ in range(40):
        insert_job()
    jobs = claim(db, limit=40)
    batch = [outcome_of(one) for one in jobs[:-1]] + [outcome_of(jobs[-1], options=POISON)]

    settled_by_dispatcher(database, batch)

    assert column(db, "SELECT id FROM worker.job_dead") == [jobs[-1].id]
    assert scalar(db, "SELECT count(*) FROM worker.job_history WHERE outcome = 'done'") == 39


def test_an_outcome_waits_for_a_server_that_is_read_only_for_a_while(claimed: Claim, db: psycopg.Connection) -> None:
    """It is not the outcome that cannot be stored: burying the job would make a failover's moment final."""
    outcomes = GroupCommit(SCHEMA, History(SCHEMA), lambda settlement, held: None)
    written: Future[bool] = Future()
    outcomes.add(outcome_of(claimed), written)
    db.execute("SET default_transaction_read_only = on")

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), capture_logs() as logs:
        outcomes.write_apart(db, outcomes.take())

    assert logs == []
    db.execute("SET default_transaction_read_only = off")
    outcomes.write_apart(db, outcomes.take())
    assert written.result(0)
    assert column(db, "SELECT outcome FROM worker.job_history") == ["done"]


def test_a_job_that_is_done_when_the_history_has_ended_is_recorded_as_done(
    claimed: Claim, database: str, db: psycopg.Connection
) -> None:
    with dispatching(database) as dispatcher:
        for _ in range(2):  # the second in another pass than the first, and between them it has kept house
            dispatcher.submit(lambda conn: None).result(10)
        for name in column(db, "SELECT inhrelid::regclass::text FROM pg_inherits"):
            if "job_history_2" in name and "_id_" not in name:
                db.execute(f"DROP TABLE {name}".encode())

        dispatcher.settle(outcome_of(claimed)).result(10)

    assert column(db, "SELECT outcome FROM worker.job_history") == ["done"]


@pytest.mark.parametrize("error", ["a\0b", "\ud800", "x" * 10_000])
def test_every_error_text_can_be_stored(claimed: Claim, db: psycopg.Connection, error: str) -> None:
    settle(db, SCHEMA, [outcome_of(claimed, Outcome.DEAD, error=storable(error))])

    assert scalar(db, "SELECT count(*) FROM worker.job_dead") == 1
