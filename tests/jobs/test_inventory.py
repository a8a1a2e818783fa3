"""A scan records every file below a folder, and later runs keep the rows true."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from jobs import inventory
from jobs.inventory import forget_missing, list_folder, scan
from jobs.tables import create_tables
from tests.jobs.conftest import Rows, WorkOff, call, text
from tests.powers import permissions_count
from worker import bind


@pytest.fixture
def inventoried(conn: psycopg.Connection, rows: Rows, work_off: WorkOff) -> Callable[[Path], dict[str, str]]:
    """Scans a folder to the end; returns the status of each path below it."""

    def run(folder: Path) -> dict[str, str]:
        with conn.transaction(), bind(conn):
            call(scan, conn, text(folder))
        work_off()
        return {os.path.relpath(os.fsdecode(path), folder): row.status for path, row in rows().items()}

    return run


Inventoried = Callable[[Path], dict[str, str]]


def test_a_scan_leaves_a_row_for_every_file_below(inventoried: Inventoried, tmp_path: Path) -> None:
    for name in ("top", "a/one", "a/b/two", "a/b/c/three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    assert inventoried(tmp_path) == dict.fromkeys(["top", "a/one", "a/b/two", "a/b/c/three"], "ok")


def test_an_empty_folder_leaves_no_row(inventoried: Inventoried, tmp_path: Path) -> None:
    assert inventoried(tmp_path) == {}


def test_byte_code_caches_are_left_out(inventoried: Inventoried, tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    for name in ("__pycache__/a.cpython-311.pyc", "b.pyc", "kept.py"):
        (tmp_path / name).touch()

    assert inventoried(tmp_path) == {"kept.py": "ok"}


def test_links_to_folders_end_a_walk_that_would_go_round(inventoried: Inventoried, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")

    assert inventoried(tmp_path) == {"a/up": "link", "self": "link"}


def test_a_folder_named_by_a_link_is_scanned_where_it_lies(
    inventoried: Inventoried, rows: Rows, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")

    inventoried(tmp_path / "link")

    assert list(rows()) == [os.fsencode(tmp_path.resolve() / "real" / "file")]


def test_a_folder_that_cannot_be_listed_is_recorded_and_the_rest_goes_on(
    inventoried: Inventoried, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").touch()
    (tmp_path / "open").touch()
    (tmp_path / "closed").chmod(0)

    with permissions_count():
        assert inventoried(tmp_path) == {"closed": "unreadable", "open": "ok"}

    (tmp_path / "closed").chmod(0o700)
    assert inventoried(tmp_path) == {"closed/file": "ok", "open": "ok"}


def test_files_of_a_folder_that_may_be_listed_but_not_entered_are_recorded(
    inventoried: Inventoried, tmp_path: Path
) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "file").touch()
    (tmp_path / "half").chmod(0o400)

    with permissions_count():
        assert inventoried(tmp_path) == {"half/file": "unreadable"}
    (tmp_path / "half").chmod(0o700)


def test_a_folder_that_went_before_it_was_listed_is_recorded(
    conn: psycopg.Connection, rows: Rows, tmp_path: Path
) -> None:
    call(list_folder, conn, text(tmp_path / "gone"))

    assert rows()[os.fsencode(tmp_path / "gone")].status == "vanished"


def test_a_folder_that_became_a_link_before_it_was_listed_is_recorded_as_one(
    conn: psycopg.Connection, rows: Rows, work_off: WorkOff, tmp_path: Path
) -> None:
    (tmp_path / "folder").symlink_to("/")

    with conn.transaction(), bind(conn):
        call(list_folder, conn, text(tmp_path / "folder"))
    work_off()

    assert rows()[os.fsencode(tmp_path / "folder")].status == "link"


def test_a_large_folder_is_worked_off_in_slices(
    inventoried: Inventoried,
    work_off: WorkOff,
    conn: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "SLICE", 3)
    for i in range(10):
        (tmp_path / f"{i}").touch()

    with conn.transaction(), bind(conn):
        call(list_folder, conn, text(tmp_path))

    sent = conn.execute("SELECT actor, count(*) FROM worker.job GROUP BY actor ORDER BY actor").fetchall()
    assert sent == [("fingerprint", 3), ("list_folder", 1)]
    assert len(work_off()) == 10 + 3


def test_a_slice_that_runs_again_sends_the_same_jobs_and_leaves_the_same_rows(
    inventoried: Inventoried, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    first = inventoried(tmp_path)

    assert inventoried(tmp_path) == first


@pytest.mark.parametrize(
    ("folder", "error"),
    [
        ("/nowhere/at/all", FileNotFoundError),
        ("/dev/null", NotADirectoryError),
        ("relative", ValueError),
        ("/bad\\escape", ValueError),
    ],
)
def test_a_scan_of_what_is_no_folder_fails_at_once(
    conn: psycopg.Connection, folder: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(scan, conn, folder)

    assert issubclass(error, scan.options["throws"])


def test_rows_of_files_that_are_gone_are_forgotten(
    conn: psycopg.Connection,
    rows: Rows,
    inventoried: Inventoried,
    work_off: WorkOff,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "SLICE", 2)
    (tmp_path / "folder").mkdir()
    for name in ("kept", "gone", "folder/gone", "link"):
        (tmp_path / name).touch()
    inventoried(tmp_path)
    (tmp_path / "gone").unlink()
    shutil.rmtree(tmp_path / "folder")

    with conn.transaction(), bind(conn):
        call(forget_missing, conn)
    work_off()

    assert set(rows()) == {os.fsencode(tmp_path / "kept"), os.fsencode(tmp_path / "link")}


def test_a_file_that_cannot_be_reached_is_not_forgotten(
    conn: psycopg.Connection, rows: Rows, inventoried: Inventoried, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").touch()
    inventoried(tmp_path)
    (tmp_path / "closed").chmod(0)

    with permissions_count():
        call(forget_missing, conn)
    (tmp_path / "closed").chmod(0o700)

    assert len(rows()) == 1


def test_creating_the_tables_twice_is_harmless(conn: psycopg.Connection) -> None:
    create_tables(conn)
