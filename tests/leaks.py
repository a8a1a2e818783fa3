"""What a test could leave behind in this process: threads and child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

# Python's own helpers of multiprocessing, which live as long as we do.
STAYING = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


class Child(NamedTuple):
    pid: int
    command: str


def threads() -> set[threading.Thread]:
    """Every living thread but the main one; daemons too, as a pool's or a consumer's are and must end with it."""
    return set(threading.enumerate()) - {threading.main_thread()}


def children() -> set[Child]:
    """Every child process, ended ones that nobody has waited for included."""
    found = _from_proc() if sys.platform == "linux" else _from_ps()
    return {child for child in found if not any(name in child.command for name in STAYING)}


def _from_proc() -> set[Child]:
    pids = {int(pid) for task in Path("/proc/self/task").iterdir() for pid in _read(task / "children").split()}
    return {Child(pid, _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip() or "(ended)") for pid in pids}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # ended while we looked
        return ""


def _from_ps() -> set[Child]:
    listed = subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,command="], stdout=subprocess.PIPE, text=True)
    rows = [line.split(maxsplit=2) for line in listed.communicate(timeout=10)[0].splitlines()]
    mine = [row for row in rows if int(row[1]) == os.getpid() and int(row[0]) != listed.pid]
    return {Child(int(pid), command) for pid, _, command in mine}
