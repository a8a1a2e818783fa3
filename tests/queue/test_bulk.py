"""Many jobs in one call: all or none, in order, in one transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, LiteralString
from uuid import RFC_4122, UUID

import dramatiq
import dramatiq.brokers.stub
import msgspec
import psycopg
import pytest

import worker
from tests.factories import column, scalar
from tests.queue.conftest import claim
from worker import ArgumentError, ConfigError, PostgresBroker, bind, job

# More than one statement takes.
SEVERAL = 6000


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge")
    def charge(invoice_id: int, note: str = "") -> None: ...

    return charge


@pytest.fixture
def as_global(broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)


def num_jobs(db: psycopg.Connection) -> int:
    return int(scalar(db, "SELECT count(*) FROM worker.job"))


@pytest.mark.parametrize("size", [1, 10, 5000, 5001, 12_000])
def test_a_bulk_of_any_size_enqueues_each_job_in_order(charge: Any, db: psycopg.Connection, size: int) -> None:
    sent = charge.send_many((n,) for n in range(size))

    args: dict[str, int] = dict(db.execute("SELECT id::text, (args ->> 'invoice_id')::int FROM worker.job").fetchall())
    assert [args[message.message_id] for message in sent] == list(range(size))


def test_rows_are_tuples_dicts_or_messages(charge: Any, db: psycopg.Connection) -> None:
    charge.send_many([(1, "a"), [2], {"invoice_id": 3}, charge.message(4)])

    assert column(db, "SELECT args ->> 'invoice_id' FROM worker.job ORDER BY 1") == ["1", "2", "3", "4"]


def test_a_bulk_is_claimed_in_its_order(charge: Any, db: psycopg.Connection) -> None:
    charge.send_many([(n,) for n in range(SEVERAL)])

    claimed = [msgspec.json.decode(found.args or "")["invoice_id"] for found in claim(db, limit=SEVERAL)]

    assert claimed == list(range(SEVERAL))


@pytest.mark.parametrize("size", [3, SEVERAL])
def test_options_count_for_each_job_of_a_bulk(charge: Any, db: psycopg.Connection, size: int) -> None:
    at = datetime(2100, 1, 1, tzinfo=UTC)
    charge.send_many([(n,) for n in range(size)], at=at, priority=3, tags=["import"])

    query = "SELECT DISTINCT state, priority, due_at, rank FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [("scheduled", 3, at, at + timedelta(minutes=3))]
    assert scalar(db, "SELECT count(*) FROM worker.job_tag WHERE tag = 'import'") == size


@pytest.mark.parametrize("note", ["", 'a "b" \\ \n\x1e\t,]}', "\\u0000 é 漢 🚗", "{}[]"], ids=ascii)
def test_text_arrives_as_it_was(charge: Any, db: psycopg.Connection, note: str) -> None:
    charge.send_many([(n, note) for n in range(3)])

    assert column(db, "SELECT args ->> 'note' FROM worker.job") == [note] * 3


def test_jobs_of_a_bulk_may_differ_in_more_than_arguments(charge: Any, db: psycopg.Connection) -> None:
    at = datetime(2100, 1, 1, tzinfo=UTC)
    options: list[dict[str, Any]] = [{}, {"priority": 3}, {"at": at}, {"max_retries": 1}]

    charge.send_many([charge.message_with_options(args=(n,), **each) for n, each in enumerate(options)])

    query = "SELECT state, priority, options FROM worker.job ORDER BY (args ->> 'invoice_id')::int"
    assert db.execute(query.encode()).fetchall() == [
        ("available", 0, {}),
        ("available", 3, {}),
        ("scheduled", 0, {}),
        ("available", 0, {"max_retries": 1}),
    ]


@pytest.mark.parametrize(
    ("differing", "columns"),
    [
        ({"at": datetime(2100, 1, 1, tzinfo=UTC)}, "state"),
        ({"priority": 3}, "priority"),
        ({"max_retries": 1}, "options"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_jobs_of_a_bulk_may_differ_in_one_thing_alone(
    charge: Any, db: psycopg.Connection, differing: dict[str, Any], columns: LiteralString, *, first: bool
) -> None:
    messages = [charge.message_with_options(args=(1,), **differing), charge.message_with_options(args=(2,))]

    charge.send_many(messages if first else messages[::-1])

    query: LiteralString = "SELECT {} FROM worker.job ORDER BY (args ->> 'invoice_id')::int"
    [(one,), (other,)] = db.execute(query.format(columns).encode()).fetchall()
    assert one != other


def test_jobs_of_two_queues_and_actors_in_one_bulk_keep_theirs(broker: PostgresBroker, db: psycopg.Connection) -> None:
    @job(broker=broker, name="here")
    def here(number: int) -> None: ...

    @job(broker=broker, name="there", queue="elsewhere")
    def there(number: int) -> None: ...

    broker.enqueue_many([here.message(1), there.message(2)])

    query = "SELECT actor, queue FROM worker.job ORDER BY actor"
    assert db.execute(query.encode()).fetchall() == [("here", "default"), ("there", "elsewhere")]


def test_a_delay_counts_for_each_job_of_a_bulk(charge: Any, db: psycopg.Connection) -> None:
    charge.send_many([(1,), (2,)], delay=timedelta(hours=1))

    query = "SELECT DISTINCT state, due_at - now() BETWEEN interval '59 minutes' AND interval '1 hour' FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [("scheduled", True)]


def test_what_a_hook_adds_to_the_options_of_one_message_is_not_anothers(
    charge: Any, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    class Numbering(dramatiq.Middleware):
        actor_options: ClassVar[set[str]] = {"number"}

        def before_enqueue(self, broker: Any, message: dramatiq.Message[Any], delay: int | None) -> None:
            message.options["number"] = message.options.get("number", 0) + message.args[0]

    broker.add_middleware(Numbering())

    charge.send_many([(1,), (2,), (3,)], max_retries=1)

    assert column(db, "SELECT options ->> 'number' FROM worker.job ORDER BY 1") == ["1", "2", "3"]


def test_ids_of_a_bulk_are_as_those_of_single_sends(charge: Any) -> None:
    ids = [UUID(message.message_id) for message in charge.send_many([(n,) for n in range(200)])]

    assert ids == sorted(set(ids))
    assert {(each.version, each.variant) for each in ids} == {(7, RFC_4122)}


@pytest.mark.parametrize("size", [3, SEVERAL])
def test_a_bulk_wakes_workers(charge: Any, db: psycopg.Connection, size: int) -> None:
    db.execute("LISTEN worker_wake")

    charge.send_many([(n,) for n in range(size)])

    assert len(list(db.notifies(timeout=5, stop_after=1))) == 1


@pytest.mark.parametrize("size", [3, SEVERAL])
def test_a_bulk_joins_the_transaction_it_is_sent_in(
    charge: Any, database: str, db: psycopg.Connection, size: int
) -> None:
    with psycopg.connect(database) as conn:
        with bind(conn):
            charge.send_many([(n,) for n in range(size)])
        before = num_jobs(db)
        conn.rollback()

    assert (before, num_jobs(db)) == (0, 0)


def test_an_argument_that_does_not_fit_is_named_by_its_place_and_nothing_is_enqueued(
    charge: Any, db: psycopg.Connection
) -> None:
    with pytest.raises(ArgumentError, match=r"send_many\(\), item 7: job 'charge': .*\$\.invoice_id"):
        charge.send_many([(n if n != 7 else "seven",) for n in range(2000)])

    assert num_jobs(db) == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (42, r"item 0: job 'charge': it is 42: expected a tuple of arguments"),
        ((), r"missing a required argument: 'invoice_id'"),
        ({"invoice": 1}, r"missing a required argument: 'invoice_id'"),
    ],
    ids=str,
)
def test_a_row_that_is_no_row_is_refused(charge: Any, row: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        charge.send_many([row])


@pytest.mark.parametrize("size", [3, SEVERAL])
def test_a_bulk_may_be_part_of_a_pipeline(charge: Any, db: psycopg.Connection, size: int) -> None:
    with db.pipeline():
        charge.send_many([(n,) for n in range(size)], connection=db)

    assert num_jobs(db) == size


def test_the_same_message_twice_is_refused(charge: Any, db: psycopg.Connection) -> None:
    message = charge.message(1)

    with pytest.raises(ArgumentError, match="some are the same: send each once"):
        charge.send_many([message, message])

    assert num_jobs(db) == 0


def test_nothing_can_be_sent_too(charge: Any) -> None:
    assert charge.send_many([]) == []


@pytest.mark.parametrize("size", [3, SEVERAL])
def test_messages_sent_again_in_bulk_replace_their_jobs(charge: Any, db: psycopg.Connection, size: int) -> None:
    sent = charge.send_many([(n,) for n in range(size)])

    charge.send_many([message.copy(args=(-1,)) for message in sent])

    assert column(db, "SELECT DISTINCT args ->> 'invoice_id' FROM worker.job") == ["-1"]
    assert num_jobs(db) == size


def test_a_bulk_of_large_arguments_is_whole_too(charge: Any, db: psycopg.Connection) -> None:
    """Beyond what one statement should carry."""
    note = "x" * 900_000

    charge.send_many([(n, note) for n in range(20)])

    assert scalar(db, "SELECT count(*) FROM worker.job WHERE length(args ->> 'note') = %s", len(note)) == 20


def test_a_bulk_of_several_statements_is_one_transaction(charge: Any, db: psycopg.Connection) -> None:
    charge.send_many([(n,) for n in range(SEVERAL)])

    assert scalar(db, "SELECT count(DISTINCT xmin::text) FROM worker.job") == 1


@pytest.mark.usefixtures("as_global")
def test_messages_of_several_actors_are_sent_together(
    charge: Any, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @dramatiq.actor(broker=broker)
    def plain(word: str) -> None: ...

    worker.send_many([charge.message(1), plain.message("a")])

    assert column(db, "SELECT actor FROM worker.job ORDER BY actor") == ["charge", "plain"]


@pytest.mark.usefixtures("as_global")
def test_a_message_that_cannot_be_sent_is_named_by_its_place(charge: Any, db: psycopg.Connection) -> None:
    with pytest.raises(ArgumentError, match=r"send_many\(\), item 1: job 'charge'"):
        worker.send_many([charge.message(1), charge.message("x")])

    assert num_jobs(db) == 0


def test_sending_many_to_another_broker_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dramatiq.broker, "global_broker", dramatiq.brokers.stub.StubBroker())

    with pytest.raises(ConfigError, match="a StubBroker"):
        worker.send_many([])
