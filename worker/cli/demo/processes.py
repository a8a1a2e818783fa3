"""The other processes of the demo: the worker, and the one that enqueues. They end when the demo ends."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from worker.cli.demo import leash
from worker.errors import WorkerError

GRACE = 5.0
STOP_TIMEOUT = GRACE + 10.0
ENQUEUE_TIMEOUT = 60.0
LAST_LINES = 15
MOST_RESTARTS = 20

ROOT = Path(__file__).parents[3]


class DemoFailed(WorkerError):
    """The demo could not reach its end; the message says why."""


class Stopped(NamedTuple):
    """How the worker ended: seconds from SIGTERM, and its exit code."""

    drain: float
    code: int


class WorkerProcess:
    """
    A `worker run` of its own.

    Args:
        url: The database, which has no password.
        pool_size: The most connections that it may hold.
        log: File that takes its log.
    """

    def __init__(self, url: str, *, pool_size: int, log: Path) -> None:
        self.log = log
        self.restarts = 0
        self._command = [sys.executable, "-m", "worker", "run", "--jobs", "jobs", "--database-url", url]
        self._command += ["--pool-size", str(pool_size), "--grace", f"{GRACE:g}"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command_line(self) -> str:
        """What a person types to start another one."""
        change_folder = f"cd {shlex.quote(str(ROOT))} && " if Path.cwd() != ROOT else ""
        return change_folder + shlex.join(self._command)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it. From the main thread: it ends with the thread that started it (prctl(2), PR_SET_PDEATHSIG)."""
        with self.log.open("ab") as log:
            self._process = _start_leashed(self._command, stdout=log, stderr=log)

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else None

    def restart(self, code: int) -> None:
        """
        Start another one in place of one that somebody stopped.

        Raises:
            DemoFailed: It ended by itself, or too often.
        """
        if code > 0:
            raise DemoFailed(f"the worker ended with exit code {code}; the end of its log:\n{self.last_lines()}")
        self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            raise DemoFailed(f"the worker was killed {self.restarts} times; the end of its log:\n{self.last_lines()}")
        self.start()

    def stop(self) -> Stopped:
        """
        Ask it to stop by SIGTERM, and wait until it has.

        Raises:
            DemoFailed: It did not within its grace and 10 seconds, and was killed.
        """
        if self._process is None:
            raise DemoFailed("the worker was not started")
        asked_at = time.monotonic()
        self._process.terminate()
        try:
            code = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)
            raise DemoFailed(
                f"the worker did not stop within {STOP_TIMEOUT:g} s of SIGTERM;"
                f" the end of its log:\n{self.last_lines()}"
            ) from None
        return Stopped(time.monotonic() - asked_at, code)

    def last_lines(self) -> str:
        """The last lines of its log."""
        with self.log.open(encoding="utf-8", errors="replace") as log:
            return "".join(deque(log, maxlen=LAST_LINES)).rstrip() or "(nothing was logged)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()


def enqueue(url: str, *job: str) -> None:
    """
    Send a job from a process of its own, in a transaction.

    Raises:
        DemoFailed: It did not end well; the message has its last words.
    """
    process = _start_leashed(
        [sys.executable, "-m", "worker.cli.demo.enqueue", *job],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        WORKER_DATABASE_URL=url,
    )
    try:
        _, words = process.communicate(timeout=ENQUEUE_TIMEOUT)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise DemoFailed(f"sending {job[0]!r} failed: {words.decode(errors='replace').strip()}")


def _start_leashed(
    command: list[str], *, stdout: int | IO[bytes], stderr: int | IO[bytes], **variables: str
) -> subprocess.Popen[bytes]:
    # Settings of the person's own worker must not reach the demo's.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WORKER_", "PYTHONSAFE"))}
    return subprocess.Popen(  # noqa: S603  (our own command line)
        [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command],
        cwd=ROOT,  # where `jobs` lies
        env=inherited | variables,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C is for the demo, which then stops them in order
    )
