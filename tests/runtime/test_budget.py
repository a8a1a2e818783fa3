"""The budget: the pools of all workers together, against what the server gives."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from tests.factories import scalar
from worker.errors import ConfigError
from worker.queue.identity import uuid7
from worker.queue.lease import Lease
from worker.queue.schema import Schema
from worker.runtime.budget import Budget


def register(db: psycopg.Connection, *, pool_size: int) -> None:
    """Another worker, alive."""
    Lease(Schema(), duration=10.0, slots=1, pool_size=pool_size, worker_id=uuid7()).register(db)


def test_the_server_gives_what_is_not_reserved(db: psycopg.Connection) -> None:
    reserved = scalar(db, "SELECT current_setting('superuser_reserved_connections')::int")
    reserved += scalar(db, "SELECT coalesce(current_setting('reserved_connections', true), '0')::int")

    budget = Budget.read(db, Schema())

    assert budget.limit == scalar(db, "SELECT current_setting('max_connections')::int") - reserved


def test_the_pools_of_live_workers_are_added_up(db: psycopg.Connection) -> None:
    register(db, pool_size=7)
    register(db, pool_size=5)

    budget = Budget.read(db, Schema())

    assert (budget.workers, budget.pools) == (2, 12)


def test_a_worker_whose_lease_has_ended_holds_nothing(db: psycopg.Connection) -> None:
    register(db, pool_size=7)
    db.execute("UPDATE worker.worker SET heartbeat_at = now() - interval '11 seconds'")

    assert Budget.read(db, Schema()).pools == 0


def test_a_pool_that_fits_is_admitted_in_silence() -> None:
    with capture_logs() as logged:
        Budget(server=97, role=None, database=None, workers=4, pools=77).admit(20)

    assert logged == []


def test_one_pool_too_many_is_told_with_the_numbers() -> None:
    with capture_logs() as logged:
        Budget(server=97, role=None, database=None, workers=4, pools=80).admit(20)

    told = {name: logged[0][name] for name in ("event", "pool_size", "others", "together", "limit")}
    assert told == {"event": "worker.over_budget", "pool_size": 20, "others": 4, "together": 100, "limit": 97}


def test_a_pool_larger_than_the_server_is_refused_with_the_numbers() -> None:
    budget = Budget(server=97, role=None, database=50, workers=0, pools=0)

    with pytest.raises(ConfigError, match=r"pool size 60: the server gives 97 sessions .* the database 50"):
        budget.admit(60)


@pytest.fixture
def limited(db: psycopg.Connection, database: str) -> Iterator[str]:
    """URL of a role that may connect three times."""
    name = sql.Identifier("limited_" + str(scalar(db, "SELECT current_database()")))
    db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'sesame' CONNECTION LIMIT 3").format(name))
    db.execute(sql.SQL("GRANT USAGE ON SCHEMA worker TO {}").format(name))
    db.execute(sql.SQL("GRANT SELECT ON worker.worker TO {}").format(name))
    yield make_conninfo(database, user=name.as_string(None).strip('"'), password="sesame")  # noqa: S106
    db.execute(sql.SQL("DROP OWNED BY {}").format(name))
    db.execute(sql.SQL("DROP ROLE {}").format(name))


def test_a_roles_own_limit_counts(limited: str) -> None:
    with psycopg.connect(limited) as conn:
        assert Budget.read(conn, Schema()).limit == 3
