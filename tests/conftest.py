"""A real Postgres for every test that asks: one server a session, one fresh database a test; and nothing may leak."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.embedded.processes import require_binaries
from tests.leaks import children, threads
from tests.waiting import wait_until
from worker import embedded
from worker.queue.schema import Schema

# structlog's own default would render each traceback with rich, half a second of CPU for one.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

LEAK_PATIENCE = 5.0

# Two runs may share one server, so no two may choose the same name; what a killed run leaves is in nobody's way.
_PREFIX = f"worker_test_{os.getpid()}_{secrets.token_hex(3)}"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a server whose user may create databases: WORKER_TEST_DATABASE_URL's, or an embedded one."""
    given = os.environ.get("WORKER_TEST_DATABASE_URL")
    if given:
        yield given
        return
    require_binaries()
    with embedded.start(fast=True) as postgres:
        yield postgres.url


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """Name of a database with our schema, to clone; nobody can connect to it, as that would block the cloning."""
    name = f"{_PREFIX}_template"
    with _created(server, name):
        with psycopg.connect(_url(server, name), autocommit=True) as conn:
            Schema().migrate(conn)
        with psycopg.connect(server, autocommit=True) as conn:
            conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        yield name


@pytest.fixture
def database(server: str, template: str) -> Iterator[str]:
    """URL of a fresh database with our schema, dropped after the test whoever is still connected."""
    name = f"{_PREFIX}_{next(_numbers)}"
    with _created(server, name, template=template):
        yield _url(server, name)


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to `database`."""
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    # A developer's own WORKER_DATABASE_URL must be neither used nor emptied by a test.
    for name in list(os.environ):
        if name.startswith("WORKER_") and not name.startswith("WORKER_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _nothing_leaks(_no_settings_from_outside: None) -> Iterator[None]:
    """Fail the test that leaves a thread or a child process behind, instead of the innocent one after it."""
    threads_before, children_before = threads(), children()

    def leaked() -> list[object]:
        return [*(threads() - threads_before), *(children() - children_before)]

    yield
    try:
        wait_until(lambda: not leaked(), LEAK_PATIENCE, "the end of what the test started")
    except AssertionError:
        pytest.fail(f"this test left behind, {LEAK_PATIENCE:g} s after its end: {leaked()}")


@contextmanager
def _created(server: str, name: str, *, template: str = "template0") -> Iterator[None]:
    identifiers = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**identifiers))
    try:
        yield
    finally:
        with psycopg.connect(server, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)").format(**identifiers))


def _url(server: str, database: str) -> str:
    if "://" in server:
        return re.sub(r"(://[^/?]*)[^?]*", rf"\1/{database}", server, count=1)
    return make_conninfo(server, dbname=database)
