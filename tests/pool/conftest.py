"""Pools that are closed after the test, and a server whose log can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.factories import opened_pool, own_server
from tests.pool.outage import Server, stoppable_server
from worker.embedded import EmbeddedPostgres, binaries
from worker.errors import EmbeddedError
from worker.pool import Pool

OpenPool = Callable[..., Pool]
Events = list[EventDict]


@pytest.fixture
def open_pool(database: str) -> Iterator[OpenPool]:
    """Opens pools on `database`; those still open are closed after the test."""
    with ExitStack() as stack:

        def open_one(conninfo: str = database, **options: Any) -> Pool:
            return stack.enter_context(opened_pool(conninfo, **options))

        yield open_one


@pytest.fixture
def pool(open_pool: OpenPool) -> Pool:
    """A pool of at most 3."""
    return open_pool()


@pytest.fixture(scope="session")
def logged_server() -> Iterator[EmbeddedPostgres]:
    """A server of our own, because only its log is ours to read."""
    try:
        binaries.find()
    except EmbeddedError as exc:
        pytest.skip(str(exc))
    with own_server() as postgres:
        yield postgres


@pytest.fixture
def events() -> Iterator[Events]:
    """What is logged while the test runs."""
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def stoppable() -> Iterator[Server]:
    """A server of the test's own, to be stopped and started again."""
    try:
        binaries.find()
    except EmbeddedError as exc:
        pytest.skip(str(exc))
    with stoppable_server() as server:
        yield server
