"""The report names identical files and what their copies waste."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from jobs.duplicates import find_duplicates
from jobs.inventory import fingerprint
from jobs.paths import to_text
from tests.jobs.conftest import call


def record(conn: psycopg.Connection, *files: Path) -> None:
    for file in files:
        call(fingerprint, conn, to_text(os.fsencode(file)))


def report(conn: psycopg.Connection) -> list[tuple[int, int, int, list[str]]]:
    with conn.transaction():
        call(find_duplicates, conn)
    return conn.execute(
        "SELECT size, copies, wasted::bigint, paths FROM inventory.duplicate ORDER BY wasted DESC"
    ).fetchall()


def test_identical_files_are_reported_with_their_waste(conn: psycopg.Connection, tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abcd"]
    for file, held in zip(files, (b"same", b"same", b"same", b"other"), strict=True):
        file.write_bytes(held)
    record(conn, *files)

    assert report(conn) == [(4, 3, 8, [str(file) for file in files[:3]])]


def test_empty_files_and_hard_links_waste_nothing(conn: psycopg.Connection, tmp_path: Path) -> None:
    empty = [tmp_path / "empty", tmp_path / "void"]
    linked = [tmp_path / "file", tmp_path / "hard"]
    for file in empty:
        file.touch()
    linked[0].write_bytes(b"held")
    linked[1].hardlink_to(linked[0])
    record(conn, *empty, *linked)

    assert report(conn) == []


def test_a_new_report_replaces_the_last(conn: psycopg.Connection, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    record(conn, one, two)
    report(conn)
    two.write_bytes(b"different")
    record(conn, two)

    assert report(conn) == []
