"""What the README says that a role needs which only sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.factories import own_database, own_server, scalar
from worker import Limit, PostgresBroker, Rate, bind, job
from worker.queue.schema import Schema

BY_SQL = "GRANT USAGE ON SCHEMA worker TO sender; GRANT INSERT ON worker.job TO sender"
FROM_PYTHON = f"{BY_SQL}; GRANT SELECT, UPDATE ON worker.job TO sender"
WITH_KEYS_AND_TAGS = f"{FROM_PYTHON}; GRANT SELECT, INSERT, UPDATE ON worker.job_key, worker.job_tag TO sender"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A database of a server that is ours, on which roles can be made."""
    with own_server() as server, own_database(server.url) as url:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE ROLE sender")
        yield url


@pytest.fixture
def sender(url: str) -> Iterator[psycopg.Connection]:
    """A connection that is the role, and whatever it does is rolled back."""
    with psycopg.connect(url) as conn:
        yield conn
        conn.rollback()


@pytest.fixture
def charge() -> Any:
    @job(broker=PostgresBroker(schema="worker"), name="charge")
    def charge(invoice_id: int) -> None: ...

    return charge


def become(conn: psycopg.Connection, grants: str) -> None:
    conn.execute(grants.encode())
    conn.execute("SET ROLE sender")


def test_a_plain_insert_needs_to_insert(sender: psycopg.Connection) -> None:
    become(sender, BY_SQL)

    sender.execute("INSERT INTO worker.job (actor) VALUES ('purge'); NOTIFY worker_wake")


def test_a_send_needs_to_replace_as_well(sender: psycopg.Connection, charge: Any) -> None:
    become(sender, FROM_PYTHON)

    charge.send_with_options(args=(1,), connection=sender)
    charge.send_many([(n,) for n in range(1500)], connection=sender)

    assert scalar(sender, "SELECT count(*) FROM worker.job") == 1501


def test_so_it_is_where_new_functions_are_nobodys_by_default(sender: psycopg.Connection) -> None:
    sender.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    Schema("guarded").migrate(sender)

    @job(broker=PostgresBroker(schema="guarded"), name="charge")
    def charge() -> None: ...

    become(sender, FROM_PYTHON.replace("worker", "guarded"))
    with bind(sender):
        charge.send()

    assert scalar(sender, "SELECT count(*) FROM guarded.job") == 1


def test_keys_and_tags_need_their_tables(sender: psycopg.Connection, charge: Any) -> None:
    become(sender, WITH_KEYS_AND_TAGS)

    sent = [charge.send_with_options(args=(n,), unique="k", tags=["a"], connection=sender) for n in range(2)]

    assert [message.is_new for message in sent] == [True, False]


@pytest.mark.parametrize(
    ("option", "table"),
    [({"limit": Limit(1)}, "knock"), ({"rate": Rate(1, per=60)}, "rate_knock")],
    ids=["limit", "rate"],
)
def test_a_limit_and_a_rate_need_to_knock(option: dict[str, Any], table: str, sender: psycopg.Connection) -> None:
    @job(broker=PostgresBroker(schema="worker"), name="charge", **option)
    def charge() -> None: ...

    become(sender, f"{FROM_PYTHON}; GRANT INSERT ON worker.{table} TO sender")
    with bind(sender):
        charge.send()

    assert scalar(sender, "SELECT count(*) FROM worker.job") == 1
