"""What tests are made of, with defaults, so that each shows only what matters to it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from worker import embedded
from worker.pool import Pool, PoolOptions
from worker.queue.schema import Schema

JOIN = 20.0
APPLICATION = "carpool-test"


@contextmanager
def opened_pool(conninfo: str, *, max_size: int = 3, grace: float = 1.0, **options: Any) -> Iterator[Pool]:
    """A pool, closed at the end; its sessions are called `carpool-test` unless *options* say otherwise."""
    named = {"application_name": APPLICATION, "min_size": 0, "alone": False, **options}
    pool = Pool.connect(PoolOptions(conninfo=conninfo, max_size=max_size, **named))
    try:
        yield pool
    finally:
        pool.close(grace)


def num_sessions(db: psycopg.Connection, application_name: str = APPLICATION) -> int:
    """Sessions that the server counts at this moment in the database of *db*."""
    return int(
        scalar(
            db,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
            application_name,
        )
    )


def backend_pid(conn: psycopg.Connection) -> int:
    return conn.info.backend_pid


def terminate(db: psycopg.Connection, pid: int) -> None:
    """End a session as an administrator does; returns when it has ended."""
    assert scalar(db, "SELECT pg_terminate_backend(%s, 5000)", pid), f"session {pid} was not there any more"


def is_there(db: psycopg.Connection, pid: int) -> bool:
    return bool(scalar(db, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid))


def scalar(db: psycopg.Connection, query: str, *parameters: Any) -> Any:
    """The first value of the first row of *query*'s answer."""
    row = db.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def column(db: psycopg.Connection, query: str, *parameters: Any) -> list[Any]:
    """The first value of every row of *query*'s answer."""
    return [row[0] for row in db.execute(query.encode(), parameters)]


class InThread:
    """A call on a thread of its own; `result` joins it, within a timeout, and raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as exc:
            self._error = exc

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def result(self, timeout: float = JOIN) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"{self._call} did not return within {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._result


@contextmanager
def own_server(*, fast: bool = True) -> Iterator[embedded.EmbeddedPostgres]:
    """A server whose log is ours to read, and which a test may reconfigure or stop."""
    with embedded.start(fast=fast) as postgres:
        yield postgres


@contextmanager
def own_database(server: str) -> Iterator[str]:
    """URL of a fresh migrated database on *server*, dropped at the end."""
    name = f"carpool_{secrets.token_hex(4)}"
    parts = urlsplit(server)
    url = urlunsplit(parts._replace(path=f"/{name}"))
    # Without a host `urlunsplit` leaves out the slashes that make it a URL.
    url = url.replace("postgresql:/", "postgresql:///", 1) if "://" not in url else url
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            Schema().migrate(conn)
        yield url
    finally:
        with psycopg.connect(server, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
