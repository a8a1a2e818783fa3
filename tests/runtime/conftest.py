"""A broker to declare jobs on, and a worker that runs them in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.running import RunningWorker, running_worker
from worker import PostgresBroker


@pytest.fixture
def broker() -> PostgresBroker:
    """Not Dramatiq's global one, so jobs name it: `@job(broker=broker)`."""
    return PostgresBroker(schema="worker")


@pytest.fixture
def worker(broker: PostgresBroker, database: str) -> Iterator[RunningWorker]:
    """A worker with two slots and two connections for jobs."""
    with running_worker(broker, database) as running:
        yield running


@pytest.fixture
def enough() -> Iterator[threading.Event]:
    """What is kept by a test waits for it, in C; set at the end."""
    enough = threading.Event()
    yield enough
    enough.set()


@pytest.fixture
def note(db: psycopg.Connection) -> None:
    """A table that jobs write to: `note (word)`."""
    db.execute("CREATE TABLE note (word text)")
