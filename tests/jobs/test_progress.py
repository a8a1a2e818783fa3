"""Progress is sampled while there is some."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from jobs.inventory import fingerprint
from jobs.paths import to_text
from jobs.progress import sample_progress
from tests.jobs.conftest import call


def samples(conn: psycopg.Connection) -> list[tuple[int, int]]:
    return conn.execute("SELECT files, bytes::bigint FROM inventory.progress ORDER BY sampled_at").fetchall()


def test_the_first_sample_says_that_there_is_nothing_yet(conn: psycopg.Connection) -> None:
    call(sample_progress, conn)

    assert samples(conn) == [(0, 0)]


def test_a_sample_is_taken_when_something_has_changed_and_only_then(conn: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"held")
    call(sample_progress, conn)
    call(sample_progress, conn)
    call(fingerprint, conn, to_text(os.fsencode(tmp_path / "file")))
    call(sample_progress, conn)
    call(sample_progress, conn)

    assert samples(conn) == [(0, 0), (1, 4)]


def test_samples_are_forgotten_after_a_day(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO inventory.progress VALUES (now() - interval '25 hours', 9, 9)")

    call(sample_progress, conn)

    assert samples(conn) == [(0, 0)]
