"""Claiming: the right jobs, in the right order, each by one worker."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg

from tests.factories import InThread, column, scalar
from tests.queue.conftest import SCHEMA, InsertJob, claim
from worker.queue.statements import PROMOTE_DUE


def claimed_ids(*args: psycopg.Connection, **options: object) -> list[UUID]:
    return [claimed.id for claimed in claim(*args, **options)]  # type: ignore[arg-type]  # claim's own


def test_a_claimed_job_is_running_under_its_workers_name(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    worker = uuid4()

    claim(db, worker=worker)

    assert db.execute("SELECT state, claimed_by FROM worker.job").fetchall() == [("running", worker)]


def test_each_claim_raises_the_token_and_counts_an_attempt(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()

    (claimed,) = claim(db)

    assert (claimed.token, claimed.attempt) == (1, 1)


def test_jobs_come_in_the_order_in_which_they_were_due(insert_job: InsertJob, db: psycopg.Connection) -> None:
    second, first = insert_job(due_in=-1), insert_job(due_in=-2)

    assert claimed_ids(db) == [first, second]


def test_the_one_that_was_due_first_is_claimed_when_there_is_room_for_one(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(due_in=-1)
    first = insert_job(due_in=-2)

    assert claimed_ids(db, limit=1) == [first]


def test_a_lower_priority_number_comes_first(insert_job: InsertJob, db: psycopg.Connection) -> None:
    later, sooner = insert_job(priority=5), insert_job(priority=-1)

    assert claimed_ids(db) == [sooner, later]


def test_a_job_that_has_waited_a_minute_overtakes_one_priority_step(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    fresh, aged = insert_job(priority=0), insert_job(priority=1, due_in=-61)

    assert claimed_ids(db) == [aged, fresh]


def test_a_job_that_has_waited_less_than_a_minute_does_not(insert_job: InsertJob, db: psycopg.Connection) -> None:
    waiting, fresh = insert_job(priority=1, due_in=-55), insert_job(priority=0)

    assert claimed_ids(db) == [fresh, waiting]


def test_a_low_priority_starts_in_its_time_beside_a_stream_of_high_ones(
    insert_job: InsertJob, db: psycopg.Connection
) -> None:
    """Ten steps are worth ten minutes, which were over two minutes ago; the high ones came each minute, as now."""
    low = insert_job(priority=10, due_in=-12 * 60)
    came_before = [insert_job(priority=0, due_in=-60 * minute) for minute in range(3, 12)]
    came_since = [insert_job(priority=0, due_in=-60 * minute) for minute in range(2)]

    claimed = claimed_ids(db, limit=100)

    assert claimed == [*reversed(came_before), low, *reversed(came_since)]


def test_a_claim_over_several_queues_takes_the_first_of_all(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(queue="mail", due_in=-1)
    oldest = insert_job(queue="billing", due_in=-3)
    older = insert_job(queue="mail", due_in=-2)

    assert claimed_ids(db, queues=["mail", "billing"], limit=2) == [oldest, older]


def test_jobs_of_other_queues_stay(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(queue="mail")

    assert claim(db, queues=["billing"]) == []


def test_jobs_of_unknown_actors_stay_and_hold_nobody_up(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(actor="of another deployment", due_in=-5)
    known = insert_job(actor="charge")

    assert claimed_ids(db, actors=["charge"], limit=1) == [known]


def test_no_more_are_claimed_than_there_is_room_for(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(3):
        insert_job()

    assert len(claim(db, limit=2)) == 2


def test_a_running_job_is_not_claimed_again(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()
    claim(db)

    assert claim(db) == []


def test_a_claimer_passes_the_rows_that_another_is_just_claiming(
    insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    first, second = insert_job(due_in=-1), insert_job()
    with psycopg.connect(database) as other:
        taken = claimed_ids(other, limit=1)

        left = claimed_ids(db, limit=2)

    assert (taken, left) == ([first], [second])


def test_racing_claimers_get_every_job_once(insert_job: InsertJob, database: str) -> None:
    made = {insert_job() for _ in range(60)}

    def claim_all() -> list[UUID]:
        ids: list[UUID] = []
        with psycopg.connect(database, autocommit=True) as conn:
            while found := claimed_ids(conn, limit=3):
                ids += found
        return ids

    claimers = [InThread(claim_all) for _ in range(4)]
    ids = [job_id for claimer in claimers for job_id in claimer.result()]

    assert (len(ids), set(ids)) == (60, made)


def test_a_job_for_later_is_not_claimed(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job(state="scheduled", due_in=60)

    assert claim(db) == []


def test_a_job_whose_time_has_come_is_promoted(insert_job: InsertJob, db: psycopg.Connection) -> None:
    due = insert_job(state="scheduled", due_in=-1)
    insert_job(state="scheduled", due_in=60)

    db.execute(SCHEMA.render(PROMOTE_DUE).encode(), {"due_low": None})

    assert column(db, "SELECT id FROM worker.job WHERE state = 'available'") == [due]


def test_a_row_cannot_be_running_without_an_owner(insert_job: InsertJob, db: psycopg.Connection) -> None:
    insert_job()

    try:
        db.execute("UPDATE worker.job SET state = 'running'")
    except psycopg.errors.CheckViolation as exc:
        broken = exc.diag.constraint_name

    assert broken == "job_running_is_claimed"
    assert scalar(db, "SELECT state FROM worker.job") == "available"


# Ahead of a slot, and suspects


def test_jobs_beyond_the_free_slots_are_claimed_ahead(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for _ in range(4):
        insert_job()

    assert [one.ahead for one in claim(db, limit=4, free=1)] == [False, True, True, True]


def test_jobs_that_hold_a_connection_have_a_limit_of_their_own(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for actor in ("hold", "hold", "charge", "hold", "charge"):
        insert_job(actor=actor)

    claimed = claim(db, limit=10, holding=["hold"], checkouts=1)

    assert [one.actor for one in claimed] == ["hold", "charge", "charge"]


def test_both_limits_hold_at_once(insert_job: InsertJob, db: psycopg.Connection) -> None:
    for actor in ("hold", "hold", "hold", "charge", "charge"):
        insert_job(actor=actor)

    claimed = claim(db, limit=3, holding=["hold"], checkouts=2)

    assert [one.actor for one in claimed] == ["hold", "hold", "charge"]


def suspect(db: psycopg.Connection, job_id: UUID, *, since: float = 30.0) -> None:
    query = "UPDATE worker.job SET crashes = 1, suspect_since = now() - %s * interval '1 second' WHERE id = %s"
    db.execute(query.encode(), [since, job_id])


def test_a_suspect_is_claimed_alone_by_an_idle_worker(insert_job: InsertJob, db: psycopg.Connection) -> None:
    suspected, *_ = [insert_job() for _ in range(3)]
    suspect(db, suspected)

    claimed = claim(db, idle=True)

    assert [(one.id, one.suspect) for one in claimed] == [(suspected, True)]


def test_two_suspects_are_claimed_one_after_the_other(insert_job: InsertJob, db: psycopg.Connection) -> None:
    suspects = [insert_job() for _ in range(2)]
    for job_id in suspects:
        suspect(db, job_id)

    assert [[one.id for one in claim(db, idle=True)] for _ in suspects] == [[job_id] for job_id in suspects]


def test_a_busy_worker_passes_a_suspect_by(insert_job: InsertJob, db: psycopg.Connection) -> None:
    suspected, other = insert_job(), insert_job()
    suspect(db, suspected, since=30.0)

    assert [one.id for one in claim(db, idle=False)] == [other]


def test_a_busy_worker_makes_way_for_a_suspect_now_and_then(insert_job: InsertJob, db: psycopg.Connection) -> None:
    before, suspected, _ = [insert_job() for _ in range(3)]
    suspect(db, suspected, since=65.0)

    assert [one.id for one in claim(db, idle=False)] == [before]


def test_a_bystander_is_not_claimed_ahead_again(insert_job: InsertJob, db: psycopg.Connection) -> None:
    first, bystander, _ = [insert_job() for _ in range(3)]
    db.execute("UPDATE worker.job SET ahead = true WHERE id = %s", [bystander])

    assert [one.id for one in claim(db, limit=3, free=1)] == [first]


def test_a_bystander_is_claimed_for_a_free_slot(insert_job: InsertJob, db: psycopg.Connection) -> None:
    jobs = [insert_job() for _ in range(3)]
    db.execute("UPDATE worker.job SET ahead = true WHERE id = %s", [jobs[1]])

    assert [(one.id, one.ahead) for one in claim(db, limit=3, free=3)] == [(job_id, False) for job_id in jobs]
