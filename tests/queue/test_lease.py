"""Leases: a dead worker's jobs are found and run again; a live one's never, however slow they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.factories import backend_pid, column, is_there, scalar, terminate
from tests.queue.conftest import SCHEMA, InsertJob, claim
from worker import clock
from worker.queue.last_words import LastWords
from worker.queue.lease import _COUNTDOWN, Lease, application_name
from worker.queue.settlement import Outcome, Settlement, settle

DURATION = 10.0
YOUNG, OLD_ENOUGH = 5.0, DURATION + 1


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Worker:
    """A worker as the database knows it: a lease on a session."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self.conn = conn
        self.lease = Lease(SCHEMA, duration=DURATION, slots=1, pool_size=2)
        self.id = self.lease.worker_id
        self.lease.register(conn)

    def rescue(self) -> int:
        return self.lease.rescue(self.conn).jobs

    def lose_session(self, db: psycopg.Connection) -> None:
        terminate(db, backend_pid(self.conn))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    passed = Clock()
    monkeypatch.setattr(clock, "monotonic", passed)
    return passed


@pytest.fixture
def connect(database: str) -> Iterator[Callable[..., psycopg.Connection]]:
    with ExitStack() as stack:

        def one(**options: Any) -> psycopg.Connection:
            return stack.enter_context(psycopg.connect(database, autocommit=True, **options))

        yield one


@pytest.fixture
def rescuer(connect: Callable[..., psycopg.Connection], time: Clock) -> Worker:
    """Old enough to rescue by session, too young to rescue by lease."""
    rescuer = Worker(connect())
    time.advance(YOUNG)
    return rescuer


@pytest.fixture
def other(connect: Callable[..., psycopg.Connection], time: Clock) -> Worker:
    return Worker(connect())


def pass_in_the_database(db: psycopg.Connection, seconds: float) -> None:
    """Put what the database has noted about workers so far back in time."""
    db.execute(
        """
        UPDATE worker.worker
        SET lost_at = lost_at - %(by)s * interval '1 second', heartbeat_at = heartbeat_at - %(by)s * interval '1 second'
        """,
        {"by": seconds},
    )


def states(db: psycopg.Connection) -> list[str]:
    return column(db, "SELECT state FROM worker.job ORDER BY id")


# By session


def test_a_worker_whose_session_is_gone_keeps_its_jobs_until_the_countdown_is_over(
    rescuer: Worker, other: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=other.id)
    other.lose_session(db)
    rescuer.rescue()
    pass_in_the_database(db, 1.0)

    rescuer.rescue()

    assert states(db) == ["running"]


def test_a_worker_whose_session_is_gone_loses_its_jobs_after_the_countdown(
    rescuer: Worker, other: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=other.id)
    other.lose_session(db)
    rescuer.rescue()
    pass_in_the_database(db, 2.0)

    rescuer.rescue()

    assert states(db) == ["available"]


def test_the_next_look_comes_when_the_countdown_that_has_begun_is_over(
    rescuer: Worker, other: Worker, db: psycopg.Connection
) -> None:
    """Polls on the way would find nothing, and one of them would come late."""
    other.lose_session(db)

    begun, running = rescuer.lease.rescue(rescuer.conn), rescuer.lease.rescue(rescuer.conn)

    assert _COUNTDOWN < begun.again_in < _COUNTDOWN + 0.1
    assert running.again_in < _COUNTDOWN / 2


def test_a_worker_that_registers_again_ends_its_countdown(
    rescuer: Worker,
    other: Worker,
    insert_job: InsertJob,
    db: psycopg.Connection,
    connect: Callable[..., psycopg.Connection],
) -> None:
    insert_job(claimed_by=other.id)
    other.lose_session(db)
    rescuer.rescue()
    other.lease.register(connect())
    pass_in_the_database(db, 2.0)

    rescuer.rescue()

    assert states(db) == ["running"]


def test_a_heartbeat_ends_a_countdown_that_began_by_mistake(
    rescuer: Worker, other: Worker, db: psycopg.Connection
) -> None:
    db.execute("UPDATE worker.worker SET lost_at = now() WHERE id = %s", [other.id])

    other.lease.renew(other.conn, [])

    assert scalar(db, "SELECT lost_at FROM worker.worker WHERE id = %s", other.id) is None


def test_a_rescuer_that_has_just_come_back_itself_gives_the_others_a_second(
    other: Worker, connect: Callable[..., psycopg.Connection], db: psycopg.Connection
) -> None:
    """After a restart of the server everybody's session is gone."""
    other.lose_session(db)

    Worker(connect()).rescue()

    assert scalar(db, "SELECT lost_at FROM worker.worker WHERE id = %s", other.id) is None


