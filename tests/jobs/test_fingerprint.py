"""Every file gets a row, whatever it is and whatever happens to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest

from jobs import content
from jobs.inventory import fingerprint
from tests.jobs.conftest import Row, Rows, call, text
from tests.powers import permissions_count

Record = Callable[[Path], Row]


@pytest.fixture
def record(conn: psycopg.Connection, rows: Rows) -> Record:
    """Fingerprints one path and returns its row."""

    def run(path: Path) -> Row:
        call(fingerprint, conn, text(path))
        return rows()[os.fsencode(path)]

    return run


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
