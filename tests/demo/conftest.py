"""The demo as a person starts it: a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

TIMEOUT = 60.0
ROOT = Path(__file__).parents[2]


class Demo:
    """A running `worker demo`; what it has said so far is in two files."""

    def __init__(self, folder: Path | bytes, notes: Path, prefix: tuple[str, ...] = ()) -> None:
        self._out, self._err = notes / "out", notes / "err"
        command = [*prefix, sys.executable, "-m", "worker", "demo", os.fsdecode(folder)]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(TIMEOUT)

    def started_worker(self) -> int:
        """The worker's process, once the demo has named it."""
        return int(self._said(r"^worker +process (\d+);", "the worker"))

    def sockets(self) -> Path:
        """The folder of the database's socket: there while the database is."""
        return Path(self._said(r"^database .*host=([^&\s]+)", "the database"))

    def _said(self, pattern: str, what: str) -> str:
        found = wait_until(lambda: re.findall(pattern, self.out, re.MULTILINE), TIMEOUT, what)
        return str(found[0])

    def value(self, name: str) -> str:
        """What the table at the end says about *name*."""
        found = re.search(rf"^  {name} +(.*)$", self.out, re.MULTILINE)
        assert found is not None, f"no {name!r} in:\n{self.out}\n{self.err}"
        return found[1]


StartDemo = Callable[..., Demo]


@pytest.fixture
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDemo]:
    """Starts demos; what the test leaves running is killed."""
    started: list[Demo] = []

    def start(folder: Path | bytes, *prefix: str) -> Demo:
        started.append(Demo(folder, tmp_path_factory.mktemp("said"), prefix))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait(TIMEOUT)


def is_running(pid: int) -> bool:
    """Whether there is a process *pid* that has not ended; one that nobody has waited for has ended."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(shown.strip()) and not shown.startswith("Z")
