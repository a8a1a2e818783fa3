"""The inventory's tables in a fresh database, and a stand-in for the worker: the queue worked off by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from jobs import inventory
from jobs.paths import to_text
from jobs.tables import create_tables
from worker import bind


def call(job: Callable[..., object], *args: object) -> None:
    """Call a job as the plain function it is; its type knows only the arguments of a send."""
    job(*args)


def text(path: Path) -> str:
    """*path* as the jobs take it."""
    return to_text(os.fsencode(path))


class Row(NamedTuple):
    """One row of `inventory.file`."""

    status: str
    size: int | None
    digest: bytes | None
    media_type: str | None
    detail: str | None


Rows = Callable[[], dict[bytes, Row]]
Sent = tuple[str, dict[str, Any]]
WorkOff = Callable[[], list[Sent]]


@pytest.fixture
def conn(db: psycopg.Connection) -> psycopg.Connection:
    """The connection that the jobs under test are given."""
    create_tables(db)
    return db


@pytest.fixture
def rows(conn: psycopg.Connection) -> Rows:
    """Reads the inventory: its rows by their path's own bytes."""

    def read() -> dict[bytes, Row]:
        found = conn.execute(
            "SELECT decode(path, 'escape'), status, size, digest, media_type, detail FROM inventory.file"
        )
        return {path: Row(*rest) for path, *rest in found}

    return read


@pytest.fixture
def work_off(conn: psycopg.Connection) -> WorkOff:
    """Runs what was sent, and what that sends, each job once; returns what ran."""

    def run() -> list[Sent]:
        ran: list[Sent] = []
        while batch := conn.execute("DELETE FROM worker.job RETURNING actor, args").fetchall():
            for actor, args in batch:
                with conn.transaction(), bind(conn):
                    getattr(inventory, actor)(conn, **args)
                ran.append((actor, args))
        return ran

    return run
