"""`worker demo` on real folders, whatever is in them and whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.demo.conftest import ROOT, StartDemo, is_running
from tests.waiting import wait_until

GONE = 20.0


def fill(folder: Path, files: int) -> None:
    for i in range(files):
        parent = folder / f"{i % 20}"
        parent.mkdir(exist_ok=True)
        (parent / f"{i}").write_text(f"{i}")


def test_a_folder_with_every_kind_of_file_ends_equal(demo: StartDemo, tmp_path: Path) -> None:
    for name in ("same", "again", "deep/er/same"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0123456789")
    (tmp_path / "empty").touch()
    (tmp_path / os.fsdecode(b"caf\xe9\n")).write_bytes(b"\0")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "left.out").touch()
    os.mkfifo(tmp_path / "pipe")

    run = demo(tmp_path)

    assert run.wait() == 0, run.out + run.err
    assert run.value("by the table") == "7 files with 31 bytes"
    assert run.value("by the walk") == "7 files with 31 bytes"
    assert run.value("not read") == "1 link, 1 special"
    assert run.value("duplicates") == "2 files, 20 bytes wasted"
    assert run.value("drain").endswith("0 connections left")


def test_more_jobs_than_connections_never_hold_more_than_allowed(demo: StartDemo, tmp_path: Path) -> None:
    fill(tmp_path, 500)

    run = demo(tmp_path)

    assert run.wait() == 0, run.out + run.err
    most, allowed = (int(word) for word in run.value("connections").split() if word.isdigit())
    assert 1 < most <= allowed
    assert int(run.value("two-second schedule").split()[0]) >= 1


def test_an_empty_folder_ends_equal(demo: StartDemo, tmp_path: Path) -> None:
    run = demo(tmp_path)

    assert run.wait() == 0, run.out + run.err
    assert run.value("by the table") == "0 files with 0 bytes"


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_a_usage_error(demo: StartDemo, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()

    run = demo(tmp_path / name)

    assert run.wait() == 2
    assert f"'{tmp_path / name}'" in run.err
    assert run.out == ""


def test_unreadable_files_and_folders_end_equal(demo: StartDemo, not_as_root: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which is closed to others
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").touch()
        (folder / "secret").touch(mode=0)
        (folder / "closed").mkdir(mode=0)

        run = demo(folder, *not_as_root)

        assert run.wait() == 0, run.out + run.err
    assert run.value("by the table") == "3 files with 0 bytes"
    assert run.value("not read") == "2 unreadable"


@pytest.fixture
def not_as_root() -> list[str]:
    """A command before the command, for root: root reads everything, nobody else's permissions count."""
    if os.geteuid() != 0:
        return []
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    start_another = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import jobs']))"
    tried = subprocess.run([*nobody, sys.executable, "-c", start_another], cwd=ROOT, capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("root reads everything, and nobody else can run this Python")
    return nobody


def test_ctrl_c_leaves_nothing_running(demo: StartDemo, tmp_path: Path) -> None:
    fill(tmp_path, 2_000)
    run = demo(tmp_path)
    worker = run.started_worker()

    os.killpg(run.process.pid, signal.SIGINT)

    assert run.wait() == 130
    assert not is_running(worker)
    assert not run.sockets().exists()
    assert "Traceback" not in run.err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the worker ends half a second later")
def test_kill_9_leaves_nothing_running(demo: StartDemo, tmp_path: Path) -> None:
    fill(tmp_path, 2_000)
    run = demo(tmp_path)
    worker = run.started_worker()

    run.process.kill()
    run.wait()

    wait_until(lambda: not is_running(worker), GONE, "the end of the worker")
    wait_until(lambda: not run.sockets().exists(), GONE, "the end of the database")


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(demo: StartDemo, tmp_path: Path) -> None:
    fill(tmp_path, 4_000)
    run = demo(tmp_path)
    worker = run.started_worker()

    wait_until(lambda: "files/s" in run.err, GONE, "the first sign of progress")
    os.kill(worker, signal.SIGKILL)

    assert run.wait() == 0, run.out + run.err
    assert "the worker was killed by SIGKILL; starting another one" in run.err
    assert run.value("by the table").startswith("4,000 files ")
