"""A start that fails says which folder, why in the server's own words, and what to do; and leaves nothing running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedded.processes import PACKAGE, servers, supervisors
from tests.waiting import wait_until
from worker import embedded
from worker.errors import EmbeddedError


def test_a_failing_start_shows_the_last_lines_of_the_servers_log(folder: Path) -> None:
    with embedded.start(folder, fast=True, grace=0):
        (folder / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    wait_until(lambda: not supervisors(folder), 30, "the end of the first server")

    with pytest.raises(EmbeddedError, match=r"did not start: .*\n(.*\n)*.*unrecognized configuration parameter"):
        embedded.start(folder, fast=True, grace=0)


def test_after_a_failing_start_nothing_runs(folder: Path) -> None:
    folder.mkdir()
    (folder / "data").write_text("a file where the data should be")

    with pytest.raises(EmbeddedError):
        embedded.start(folder, fast=True, grace=0)

    wait_until(lambda: not servers(folder) and not supervisors(folder), 30, "the end of the supervisor")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pg").write_text("")

    with pytest.raises(EmbeddedError, match=f"folder {tmp_path / 'pg'} .* cannot be made: File exists; name a folder"):
        embedded.start(tmp_path / "pg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir(mode=0o500)

    with pytest.raises(EmbeddedError, match=f"folder {tmp_path / 'pg'} .* cannot be written; name one"):
        embedded.start(tmp_path / "pg")


def test_a_full_disk_is_told_with_the_space_that_is_needed(folder: Path) -> None:
    # A small filesystem of this process's own: it is gone with the last process that sees it.
    folder.mkdir()
    program = f"from pathlib import Path; from worker import embedded; embedded.start(Path({str(folder)!r}), grace=0)"
    script = 'mount -t tmpfs -o size=8m,mode=755 tmpfs "$0" && exec "$1" -c "$2"'
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can mount a small disk")

    command = ["unshare", "--mount", "sh", "-c", script, str(folder), sys.executable, program]
    done = subprocess.run(command, cwd=PACKAGE, stderr=subprocess.PIPE, text=True, timeout=90)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("this machine does not let root mount")

    assert "No space left on device" in done.stderr
    assert "free some space (about 100 MB)" in done.stderr