def test_a_worker_is_told_that_a_rescue_is_needed(rescuer: Worker, other: Worker, db: psycopg.Connection) -> None:
    before = rescuer.lease.renew(rescuer.conn, [])
    other.lose_session(db)

    after = rescuer.lease.renew(rescuer.conn, [])

    assert before is not None
    assert after is not None
    assert (before.needs_rescue, after.needs_rescue) == (False, True)


# By lease


def test_a_slow_job_of_a_live_worker_is_left_alone(
    rescuer: Worker, other: Worker, insert_job: InsertJob, time: Clock, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=other.id)
    db.execute("UPDATE worker.job SET claimed_at = now() - interval '1 day'")
    time.advance(OLD_ENOUGH)

    rescuer.rescue()

    assert states(db) == ["running"]


def test_an_expired_lease_is_left_alone_by_a_rescuer_whose_own_heartbeat_is_younger(
    rescuer: Worker, other: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    """A shared outage expires every lease at once; whoever is back first must not take everybody's jobs."""
    insert_job(claimed_by=other.id)
    pass_in_the_database(db, 3600)

    rescuer.rescue()

    assert states(db) == ["running"]


def test_an_expired_lease_is_taken_by_a_rescuer_whose_own_heartbeat_was_unbroken_for_as_long(
    rescuer: Worker, other: Worker, insert_job: InsertJob, time: Clock, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=other.id)
    pass_in_the_database(db, DURATION + 1)
    time.advance(OLD_ENOUGH)

    rescuer.rescue()

    assert states(db) == ["available"]


def test_a_reconnection_breaks_the_rescuers_own_heartbeat(
    rescuer: Worker, other: Worker, insert_job: InsertJob, time: Clock, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=other.id)
    pass_in_the_database(db, 3600)
    time.advance(OLD_ENOUGH)
    rescuer.lease.register(rescuer.conn)
    time.advance(YOUNG)

    rescuer.rescue()

    assert states(db) == ["running"]


def test_a_lease_that_is_renewed_does_not_expire(other: Worker, db: psycopg.Connection) -> None:
    pass_in_the_database(db, 3600)

    other.lease.renew(other.conn, [])

    assert scalar(db, "SELECT heartbeat_at > now() - interval '5 s' FROM worker.worker")


def test_what_remains_of_a_lease_is_known_to_its_worker(other: Worker, time: Clock) -> None:
    time.advance(4.0)

    assert other.lease.remaining == DURATION - 4.0


def test_a_renewal_counts_from_when_it_was_asked_for(
    other: Worker, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply may be late, and others count from the database's clock."""
    execute = other.lease._execute

    def slow(*args: object) -> object:
        time.advance(3.0)
        return execute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(other.lease, "_execute", slow)

    other.lease.renew(other.conn, [])

    assert other.lease.remaining == DURATION - 3.0


# The rescue


@pytest.fixture
def dead(rescuer: Worker, other: Worker, db: psycopg.Connection) -> Worker:
    """A worker whose countdown is over."""
    other.lose_session(db)
    rescuer.rescue()
    pass_in_the_database(db, 2.0)
    return other


def test_a_rescued_job_belongs_to_nobody_and_keeps_its_attempt(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=dead.id)

    rescuer.rescue()

    assert db.execute("SELECT claimed_by, attempt, crashes FROM worker.job").fetchall() == [(None, 1, 1)]


def test_a_rescued_jobs_old_delivery_writes_nothing(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    job_id = insert_job(claimed_by=dead.id)
    rescuer.rescue()

    settle(db, SCHEMA, [Settlement(job_id, 1, Outcome.DONE)])

    assert states(db) == ["available"]


def test_a_job_that_took_its_third_worker_along_is_quarantined(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    from worker.queue.history import History

    History(SCHEMA).maintain(db, clock.now().date())
    job_id = insert_job(claimed_by=dead.id, crashes=2, args={"invoice_id": 42})

    rescuer.rescue()

    query = "SELECT id, crashes, args, error FROM worker.job_dead"
    reason = "quarantined: 3 workers died while they ran it"
    assert db.execute(query.encode()).fetchall() == [(job_id, 3, {"invoice_id": 42}, reason)]
    assert states(db) == []


@pytest.mark.parametrize("errors", ["[]", '"by hand"', "{}"])
def test_a_rescued_job_knows_what_its_worker_last_said(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection, errors: str
) -> None:
    job_id = insert_job(claimed_by=dead.id)
    db.execute("UPDATE worker.job SET options = jsonb_build_object('errors', %s::jsonb)", [errors])
    said = LastWords(memory=512 * 2**20, statements={str(job_id): "SELECT 1"})
    db.execute("UPDATE worker.worker SET memory = %s, statements = %s", [said.memory, Jsonb(said.statements)])

    rescuer.rescue()

    [error] = scalar(db, "SELECT options -> 'errors' FROM worker.job")
    known = r"its worker died; 512 MB in memory at its heartbeat of 20.*Z; the job's last statement by then: SELECT 1"
    assert (error["attempt"], bool(re.fullmatch(known, error["error"]))) == (1, True), error


def test_a_job_that_took_two_workers_along_gets_another_chance(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=dead.id, crashes=1)

    rescuer.rescue()

    assert states(db) == ["available"]


@pytest.mark.parametrize(("crashes", "suspected"), [(0, False), (1, True)])
def test_a_job_that_ran_when_two_workers_died_is_a_suspect(
    crashes: int, suspected: bool, rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=dead.id, crashes=crashes)

    rescuer.rescue()

    assert column(db, "SELECT suspect_since IS NOT NULL FROM worker.job") == [suspected]


def test_what_ran_when_a_worker_died_is_claimed_at_once_beside_others_but_not_ahead_of_a_slot(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    jobs = [insert_job(claimed_by=dead.id) for _ in range(3)]

    rescuer.rescue()

    assert [one.id for one in claim(db, limit=3, free=2, idle=False)] == jobs[:2]


def test_a_job_that_was_only_claimed_ahead_is_neither_counted_nor_suspected(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=dead.id, crashes=2)
    db.execute("UPDATE worker.job SET ahead = true")

    rescuer.rescue()

    query = "SELECT state, attempt, crashes, suspect_since, ahead FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [("available", 0, 2, None, True)]


def test_a_suspect_that_ends_by_itself_is_no_longer_one(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    job_id = insert_job(claimed_by=dead.id, crashes=1)
    rescuer.rescue()
    (claimed,) = claim(db, idle=True)

    settle(db, SCHEMA, [Settlement(job_id, claimed.token, Outcome.RETRY)])

    assert db.execute("SELECT crashes, suspect_since FROM worker.job").fetchall() == [(2, None)]


def test_jobs_of_a_worker_without_a_row_are_rescued(
    rescuer: Worker, insert_job: InsertJob, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=uuid4())

    rescuer.rescue()

    assert states(db) == ["available"]


def test_the_row_of_a_rescued_worker_goes(rescuer: Worker, dead: Worker, db: psycopg.Connection) -> None:
    rescuer.rescue()

    assert column(db, "SELECT id FROM worker.worker") == [rescuer.id]


def test_a_worker_that_was_declared_dead_hears_it_with_its_next_heartbeat(
    rescuer: Worker, dead: Worker, connect: Callable[..., psycopg.Connection]
) -> None:
    rescuer.rescue()

    assert dead.lease.renew(connect(), []) is None


@pytest.mark.parametrize("job", ["", " 1f3a9c charge"], ids=["idle", "in a job"])
def test_sessions_that_a_dead_worker_left_behind_are_ended(
    job: str, rescuer: Worker, dead: Worker, connect: Callable[..., psycopg.Connection], db: psycopg.Connection
) -> None:
    left = connect(application_name=application_name(dead.id) + job)

    rescuer.rescue()

    assert not wait_gone(db, backend_pid(left))


def wait_gone(db: psycopg.Connection, pid: int) -> bool:
    from tests.waiting import wait_until

    wait_until(lambda: not is_there(db, pid), 5, "the session to end")
    return is_there(db, pid)


def test_a_row_that_is_locked_is_left_for_the_next_look(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    locked, free = insert_job(claimed_by=dead.id), insert_job(claimed_by=dead.id)
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM worker.job WHERE id = %s FOR UPDATE", [locked])
        rescuer.rescue()
        first = column(db, "SELECT id FROM worker.job WHERE state = 'available'")

    rescuer.rescue()

    assert (first, states(db)) == ([free], ["available"] * 2)


def test_a_second_rescuer_leaves_a_dead_worker_to_the_first(
    rescuer: Worker, dead: Worker, insert_job: InsertJob, database: str, db: psycopg.Connection
) -> None:
    insert_job(claimed_by=dead.id)
    with psycopg.connect(database) as first:
        first.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [str(dead.id)])

        assert rescuer.rescue() == 0


def test_an_orderly_stop_leaves_no_row(other: Worker, db: psycopg.Connection) -> None:
    other.lease.unregister(other.conn)

    assert column(db, "SELECT id FROM worker.worker") == []


def test_every_boot_is_another_worker() -> None:
    ids: set[UUID] = {Lease(SCHEMA, duration=DURATION, slots=1, pool_size=2).worker_id for _ in range(3)}

    assert len(ids) == 3
