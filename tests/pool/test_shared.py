"""The process's pool: opened once, by whoever comes first."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.factories import InThread, num_sessions, opened_pool
from worker.errors import ConfigError, DatabaseUnavailable
from worker.pool import Pool, bind_pool, get_pool


@pytest.fixture
def named_database(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """WORKER_DATABASE_URL is set; the pool that the test opened is closed after it."""
    monkeypatch.setenv("WORKER_DATABASE_URL", database)
    yield
    monkeypatch.setenv("WORKER_DATABASE_URL", database)
    get_pool().close()


@pytest.mark.usefixtures("named_database")
def test_sixteen_racing_callers_share_one_pool(db: psycopg.Connection) -> None:
    start = threading.Barrier(16, timeout=10)

    def race() -> Pool:
        start.wait()
        return get_pool()

    pools = {caller.result() for caller in [InThread(race) for _ in range(16)]}

    assert len(pools) == 1
    assert num_sessions(db, "carpool") == 1


def test_a_failed_attempt_is_not_kept(database: str, monkeypatch: pytest.MonkeyPatch, named_database: None) -> None:
    monkeypatch.setenv("WORKER_DATABASE_URL", re.sub(r"/worker_test_\w+", "/nosuchdb", database))
    with pytest.raises(DatabaseUnavailable):
        get_pool()
    monkeypatch.setenv("WORKER_DATABASE_URL", database)

    with get_pool().connection() as conn:
        conn.execute("SELECT 1")


@pytest.mark.usefixtures("named_database")
def test_a_closed_pool_is_followed_by_a_new_one() -> None:
    first = get_pool()
    first.close()

    assert get_pool() is not first


@pytest.mark.usefixtures("named_database")
def test_a_second_pool_is_refused_while_the_first_is_open(database: str) -> None:
    get_pool()

    with (
        opened_pool(database) as second,
        pytest.raises(ConfigError, match=r"this process has a pool already.*get_pool\(\)"),
        bind_pool(second),
    ):
        pass


def test_a_bound_pool_is_the_processs_pool(database: str) -> None:
    with opened_pool(database) as pool, bind_pool(pool):
        assert get_pool() is pool


def test_without_a_database_the_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="WORKER_DATABASE_URL"):
        get_pool()
