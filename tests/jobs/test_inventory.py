"""The inventory records every file there is, and none can stop it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jobs import content, inventory
from jobs.inventory import fingerprint, forget_missing, list_folder, scan
from jobs.paths import to_text
from jobs.tables import create_tables
from tests.jobs.conftest import Row, call
from tests.powers import permissions_count
from worker import bind

Rows = Callable[[], dict[bytes, Row]]
WorkOff = Callable[[], list[tuple[str, dict[str, Any]]]]


def text(path: Path) -> str:
    return to_text(os.fsencode(path))


@pytest.fixture
def record(conn: psycopg.Connection, rows: Rows) -> Callable[[Path], Row]:
    """Fingerprints one path and returns its row."""

    def run(path: Path) -> Row:
        call(fingerprint, conn, text(path))
        return rows()[os.fsencode(path)]

    return run


Record = Callable[[Path], Row]


# One file


def test_a_file_is_recorded_with_size_digest_and_media_type(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_bytes(b"<p>hello</p>")

    assert record(file) == Row("ok", 12, sha256(b"<p>hello</p>").digest(), "text/html", None)


def test_an_empty_file_is_recorded(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()

    assert record(file) == Row("ok", 0, sha256().digest(), "text/plain", None)


def test_a_file_of_many_chunks_is_read_to_its_end(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "CHUNK", 7)
    file = tmp_path / "long"
    file.write_bytes(bytes(range(256)) * 3)

    assert record(file)[:3] == ("ok", 768, sha256(bytes(range(256)) * 3).digest())


@pytest.mark.parametrize(
    ("name", "held", "media_type"),
    [
        ("README", "plain wörds".encode(), "text/plain"),
        ("README", b"a\0b", "application/octet-stream"),
        ("README", b"\xff\xfe\xfd", "application/octet-stream"),
        ("backup.tar.gz", b"", "application/gzip"),
        ("data:text", b"no URL", "text/plain"),
        ("x.py", b"pass\n", "text/x-python"),
    ],
)
def test_the_media_type_comes_from_the_name_or_else_from_the_content(
    record: Record, tmp_path: Path, name: str, held: bytes, media_type: str
) -> None:
    file = tmp_path / name
    file.write_bytes(held)

    assert record(file).media_type == media_type


def test_a_character_cut_by_the_end_of_the_first_chunk_is_still_text(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "CHUNK", 4)
    file = tmp_path / "words"
    file.write_text("aaaéé", encoding="utf-8")

    assert record(file).media_type == "text/plain"


def test_a_second_run_leaves_one_row_with_what_the_file_holds_now(record: Record, rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    record(file)
    file.write_bytes(b"newer")

    assert record(file).size == 5
    assert len(rows()) == 1


@pytest.mark.parametrize("name", [b"caf\xe9", b"line\nbreak", rb"back\slash", b"\xed\xa0\x80", b"tab\t\x1b[31m", b" "])
def test_any_name_is_recorded(record: Record, tmp_path: Path, name: bytes) -> None:
    file = tmp_path / os.fsdecode(name)
    try:
        file.write_bytes(b"held")
    except OSError:
        pytest.skip(f"this file system takes no name such as {name!r}")

    assert record(file).status == "ok"


def test_a_path_longer_than_an_index_takes_is_recorded(conn: psycopg.Connection, rows: Rows, tmp_path: Path) -> None:
    parent = tmp_path
    while len(os.fsencode(parent)) < 3000:
        parent /= "é" * 100
    parent.mkdir(parents=True)
    file = parent / "file"
    file.touch()

    call(fingerprint, conn, text(file))

    assert rows()[os.fsencode(file)].status == "ok"


# What is no plain file


@pytest.mark.parametrize("target", ["file", "missing", ".", "link"])
def test_a_symbolic_link_is_recorded_with_its_target_and_not_followed(
    record: Record, tmp_path: Path, target: str
) -> None:
    (tmp_path / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(target)

    assert record(link) == Row("link", None, None, None, target)


def test_a_pipe_is_recorded_without_waiting_for_a_writer(record: Record, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    assert record(pipe) == Row("special", None, None, None, "pipe")


def test_a_file_that_became_a_pipe_after_the_first_look_does_not_block(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, plain = tmp_path / "pipe", tmp_path / "plain"
    plain.touch()
    os.mkfifo(pipe)
    looked_like = os.lstat(plain)
    with monkeypatch.context() as patched:
        patched.setattr(os, "lstat", lambda _: looked_like)
        found = content.examine(os.fsencode(pipe))

    assert (found.status, found.detail) == ("special", "pipe")


def test_a_file_that_became_a_link_after_the_first_look_is_not_followed(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, link = tmp_path / "plain", tmp_path / "link"
    plain.touch()
    link.symlink_to(plain)
    looked_like = os.lstat(plain)
    with monkeypatch.context() as patched:
        patched.setattr(os, "lstat", lambda _: looked_like)
        found = content.examine(os.fsencode(link))

    assert found.status == "unreadable"


def test_a_socket_is_recorded(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")

        assert record(tmp_path / "socket") == Row("special", None, None, None, "socket")


def test_a_device_is_recorded_and_not_opened(record: Record) -> None:
    assert record(Path("/dev/zero")) == Row("special", None, None, None, "device")


# What cannot be read


def test_a_file_without_permission_is_recorded(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"held")
    file.chmod(0)

    with permissions_count():
        assert record(file) == Row("unreadable", None, None, None, "Permission denied")


def test_a_file_that_became_readable_is_recorded_again(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"held")
    file.chmod(0)
    with permissions_count():
        record(file)
    file.chmod(0o600)

    assert record(file)[:2] == ("ok", 4)


def test_a_file_that_is_gone_is_recorded(record: Record, tmp_path: Path) -> None:
    assert record(tmp_path / "gone") == Row("vanished", None, None, None, "No such file or directory")


def test_a_file_whose_folder_became_a_file_is_recorded(record: Record, tmp_path: Path) -> None:
    (tmp_path / "folder").touch()

    assert record(tmp_path / "folder" / "file").status == "vanished"


def test_a_name_that_is_too_long_is_recorded(record: Record, tmp_path: Path) -> None:
    assert record(tmp_path / ("n" * 300)) == Row("unreadable", None, None, None, "File name too long")


def test_a_file_written_to_while_it_is_read_is_recorded_as_changed(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"line\n" * 10)
    writes_before_read(monkeypatch, file)

    assert record(file).status == "changed"


def test_a_file_that_grows_faster_than_it_is_read_comes_to_an_end(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "CHUNK", 5)
    file = tmp_path / "log"
    file.write_bytes(b"line\n" * 10)
    writes_before_read(monkeypatch, file)

    assert record(file).status == "changed"  # and this returns at all


def writes_before_read(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    read = os.read

    def write_then_read(descriptor: int, size: int) -> bytes:
        with file.open("ab") as log:
            log.write(b"line\n")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", write_then_read)


def test_running_out_of_file_handles_is_the_jobs_failure_and_no_row(
    conn: psycopg.Connection, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def no_handles(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_handles)
        with pytest.raises(OSError, match="Too many open files"):
            call(fingerprint, conn, text(tmp_path / "file"))

    assert rows() == {}


# A folder


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


# Later


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
