"""The options of a send: what they do, and how one that cannot work is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from tests.factories import column, scalar
from worker import ArgumentError, PostgresBroker, Unique, job
from worker.queue.jobs import JobFilter, Jobs

NEXT_YEAR = datetime(2100, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture
def charge(broker: PostgresBroker) -> Any:
    @job(broker=broker, name="charge", priority=2)
    def charge(invoice_id: int) -> None: ...

    return charge


@pytest.fixture
def caller(database: str) -> Any:
    with psycopg.connect(database) as conn:
        yield conn


def test_a_job_sent_for_an_instant_is_due_exactly_then(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(42,), at=NEXT_YEAR)

    assert db.execute("SELECT state, due_at FROM worker.job").fetchall() == [("scheduled", NEXT_YEAR)]


def test_an_instant_that_is_over_means_now_and_is_no_priority(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(42,), at=datetime(1970, 1, 1, tzinfo=UTC), priority=0)

    query = "SELECT state, now() - rank < interval '1 min' FROM worker.job"
    assert db.execute(query.encode()).fetchall() == [("available", True)]


def test_a_delay_in_milliseconds_keeps_dramatiqs_meaning(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(42,), delay=90_000)

    assert scalar(db, "SELECT due_at BETWEEN now() + interval '80 s' AND now() + interval '90 s' FROM worker.job")


def test_a_short_timedelta_is_not_rounded_to_none(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(42,), delay=timedelta(microseconds=1))

    assert scalar(db, "SELECT state FROM worker.job") == "scheduled"


def test_a_priority_of_the_send_goes_before_the_jobs_own(charge: Any, db: psycopg.Connection) -> None:
    charge.send(1)
    charge.send_with_options(args=(2,), priority=-5)

    assert column(db, "SELECT priority FROM worker.job ORDER BY id") == [2, -5]


def test_options_of_the_row_are_not_told_to_the_run(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), priority=1, tags=["a"], unique="k", at=NEXT_YEAR, max_retries=3)

    assert scalar(db, "SELECT options FROM worker.job") == {"max_retries": 3}


def test_a_timeout_of_one_send_is_in_seconds(charge: Any, db: psycopg.Connection) -> None:
    charge.send_with_options(args=(1,), timeout=1.5)

    assert scalar(db, "SELECT options FROM worker.job") == {"time_limit": 1500}


def test_tags_find_a_job(charge: Any, db: psycopg.Connection) -> None:
    sent = charge.send_with_options(args=(1,), tags=["customer:7", "import"])
    charge.send_with_options(args=(2,), tags=["import"])

    found = Jobs(db).find(JobFilter(tags=["import", "customer:7"]))

    assert [(str(each.id), each.tags) for each in found] == [(sent.message_id, ["customer:7", "import"])]


def test_tags_find_a_job_that_is_done(charge: Any, broker: PostgresBroker, db: psycopg.Connection) -> None:
    sent = charge.send_with_options(args=(1,), tags=["import"])
    db.execute("SET search_path = worker")
    db.execute("CREATE TABLE today PARTITION OF job_history DEFAULT")
    db.execute(
        "WITH done AS (DELETE FROM job RETURNING *) INSERT INTO job_history"
        " SELECT id, queue, actor, 'done', 1, priority, due_at, enqueued_at, now(), now() FROM done"
    )

    assert [str(each.id) for each in Jobs(db).find(JobFilter(tags=["import"]))] == [sent.message_id]


def test_a_send_by_connection_joins_its_transaction(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    charge.send_with_options(args=(42,), connection=caller)
    before = scalar(db, "SELECT count(*) FROM worker.job")

    caller.commit()

    assert (before, scalar(db, "SELECT count(*) FROM worker.job")) == (0, 1)


def test_rows_of_dicts_do_not_confuse_a_send(charge: Any, caller: psycopg.Connection, db: psycopg.Connection) -> None:
    caller.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]  # as applications do
    charge.send_with_options(args=(1,), connection=caller, unique="k")

    again = charge.send_with_options(args=(2,), connection=caller, unique="k")

    assert again.is_new is False


def test_rows_that_only_the_callers_statements_fit_do_not_fail_a_send(
    charge: Any, caller: psycopg.Connection, db: psycopg.Connection
) -> None:
    def only_invoices(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[Any]], Any]:
        assert [column.name for column in cursor.description or ()] == ["invoice_id"]
        return tuple

    caller.row_factory = only_invoices

    charge.send_with_options(args=(1,), connection=caller)

    caller.commit()
    assert scalar(db, "SELECT count(*) FROM worker.job") == 1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"delay": -1}, r"delay=-1: expected milliseconds from now, 0 or more, or a timedelta"),
    ({"delay": timedelta(seconds=-1)}, r"delay=datetime\.timedelta\(.*\): expected milliseconds"),
    ({"delay": float("nan")}, r"delay=nan: expected milliseconds"),
    ({"delay": "5"}, r"delay='5': expected milliseconds"),
    ({"delay": 5, "at": NEXT_YEAR}, r"give delay=5 or at=.*, not both"),
    ({"at": datetime(2100, 1, 1)}, r"at=datetime\.datetime\(2100, 1, 1, 0, 0\) is naive"),  # noqa: DTZ001  # that is it
    ({"at": "tomorrow"}, r"at='tomorrow': expected an aware datetime"),
    ({"priority": "high"}, r"priority='high': expected a whole number from -1000000 to 1000000"),
    ({"priority": True}, r"priority=True: expected a whole number"),
    ({"priority": 10**7}, r"priority=10000000: expected a whole number"),
    ({"tags": "import"}, r"tags='import': expected a list of at most 20 words"),
    ({"tags": [""]}, r"tag '': expected text of 1 to 100 printable characters"),
    ({"tags": ["a\0b"]}, r"tag 'a\\x00b': expected text"),
    ({"tags": [7]}, r"tag 7: expected text"),
    (
        {"unique": "k" * 10_000},
        r"unique key 'kkkkkkkkkkkkkkkkkkkk'\.\.\.: it has 10000 characters, expected at most 500",
    ),
    ({"unique": ""}, r"unique key '': expected text"),
    ({"unique": "a\0b"}, r"unique key 'a\\x00b': it holds a character that Postgres cannot store"),
    ({"unique": "\ud800"}, r"unique key '\\ud800': it holds a character that Postgres cannot store"),
    ({"unique": 7}, r"unique=7: expected a key, a worker\.Unique, or True"),
    ({"unique": Unique(on_conflict="debounce")}, r"'debounce' waits for a pause: give it by delay= or at="),
    ({"timeout": 0}, r"timeout=0: expected more than 0 seconds"),
    ({"max_retries": "3"}, r"max_retries='3': expected a whole number, 0 or more, or None"),
    ({"min_backoff": "soon"}, r"min_backoff='soon': expected a number of milliseconds, 0 or more, or None"),
    ({"max_age": -1}, r"max_age=-1: expected a number of milliseconds"),
    ({"prioritty": 5}, r"option 'prioritty' is unknown: did you mean 'priority'\?"),
    ({"max_retry": 5}, r"option 'max_retry' is unknown: did you mean 'max_retries'\?"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: ascii(value)[:40])
def test_an_option_that_cannot_work_is_refused_with_the_reason(
    charge: Any, db: psycopg.Connection, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentError, match=rf"^job 'charge': .*{said}"):
        charge.send_with_options(args=(42,), **options)

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "k", "by": ["a"]}, "give a key, or by="),
        ({"by": "user_id"}, "expected a list of names"),
        ({"scope": "always"}, "scope='always': expected 'queued', 'running' or a timedelta"),
        ({"scope": timedelta(0)}, "expected a timedelta of more than nothing"),
        ({"on_conflict": "ignore"}, "on_conflict='ignore': expected one of skip, replace, debounce"),
    ],
    ids=str,
)
def test_a_unique_that_cannot_work_is_refused_where_it_is_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Unique(**options)


def test_something_else_than_a_connection_is_refused_by_name(charge: Any) -> None:
    with pytest.raises(TypeError, match=r"job 'charge': connection= takes a psycopg\.Connection .*, not builtins\.str"):
        charge.send_with_options(args=(42,), connection="postgresql://")


def test_a_number_of_a_declaration_that_is_none_is_refused(broker: PostgresBroker) -> None:
    with pytest.raises(ArgumentError, match=r"^job 'charge': max_backoff='1 h': expected a number of milliseconds"):

        @job(broker=broker, max_backoff="1 h")
        def charge() -> None: ...
