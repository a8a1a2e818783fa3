"""Each private name of psycopg that the pool rests on: when one is gone, this says so instead of a job."""

from __future__ import annotations

import inspect

import psycopg
import psycopg_pool
import pytest
from psycopg import generators
from psycopg._connection_base import BaseConnection
from psycopg._preparing import PrepareManager
from psycopg.adapt import AdaptersMap
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool import AddConnection, MaintenanceTask, WaitingClient

from worker.pool import Connection, Pool

CONNECTION = (
    "_pool", "_prepared", "_adapters", "_notice_handlers", "_notify_handlers", "_autocommit", "_isolation_level",
    "_read_only", "_deferrable", "_num_transactions", "_pipeline", "_expire_at", "_created_at", "lock", "pgconn",
    "_begin_statement", "_tpc", "server_cursor_factory", "cursor_factory", "row_factory",
)  # fmt: skip
POOL = (
    "_lock", "_pool", "_waiting", "_nconns", "_min_size", "_max_size", "_closed", "_opened", "_stats", "_drained_at",
    "_tasks", "_sched",
)  # fmt: skip
POOL_CLASS = (
    "_connect", "_add_to_pool", "_add_connection", "_maybe_grow_pool", "_shrink_pool", "_check_open_getconn",
    "_signal_stop_worker", "_jitter", "_set_connection_expiry_date", "run_task", "schedule_task",
    "_REQUESTS_NUM", "_REQUESTS_QUEUED", "_REQUESTS_WAIT_MS", "_CONNECTIONS_NUM", "_CONNECTIONS_ERRORS",
)  # fmt: skip
CURSOR = (
    "_execute_gen", "_maybe_prepare_gen", "_get_prepared", "_execute_send", "_send_prepare", "_send_query_prepared",
    "_check_results", "_set_results", "_encoding",
)  # fmt: skip


def missing(thing: object, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not hasattr(thing, name)]


def test_a_connection_has_what_ours_and_the_view_build_on(pool: Pool) -> None:
    with pool.connection() as conn:
        assert missing(conn, CONNECTION) == []


def test_a_pool_has_what_ours_builds_on(pool: Pool) -> None:
    assert missing(pool, POOL) == []


def test_the_class_of_pools_has_what_ours_builds_on() -> None:
    assert missing(psycopg_pool.ConnectionPool, POOL_CLASS) == []


def test_the_base_of_connections_has_the_handlers_that_the_view_puts_back() -> None:
    assert missing(BaseConnection, ("_notice_handler", "_notify_handler")) == []


def test_a_place_in_the_line_has_what_ours_builds_on() -> None:
    waiter: WaitingClient[Connection] = WaitingClient()

    assert all(hasattr(waiter, name) for name in ("conn", "error", "_cond", "wait", "set", "fail"))


def test_attempts_and_tasks_have_what_ours_build_on() -> None:
    assert {"delay"} <= vars(AttemptWithBackoff(timeout=0.0)).keys()
    assert list(inspect.signature(AttemptWithBackoff.update_delay).parameters) == ["self", "now"]
    assert list(inspect.signature(AddConnection.__init__).parameters) == ["self", "pool", "attempt", "growing"]
    assert {"run", "_run", "tick"} <= set(dir(MaintenanceTask))


def test_prepared_statements_are_remembered_where_they_can_be_forgotten(pool: Pool) -> None:
    with pool.connection() as conn:
        conn._prepared.clear()


def test_an_async_connection_is_made_over_a_session_that_exists() -> None:
    assert list(inspect.signature(psycopg.AsyncConnection.__init__).parameters)[:2] == ["self", "pgconn"]


def test_whatever_a_connection_says_to_the_server_passes_through_wait() -> None:
    assert list(inspect.signature(psycopg.Connection.wait).parameters)[:2] == ["self", "gen"]


@pytest.mark.parametrize("kind", [psycopg.Cursor, psycopg.AsyncCursor])
def test_a_cursor_has_what_a_first_statement_builds_on(kind: type) -> None:
    assert missing(kind, CURSOR) == []
    assert list(inspect.signature(kind._maybe_prepare_gen).parameters) == ["self", "pgq", "prepare", "binary"]  # type: ignore[attr-defined]
    assert (
        missing(
            BaseConnection,
            ("_start_query", "_get_tx_start_command", "_exec_command", "_check_intrans_gen", "_tpc_begin_gen"),
        )
        == []
    )
    assert missing(PrepareManager, ("maybe_add_to_cache", "validate")) == []
    assert missing(generators, ("execute", "fetch_many")) == []


def test_adapters_share_what_they_are_copied_from_until_something_is_registered(pool: Pool) -> None:
    with pool.connection() as conn:
        assert missing(conn.adapters, ("_loaders", "_dumpers", "_dumpers_by_oid", "types")) == []
        copy = AdaptersMap(conn.adapters)
        assert copy.types._registry is conn.adapters.types._registry
        assert all(one is other for one, other in zip(copy._loaders, conn.adapters._loaders, strict=True))
