"""A process on a leash ends with the one that holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.conftest import is_running
from tests.waiting import wait_until
from worker.cli.demo import leash

SLEEP = "import time; print('up', flush=True); time.sleep(60)"

# Starts a leashed process, says which, and waits.
HOLDER = f"""
import os, subprocess, sys
command = [sys.executable, "-c", {SLEEP!r}]
held = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), *command], stdout=subprocess.PIPE)
held.stdout.readline()
print(held.pid, flush=True)
held.wait()
"""

BECOME = f"import sys; sys.path.insert(0, {str(Path(leash.__file__).parent)!r}); import leash; "
WAYS = [
    pytest.param(
        BECOME + "leash.become(int(sys.argv[1]), sys.argv[2:])",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="needs prctl(2)"),
    ),
    BECOME + "leash.watch_over(int(sys.argv[1]), sys.argv[2:])",
]


@pytest.mark.parametrize("way", WAYS)
def test_it_ends_when_its_holder_is_killed(way: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, way], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        held = int(holder.stdout.readline())
        assert is_running(held)

        holder.kill()

    wait_until(lambda: not is_running(held), 10, "the end of the leashed process")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("os.kill(os.getpid(), 15)", -15)],
)
def test_it_ends_as_its_command_ends(way: str, ending: str, code: int) -> None:
    command = [sys.executable, "-c", "import os, sys; " + ending]

    ended = subprocess.run([sys.executable, "-c", way, str(os.getpid()), *command], timeout=30, check=False)

    assert ended.returncode == code
