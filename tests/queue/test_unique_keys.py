"""Unique keys: of jobs with the same key one is enqueued, whoever sends, however many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import InThread, column, scalar
from tests.queue.conftest import claim
from tests.waiting import wait_until
from worker import Limit, PostgresBroker, Rate, Unique, bind, job
from worker.queue.feed import Room
from worker.queue.history import History
from worker.queue.lanes import admit
from worker.queue.lease_statements import RESCUE_JOBS
from worker.queue.rates import clear
from worker.queue.schema import Schema
from worker.queue.settlement import Outcome, Settlement, settle

QUEUED = Unique("k")
RUNNING = Unique("k", scope="running")
REPLACE = Unique("k", on_conflict="replace")
DEBOUNCE = Unique("k", on_conflict="debounce")
WINDOW = Unique("k", scope=timedelta(hours=1))


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge")
    def charge(invoice_id: int) -> None: ...

    return charge


@pytest.fixture
def caller(database: str) -> Any:
    with psycopg.connect(database) as conn:
        yield conn


@pytest.fixture
def other(database: str) -> Any:
    with psycopg.connect(database) as conn:
        yield conn


def invoices(db: psycopg.Connection) -> list[int]:
    return column(db, "SELECT (args ->> 'invoice_id')::int FROM worker.job ORDER BY id")


def end(db: psycopg.Connection, outcome: Outcome) -> None:
    """Claim the one job and settle it like this."""
    History(Schema()).maintain(db)
    [claimed] = claim(db)
    settle(db, Schema(), [Settlement(claimed.id, claimed.token, outcome, error="no")])


def test_a_second_send_with_the_same_key_enqueues_nothing(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique=QUEUED)
    charge.send_with_options(args=(2,), unique=QUEUED)

    assert invoices(db) == [1]


def test_a_send_tells_which_job_stands_for_it(charge: Any) -> None:
    first = charge.send_with_options(args=(1,), unique=QUEUED)

    second = charge.send_with_options(args=(2,), unique=QUEUED)

    assert (first.is_new, second.is_new) == (True, False)
    assert second.message_id == first.message_id


def test_another_key_is_another_job(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique="a")
    charge.send_with_options(args=(2,), unique="b")

    assert invoices(db) == [1, 2]


def test_another_jobs_key_is_another_key(charge: Any, broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker)
    def refund(invoice_id: int) -> None: ...

    charge.send_with_options(args=(1,), unique="k")
    refund.send_with_options(args=(2,), unique="k")

    assert invoices(db) == [1, 2]


@pytest.mark.parametrize(("unique", "expected"), [(QUEUED, [1, 2]), (RUNNING, [1]), (WINDOW, [1])], ids=str)
def test_a_running_job_holds_its_key_as_its_scope_says(
    charge: Any, db: psycopg.Connection, unique: Unique, expected: list[int]
) -> None:
    charge.send_with_options(args=(1,), unique=unique)
    claim(db)

    charge.send_with_options(args=(2,), unique=unique)

    assert invoices(db) == expected


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.DEAD])
@pytest.mark.parametrize(("unique", "expected"), [(QUEUED, [2]), (RUNNING, [2]), (WINDOW, [])], ids=str)
def test_a_job_that_is_over_holds_no_key_but_a_window(
    charge: Any, db: psycopg.Connection, outcome: Outcome, unique: Unique, expected: list[int]
) -> None:
    charge.send_with_options(args=(1,), unique=unique)
    end(db, outcome)

    charge.send_with_options(args=(2,), unique=unique)

    assert invoices(db) == expected


def test_a_deleted_job_holds_no_key(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique=RUNNING)
    db.execute("DELETE FROM worker.job")

    charge.send_with_options(args=(2,), unique=RUNNING)

    assert invoices(db) == [2]


def test_a_job_that_waits_for_a_retry_holds_its_key(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique=QUEUED)
    end(db, Outcome.RETRY)

    charge.send_with_options(args=(2,), unique=QUEUED)

    assert invoices(db) == [1]


def test_a_rescued_job_holds_its_key_until_it_is_over(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique=RUNNING)
    dead = uuid4()
    claim(db, worker=dead)
    db.execute(Schema().render(RESCUE_JOBS).encode(), {"dead": dead, "max_crashes": 3, "reason": "crashed"})

    charge.send_with_options(args=(2,), unique=RUNNING)
    while_rescued = invoices(db)
    end(db, Outcome.DONE)
    charge.send_with_options(args=(3,), unique=RUNNING)

    assert (while_rescued, invoices(db)) == ([1], [3])


def test_a_window_ends(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique=WINDOW)
    db.execute("UPDATE worker.job_key SET expires_at = now() - interval '1 s'")

    charge.send_with_options(args=(2,), unique=WINDOW)

    assert invoices(db) == [1, 2]


def test_replace_gives_the_waiting_job_the_new_arguments_at_its_old_place(charge: Any, db: psycopg.Connection) -> None:
    first = charge.send_with_options(args=(1,), unique=REPLACE, delay=timedelta(hours=1))
    due_at = scalar(db, "SELECT due_at FROM worker.job")

    second = charge.send_with_options(args=(2,), unique=REPLACE, delay=timedelta(hours=2))

    assert (second.is_new, second.message_id) == (False, first.message_id)
    assert db.execute("SELECT args ->> 'invoice_id', due_at FROM worker.job").fetchall() == [("2", due_at)]


def test_debounce_makes_the_waiting_job_wait_anew(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique=DEBOUNCE, delay=timedelta(hours=1))
    due_at = scalar(db, "SELECT due_at FROM worker.job")

    charge.send_with_options(args=(2,), unique=DEBOUNCE, delay=timedelta(hours=2))

    query = "SELECT args ->> 'invoice_id', due_at - %s > interval '59 min' FROM worker.job"
    assert db.execute(query, [due_at]).fetchall() == [("2", True)]


def test_replacing_a_job_that_runs_leaves_it_alone(charge: Any, db: psycopg.Connection) -> None:
    unique = Unique("k", scope="running", on_conflict="replace")
    charge.send_with_options(args=(1,), unique=unique)
    claim(db)

    second = charge.send_with_options(args=(2,), unique=unique)

    assert (second.is_new, invoices(db)) == (False, [1])


def test_a_job_can_be_unique_by_its_arguments(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, unique=True)
    def charge(invoice_id: int) -> None: ...

    for invoice_id in (1, 2, 1):
        charge.send(invoice_id)

    assert invoices(db) == [1, 2]


def test_a_job_can_be_unique_by_some_of_its_arguments(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, unique=Unique(by=["invoice_id"]))
    def charge(invoice_id: int, note: str = "") -> None: ...

    charge.send(1, "a")
    charge.send(invoice_id=1, note="b")

    assert invoices(db) == [1]


def test_a_long_key_of_arguments_becomes_a_digest(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, unique=True)
    def charge(note: str) -> None: ...

    charge.send("x" * 1000)

    assert scalar(db, "SELECT key ~ '^sha256:[0-9a-f]{64}$' FROM worker.job_key")


def test_a_send_can_do_without_the_jobs_own_key(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, unique=True)
    def charge(invoice_id: int) -> None: ...

    charge.send(1)
    charge.send_with_options(args=(1,), unique=False)

    assert invoices(db) == [1, 1]


def test_a_name_that_is_no_argument_is_refused_at_the_declaration(broker: PostgresBroker) -> None:
    with pytest.raises(TypeError, match=r"job 'charge': 'user' is none of its arguments \(invoice_id\)"):

        @job(broker=broker, unique=Unique(by=["user"]))
        def charge(invoice_id: int) -> None: ...


def test_the_same_message_sent_again_replaces_its_job_and_keeps_its_key(
    charge: Any, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    message = charge.send_with_options(args=(1,), unique=QUEUED)

    again = broker.enqueue(message.copy(args=(2,)))

    assert (again.message_id, invoices(db)) == (message.message_id, [2])


def test_a_key_taken_in_a_transaction_that_rolled_back_is_free(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    with bind(caller):
        charge.send_with_options(args=(1,), unique=QUEUED)
    caller.rollback()

    charge.send_with_options(args=(2,), unique=QUEUED)

    assert invoices(db) == [2]


@pytest.mark.parametrize(("end_of_first", "expected"), [("commit", [1]), ("rollback", [2])])
def test_a_second_sender_waits_for_the_first_ones_transaction(
    charge: Any,
    caller: psycopg.Connection,
    other: psycopg.Connection,
    db: psycopg.Connection,
    end_of_first: str,
    expected: list[int],
) -> None:
    with bind(caller):
        charge.send_with_options(args=(1,), unique=QUEUED)

    def send_second() -> None:
        charge.send_with_options(args=(2,), unique=QUEUED, connection=other)
        other.commit()

    second = InThread(send_second)
    waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
    wait_until(lambda: scalar(db, waiting), 10, "the second sender to wait")
    getattr(caller, end_of_first)()
    second.result()

    assert invoices(db) == expected


def test_of_many_senders_at_once_one_enqueues(charge: Any, db: psycopg.Connection) -> None:
    def send(number: int) -> list[Any]:
        return [charge.send_with_options(args=(number,), unique=Unique(f"k{n}")) for n in range(20)]

    senders = [InThread(lambda number=number: send(number)) for number in range(5)]  # type: ignore[misc]
    sent = [message for sender in senders for message in sender.result()]

    assert len(invoices(db)) == 20
    assert sum(message.is_new for message in sent) == 20
    assert {message.message_id for message in sent} == {str(found) for found in column(db, "SELECT id FROM worker.job")}


def test_of_many_senders_at_once_one_takes_the_key_over_from_a_job_that_is_over(
    charge: Any, db: psycopg.Connection
) -> None:
    keys = [Unique(f"k{n}") for n in range(20)]
    charge.send_many([charge.message_with_options(args=(0,), unique=key) for key in keys])
    db.execute("DELETE FROM worker.job")

    def send(number: int) -> list[bool]:
        return [charge.send_with_options(args=(number,), unique=key).is_new for key in keys]

    senders = [InThread(lambda number=number: send(number)) for number in range(5)]  # type: ignore[misc]

    assert sum(is_new for sender in senders for is_new in sender.result()) == 20
    assert len(invoices(db)) == 20


def test_a_send_of_several_statements_is_one_transaction_also_in_autocommit(
    charge: Any, db: psycopg.Connection
) -> None:
    db.execute("ALTER TABLE worker.job_tag ADD CONSTRAINT no_tag CHECK (false)")

    with pytest.raises(psycopg.errors.CheckViolation):
        charge.send_with_options(args=(1,), tags=["a"], connection=db)

    assert invoices(db) == []


def test_a_job_that_a_sender_relies_on_does_not_begin_before_that_sender_commits(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    """Or it would miss what the sender has written, and nothing would run for that."""
    charge.send_with_options(args=(1,), unique=QUEUED)
    with bind(caller):
        charge.send_with_options(args=(2,), unique=QUEUED)

    before = claim(db)
    caller.commit()

    assert (before, len(claim(db))) == ([], 1)


def test_workers_look_again_when_that_sender_has_committed(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    charge.send_with_options(args=(1,), unique=QUEUED)
    db.execute("LISTEN worker_wake")
    with bind(caller):
        charge.send_with_options(args=(2,), unique=QUEUED)
    caller.commit()

    assert len(list(db.notifies(timeout=5, stop_after=1))) == 1


def test_keys_hold_within_one_bulk(charge: Any, db: psycopg.Connection) -> None:
    sent = charge.send_many([(1,), (1,), (2,)], unique=True)

    assert [message.is_new for message in sent] == [True, False, True]
    assert invoices(db) == [1, 2]


def test_of_a_bulk_with_one_key_the_last_one_replaces(charge: Any, db: psycopg.Connection) -> None:
    sent = charge.send_many([(1,), (2,), (3,)], unique=REPLACE)

    assert [message.is_new for message in sent] == [True, False, False]
    assert invoices(db) == [3]


def test_thousands_of_keys_hold_in_one_bulk(charge: Any, db: psycopg.Connection) -> None:
    charge.send_many([(n,) for n in range(0, 3000, 2)], unique=True)

    sent = charge.send_many([(n,) for n in range(3000)], unique=True)

    assert sum(message.is_new for message in sent) == 1500
    assert sorted(invoices(db)) == list(range(3000))


def test_jobs_without_a_key_leave_the_table_of_keys_alone(charge: Any, db: psycopg.Connection) -> None:
    charge.send(1)

    assert scalar(db, "SELECT count(*) FROM worker.job_key") == 0


def test_housekeeping_forgets_keys_that_nobody_holds(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), unique="held")
    gone = charge.send_with_options(args=(2,), unique="gone")
    db.execute("DELETE FROM worker.job WHERE id = %s", [UUID(gone.message_id)])
    db.execute("UPDATE worker.job_key SET taken_at = now() - interval '2 hours'")

    History(Schema()).maintain(db)

    assert column(db, "SELECT key FROM worker.job_key") == ["held"]


def test_housekeeping_forgets_tags_of_jobs_that_the_history_has_forgotten(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), tags=["waits"])
    gone = charge.send_with_options(args=(2,), tags=["gone"])
    db.execute("DELETE FROM worker.job WHERE id = %s", [UUID(gone.message_id)])
    db.execute("UPDATE worker.job_tag SET tagged_at = now() - interval '15 days'")

    History(Schema()).maintain(db)

    assert column(db, "SELECT tag FROM worker.job_tag") == ["waits"]


# In a pipeline of the caller's


def in_a_pipeline(database: str, send: Callable[[psycopg.Connection], Any], *, autocommit: bool) -> Any:
    with psycopg.connect(database, autocommit=autocommit) as conn, conn.pipeline(), bind(conn):
        conn.execute("SELECT 1")
        return send(conn)


def in_an_async_pipeline(
    database: str, send: Callable[[psycopg.AsyncConnection], Awaitable[Any]], *, autocommit: bool
) -> Any:
    async def run() -> Any:
        async with (
            await psycopg.AsyncConnection.connect(database, autocommit=autocommit) as conn,
            conn.pipeline(),
        ):
            with bind(conn):
                await conn.execute("SELECT 1")
                return await send(conn)

    return asyncio.run(run())


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("unique", [QUEUED, RUNNING, REPLACE, WINDOW], ids=str)
def test_a_key_holds_in_a_pipeline(
    charge: Any, database: str, db: psycopg.Connection, unique: Unique, autocommit: bool
) -> None:
    def send(_: object) -> list[bool]:
        return [charge.send_with_options(args=(number,), unique=unique).is_new for number in (1, 2)]

    are_new = in_a_pipeline(database, send, autocommit=autocommit)

    assert are_new == [True, False]
    assert invoices(db) == [2 if unique is REPLACE else 1]


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_key_holds_in_a_pipeline_of_a_coroutine(
    charge: Any, database: str, db: psycopg.Connection, autocommit: bool
) -> None:
    async def send(_: object) -> list[bool]:
        return [(await charge.send_with_options_async(args=(n,), unique=QUEUED, tags=["a"])).is_new for n in (1, 2)]

    are_new = in_an_async_pipeline(database, send, autocommit=autocommit)

    assert (are_new, invoices(db)) == ([True, False], [1])
    assert column(db, "SELECT tag FROM worker.job_tag") == ["a"]


def mixed(charge: Any) -> list[Any]:
    """With keys, of which one is taken over and one is met twice, with tags, with neither, with both."""
    options: list[dict[str, Any]] = [{"unique": "over"}, {"unique": "k"}, {"unique": "k"}, {"tags": ["a"]}, {}]
    options.append({"unique": "both", "tags": ["b", "c"]})
    return [charge.message_with_options(args=(number,), **given) for number, given in enumerate(options)]


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_bulk_with_keys_and_tags_may_be_part_of_a_pipeline(
    charge: Any, database: str, db: psycopg.Connection, autocommit: bool
) -> None:
    charge.send_with_options(args=(-1,), unique="over")
    db.execute("DELETE FROM worker.job")

    sent = in_a_pipeline(database, lambda _: charge.send_many(mixed(charge)), autocommit=autocommit)

    assert [message.is_new for message in sent] == [True, True, False, True, True, True]
    assert sorted(invoices(db)) == [0, 1, 3, 4, 5]
    assert sorted(column(db, "SELECT tag FROM worker.job_tag")) == ["a", "b", "c"]


@pytest.mark.parametrize("autocommit", [False, True])
def test_it_may_be_part_of_one_of_a_coroutine_too(
    charge: Any, database: str, db: psycopg.Connection, autocommit: bool
) -> None:
    async def send(_: object) -> list[Any]:
        return list(await charge.send_many_async(mixed(charge)))

    sent = in_an_async_pipeline(database, send, autocommit=autocommit)

    assert [message.is_new for message in sent] == [True, True, False, True, True, True]
    assert sorted(invoices(db)) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("options", [{"unique": "k", "tags": ["a"]}, {"tags": ["a"]}], ids=str)
def test_a_send_of_several_statements_is_one_transaction_also_in_a_pipeline_in_autocommit(
    charge: Any, database: str, db: psycopg.Connection, options: dict[str, Any]
) -> None:
    db.execute("ALTER TABLE worker.job_tag ADD CONSTRAINT no_tag CHECK (false)")

    with pytest.raises(psycopg.errors.CheckViolation):
        in_a_pipeline(database, lambda _: charge.send_with_options(args=(1,), **options), autocommit=True)

    assert (invoices(db), scalar(db, "SELECT count(*) FROM worker.job_key")) == ([], 0)


def test_a_send_in_a_pipeline_belongs_to_the_transaction_around_it(
    charge: Any, database: str, db: psycopg.Connection
) -> None:
    with psycopg.connect(database, autocommit=True) as conn, conn.pipeline(), conn.transaction(force_rollback=True):
        charge.send_with_options(args=(1,), unique=QUEUED, connection=conn)

    assert invoices(db) == []


def test_a_sender_in_a_pipeline_waits_for_the_first_ones_transaction(
    charge: Any, caller: psycopg.Connection, database: str, db: psycopg.Connection
) -> None:
    """And then sees what that one has left, as each of its statements looks anew."""
    with bind(caller):
        charge.send_with_options(args=(1,), unique=QUEUED)

    def send(_: object) -> bool:
        return bool(charge.send_with_options(args=(2,), unique=QUEUED).is_new)

    second = InThread(lambda: in_a_pipeline(database, send, autocommit=False))
    waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
    wait_until(lambda: scalar(db, waiting), 10, "the second sender to wait")
    caller.commit()

    assert (second.result(), invoices(db)) == (False, [1])


# Beside limits and rates: what it is counted in goes with its arguments


def counted(db: psycopg.Connection) -> list[tuple[Any, ...]]:
    return db.execute("SELECT state, lane, rate FROM worker.job ORDER BY id").fetchall()


def let_in(db: psycopg.Connection) -> None:
    for _ in range(2):
        admit(db, Schema())
        clear(db, Schema(), [Room(["default"], ["charge"], 0)])


@pytest.fixture
def bill(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge", limit=Limit(1, by="to"), rate=Rate(1, per=60, by="to"))
    def bill(to: int) -> None: ...

    return bill


@pytest.mark.parametrize("policy", ["replace", "debounce"])
def test_a_replaced_job_is_counted_by_its_new_arguments(bill: Any, db: psycopg.Connection, policy: Any) -> None:
    unique = Unique("k", on_conflict=policy)
    bill.send_with_options(args=(1,), unique=unique, delay=timedelta(hours=1))

    bill.send_with_options(args=(2,), unique=unique, delay=timedelta(hours=1))

    assert counted(db) == [("scheduled", "charge to=2", "charge to=2")]


def test_a_replaced_job_leaves_its_place_to_the_next_and_waits_for_one(bill: Any, db: psycopg.Connection) -> None:
    other = bill.send(2)
    let_in(db)
    first = bill.send_with_options(args=(1,), unique=REPLACE)
    let_in(db)
    behind = bill.send(1)
    let_in(db)

    bill.send_with_options(args=(2,), unique=REPLACE)
    let_in(db)

    query = "SELECT state FROM worker.job WHERE id = %s"
    states = [scalar(db, query, each.message_id) for each in (other, first, behind)]
    assert states == ["available", "held", "available"]


def test_a_job_whose_new_arguments_have_no_limit_waits_for_none(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, name="charge", limit=Limit(1))
    def limited(to: int) -> None: ...

    first = limited.send(1)
    limited.send_with_options(args=(2,), unique=REPLACE)
    let_in(db)
    del broker.actors["charge"]

    @job(broker=broker, name="charge")
    def charge(to: int) -> None: ...

    charge.send_with_options(args=(3,), unique=REPLACE)

    assert [row[:2] for row in counted(db)] == [("available", "charge"), ("available", None)]
    assert scalar(db, "SELECT args ->> 'to' FROM worker.job WHERE id <> %s", first.message_id) == "3"


def test_a_message_sent_again_with_other_arguments_is_counted_by_them(
    bill: Any, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    message = bill.send(1)
    let_in(db)

    broker.enqueue(message.copy(args=(2,)))

    assert counted(db) == [("held", "charge to=2", "charge to=2")]
