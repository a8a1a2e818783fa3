"""
For the tests of applications: a pytest plugin. Put `pytest_plugins = ["worker.testing"]` into your conftest.py.

It brings the fixture `schedule_clock` (see `worker.testing.clock`), and wants one of yours called `worker_database`:
the URL of a database with our schema, fresh for each test.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from worker.testing.clock import Happened, ScheduleClock

__all__ = ["Happened", "ScheduleClock", "schedule_clock", "worker_database"]


@pytest.fixture
def worker_database() -> str:
    """Yours to override: the URL of a migrated database of which each test may do what it likes."""
    raise pytest.UsageError(
        "schedule_clock needs a database: define a fixture worker_database that returns the URL of a fresh one,"
        " migrated by 'worker migrate'"
    )


@pytest.fixture
def schedule_clock(worker_database: str) -> Iterator[ScheduleClock]:
    """A clock at 2026-01-01 UTC with the schedules of the imported modules; moving it makes them tick."""
    with psycopg.connect(worker_database, autocommit=True) as conn:
        yield ScheduleClock(conn)
