"""Fixtures of the schedules' tests."""

from __future__ import annotations

import psycopg
import pytest

from tests.schedule.standins import Book


@pytest.fixture
def book(db: psycopg.Connection) -> Book:
    """A ledger on a fresh database, at instants that the test names."""
    return Book(db)
