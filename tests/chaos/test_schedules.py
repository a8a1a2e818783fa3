"""A short round of the chaos; `python -m tests.chaos.schedules --seconds 300` is a long one."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_no_tick_is_lost_or_doubled_though_workers_are_killed(server: str) -> None:
    # In a process of its own: importing its jobs here would declare their schedules in every other test.
    command = [sys.executable, "-m", "tests.chaos.schedules", "--seconds", "10", "--workers", "3", "--seed", "7"]

    ended = subprocess.run(
        command, env={"WORKER_TEST_DATABASE_URL": server, "PATH": ""}, capture_output=True, text=True, timeout=240
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "each tick is in the ledger once" in ended.stdout
