"""Fixtures of the schedules' tests."""

from __future__ import annotations

import psycopg
import pytest

from tests.schedule.standins import Book
from worker.testing import schedule_clock

__all__ = ["book", "schedule_clock", "worker_database"]


@pytest.fixture
def book(db: psycopg.Connection) -> Book:
    """A ledger on a fresh database, at instants that the test names."""
    return Book(db)


@pytest.fixture
def worker_database(database: str) -> str:
    """What `schedule_clock` runs on."""
    return database
