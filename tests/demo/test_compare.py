"""The comparison finds what differs, and says so."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg
import pytest

from jobs.inventory import fingerprint
from jobs.paths import to_text
from jobs.tables import create_tables
from tests.powers import permissions_count
from worker.cli.demo.compare import Comparison, compare
from worker.cli.demo.walk import Found, look, walk

LATER = 3600.0


@pytest.fixture
def folder(db: psycopg.Connection, tmp_path: Path) -> Path:
    """A folder with three files, all of them recorded."""
    create_tables(db)
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text(name)
        record(db, tmp_path / name)
    return tmp_path


def record(db: psycopg.Connection, path: Path) -> None:
    fingerprint(db, to_text(os.fsencode(path)))


def compared(db: psycopg.Connection, folder: Path, *, since: float = LATER) -> Comparison:
    return compare(db, os.fsencode(folder), since=time.time() + since)


def test_a_true_table_is_equal(db: psycopg.Connection, folder: Path) -> None:
    comparison = compared(db, folder)

    assert comparison.is_equal
    assert comparison.table == comparison.walk
    assert comparison.table[:2] == (3, 11)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("DELETE FROM inventory.file WHERE path LIKE '%two'", "the table says nothing, the folder holds 3 bytes"),
        ("UPDATE inventory.file SET size = 4 WHERE path LIKE '%two'", "the table says 4 bytes"),
        ("UPDATE inventory.file SET digest = sha256('') WHERE path LIKE '%two'", "SHA-256 e3b0c44298fc1c14"),
        ("UPDATE inventory.file SET path = path || 'x' WHERE path LIKE '%two'", "the folder holds nothing"),
        (
            "UPDATE inventory.file SET status = 'link', size = NULL, digest = NULL, media_type = NULL, inode = NULL"
            " WHERE path LIKE '%two'",
            "the table says link",
        ),
    ],
)
def test_a_table_that_says_something_else_is_not(db: psycopg.Connection, folder: Path, wrong: str, said: str) -> None:
    db.execute(wrong.encode())

    comparison = compared(db, folder)

    assert not comparison.is_equal
    assert said in " ".join(comparison.differences)


def test_a_file_that_was_written_to_meanwhile_is_left_out_and_named(db: psycopg.Connection, folder: Path) -> None:
    (folder / "two").write_text("something else")

    comparison = compared(db, folder, since=-LATER)

    assert comparison.is_equal
    assert comparison.moved == [os.fsencode(folder / "two")]
    assert comparison.table.files == 2


def test_the_walk_knows_links_pipes_and_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"held")
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "secret").touch(mode=0)
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "left.pyc").touch()
    os.mkfifo(tmp_path / "pipe")

    with permissions_count():
        found = {os.path.basename(path): look(path) for path in walk(os.fsencode(tmp_path))}
    (tmp_path / "closed").chmod(0o700)

    assert found.pop(b"file")[:2] == ("ok", 4)
    assert found == {
        b"link": Found("link"),
        b"secret": Found("unreadable"),
        b"closed": Found("unreadable"),
        b"pipe": Found("special"),
    }
