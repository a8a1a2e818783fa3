"""Real processes for these tests: clients that can be killed, and what runs on a folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, NamedTuple

import psycopg
import pytest

import worker
from worker.embedded import binaries
from worker.embedded.account import Account
from worker.errors import EmbeddedError

PACKAGE = Path(worker.__path__[0]).parent
TIMEOUT = 60.0

CLIENT = """
import sys
from pathlib import Path
from worker import embedded

folder = Path(sys.argv[1]) if sys.argv[1] else None
postgres = embedded.start(folder, fast=True, grace=float(sys.argv[2]))
print(postgres.folder, flush=True)
print(postgres.url, flush=True)
sys.stdin.read()
"""


class Process(NamedTuple):
    pid: int
    parent: int
    command: str


class Client:
    """A process of its own that starts or attaches, and stays until it is closed or killed."""

    def __init__(self, folder: Path | None, *, grace: float = 0.0, python: str = sys.executable, **popen: Any) -> None:
        command = [python, "-c", CLIENT, str(folder or ""), str(grace)]
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE), *_packages(python)]))}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, **popen)

    def started(self) -> Client:
        """Return self once attached; afterwards `folder` and `url` are known."""
        self.folder = Path(_line(self.process.stdout))
        self.url = _line(self.process.stdout)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)

    def close(self) -> None:
        with self.process:
            self.process.kill()


def require_binaries() -> None:
    """Skip on a laptop without any Postgres; in CI, where a skipped test would go unnoticed, fail."""
    try:
        binaries.find()
    except EmbeddedError as exc:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(exc))


def python_for(account: Account) -> str:
    """An interpreter that *account* may run; skips the test when there is none of this version."""
    if account.can_read(Path(sys.executable).resolve()):
        return sys.executable
    system = shutil.which("python3", path="/usr/bin:/bin")
    same = f"{sys.version_info.major}.{sys.version_info.minor}"
    if system is None or same not in subprocess.check_output([system, "--version"], text=True, timeout=TIMEOUT):
        pytest.skip(f"no Python {same} that {account.name} may run")
    return system


def servers(folder: Path) -> set[int]:
    """Process ids of the Postgres servers whose data lie under *folder*."""
    found = [process for process in _processes() if f" -D {folder}" in process.command]
    pids = {process.pid for process in found}
    # A server's own child looks like the server until it has changed its title.
    return {process.pid for process in found if process.parent not in pids}


def supervisors(folder: Path) -> set[int]:
    return {process.pid for process in _processes() if f"worker.embedded serve {folder} " in process.command}


def end_supervisor(folder: Path, how: signal.Signals = signal.SIGTERM) -> None:
    (pid,) = supervisors(folder)
    os.kill(pid, how)


def ask(url: str, query: str) -> Any:
    """The first value of the first row of *query*'s answer."""
    with psycopg.connect(url, connect_timeout=10) as conn:
        row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    assert line, "the client ended before it was attached; its error is on stderr"
    return line.strip()


def _packages(python: str) -> list[str]:
    # The system's interpreter stands in for ours, which others may not run: it needs our packages.
    return [] if python == sys.executable else [path for path in sys.path if path.endswith("site-packages")]


def _processes() -> list[Process]:
    if sys.platform == "linux":
        return [process for entry in Path("/proc").iterdir() if entry.name.isdigit() for process in _from_proc(entry)]
    listed = subprocess.check_output(["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], text=True, timeout=TIMEOUT)
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [Process(int(pid), int(parent), f"{command} ") for pid, parent, command in rows]


def _from_proc(entry: Path) -> list[Process]:
    try:
        command = os.fsdecode((entry / "cmdline").read_bytes()).replace("\0", " ")
        after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):  # ended while we looked
        return []
    return [Process(int(entry.name), int(after_name.split()[1]), command)]
