"""Read `postmaster.pid`, the server's own note about itself, and stop a server that outlived its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from worker.errors import EmbeddedError

STATUS_LINE = 7  # the eighth; see PostgreSQL's src/include/utils/pidfile.h
LEFTOVER_TIMEOUT = 10.0
POLL = 0.02


def is_ready(data: Path, pid: int) -> bool:
    """Whether the server *pid* has noted that it takes connections."""
    lines = _lines(data)
    return len(lines) > STATUS_LINE and lines[0] == str(pid) and lines[STATUS_LINE].strip() == "ready"


def stop_leftover(data: Path) -> None:
    """
    Wait for the end of a server whose supervisor was killed, and end it if it does not end by itself.

    Raises:
        EmbeddedError: It is still there after a fast and an immediate shutdown.
    """
    pid = _noted_pid(data)
    if pid is None:
        return
    if not _serves(pid, data):
        _forget_a_stranger(data, pid)
        return
    for how in (signal.SIGINT, signal.SIGQUIT):
        os.kill(pid, how)
        if _ended(pid, data):
            return
    raise EmbeddedError(f"a server from an earlier start (process {pid}) still holds {data}; end it: kill -QUIT {pid}")


def _forget_a_stranger(data: Path, pid: int) -> None:
    # Containers hand out the same few pids again, and Postgres takes any living process with the noted pid for a
    # server. When the pid is dead, the note stays: it tells Postgres which shared memory to check for survivors.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass  # it lives, and is somebody else's
    (data / "postmaster.pid").unlink(missing_ok=True)


def _ended(pid: int, data: Path) -> bool:
    deadline = time.monotonic() + LEFTOVER_TIMEOUT
    while _serves(pid, data):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def _serves(pid: int, data: Path) -> bool:
    """Whether *pid* is a server on *data*. A pid alone proves nothing: the kernel uses each again."""
    return f" -D {data} " in _command_line(pid)


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LEFTOVER_TIMEOUT).stdout  # noqa: S603


def _noted_pid(data: Path) -> int | None:
    lines = _lines(data)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
