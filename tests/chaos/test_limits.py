"""A short round of the chaos of limits; `python -m tests.chaos.limits` is a long one."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_real_workers_keep_a_limit_though_some_are_killed(server: str) -> None:
    command = [sys.executable, "-m", "tests.chaos.limits", "--only", "killed", "--jobs", "50", "--seed", "7"]

    ended = subprocess.run(
        command, env={"WORKER_TEST_DATABASE_URL": server, "PATH": ""}, capture_output=True, text=True, timeout=240
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "5 at once while two workers are killed -9: 5 at most" in ended.stdout
