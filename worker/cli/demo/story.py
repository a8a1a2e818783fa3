"""The demo from its first line to its last."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType

import click
import psycopg

from worker.cli import exits
from worker.cli.database import connect, migrate
from worker.cli.demo.compare import compare
from worker.cli.demo.display import Display
from worker.cli.demo.processes import ROOT, DemoFailed, WorkerProcess, enqueue
from worker.cli.demo.verdict import Verdict, dead_jobs, duplicates, samples, show
from worker.cli.demo.walk import walk
from worker.cli.demo.watch import Counts, SessionWatch, counts, sessions_left
from worker.embedded import start
from worker.errors import ConfigError
from worker.queue.schema import Schema

POOL_SIZE = 10
INTERVAL = 0.2
STALLED = 600.0  # as long as one job may take
FIRST_TICK = 15.0
SESSIONS_END = 5.0


def tell(folder: bytes) -> int:
    """Take the inventory of *folder* and check it; returns the exit code."""
    with stopping_on_signals(), ExitStack() as stack:
        files = sum(1 for _ in walk(folder))
        click.echo(f"folder    {os.fsdecode(folder)!r} with {files:,} files")
        server = stack.enter_context(start())
        click.echo(f"database  {server.url}  (PostgreSQL {server.version}, gone when the demo ends)")
        path = prepare(server.url, folder)
        worker = WorkerProcess(server.url, pool_size=POOL_SIZE, log=server.folder / "worker.log")
        stack.enter_context(kept_on_failure(worker.log))
        conn = stack.enter_context(closing(connect(server.url, name="demo")))
        watch = stack.enter_context(SessionWatch(server.url))
        stack.enter_context(worker).start()
        click.echo(f"worker    process {worker.pid}; kill it, or start another one: {worker.command_line}")
        with Display(files, max_sessions=POOL_SIZE) as display:
            story = Story(conn, worker, watch, display)
            verdict = story.run(server.url, folder, path)
        if not show(verdict):
            raise DemoFailed("not everything was as it must be; see above")
        return exits.OK


def prepare(url: str, folder: bytes) -> str:
    """
    Create every table in the database at *url*; returns *folder* as the jobs write it.

    Raises:
        ConfigError: The jobs that the demo runs are not there.
    """
    if not (ROOT / "jobs" / "tables.py").is_file():
        raise ConfigError(
            "the demo runs the jobs of this project's repository (its folder jobs/), which an installed package does"
            " not hold: run it in a checkout"
        )
    sys.path.insert(0, str(ROOT))
    from jobs.paths import to_text
    from jobs.tables import create_tables

    migrate(url, Schema())
    with closing(connect(url, name="demo")) as conn:
        create_tables(conn)
    return to_text(folder)


class Story:
    """What happens between the worker's start and its end."""

    def __init__(self, conn: psycopg.Connection, worker: WorkerProcess, watch: SessionWatch, display: Display) -> None:
        self._conn = conn
        self._worker = worker
        self._watch = watch
        self._display = display

    def run(self, url: str, folder: bytes, path: str) -> Verdict:
        """
        Enqueue, wait until the queue is empty, stop the worker, compare.

        Args:
            path: *folder* as the jobs write it.

        Raises:
            DemoFailed: The worker ended by itself, or nothing happened any more.
        """
        sent_at = time.time()
        enqueue(url, "scan", path)
        started_at = time.monotonic()
        self._await(lambda now: now.waiting == 0, patience=STALLED)
        emptied = counts(self._conn)
        seconds = time.monotonic() - started_at
        enqueue(url, "find_duplicates")
        self._await(lambda now: now.waiting == 0 and now.ticks > 0, patience=FIRST_TICK)
        self._display.say("the queue is empty; stopping the worker, then comparing with a plain walk")
        stopped = self._worker.stop()
        return Verdict(
            stopped=stopped,
            sessions_left=sessions_left(self._conn, timeout=SESSIONS_END),
            most_sessions=self._watch.most,
            allowed_sessions=POOL_SIZE,
            comparison=compare(self._conn, folder, since=sent_at),
            duplicates=duplicates(self._conn),
            counts=counts(self._conn),
            samples=samples(self._conn),
            dead=dead_jobs(self._conn),
            rate=(emptied.done + emptied.dead) / max(seconds, INTERVAL),
            seconds=seconds,
            restarts=self._worker.restarts,
            log_end=self._worker.last_lines(),
        )

    def _await(self, condition: Callable[[Counts], bool], *, patience: float) -> None:
        """Wait for *condition*, show how far it is, and put up with anything but *patience* seconds without change."""
        before, changed_at = None, time.monotonic()
        while not condition(now := counts(self._conn)):
            self._display.show(now, self._watch.now)
            self._heed_worker()
            if now != before:
                before, changed_at = now, time.monotonic()
            elif time.monotonic() - changed_at > patience:
                raise DemoFailed(
                    f"nothing happened for {patience:g} s, with {now.waiting:,} jobs waiting and {now.ticks} ticks"
                    f" fired; the end of the worker's log:\n{self._worker.last_lines()}"
                )
            time.sleep(INTERVAL)

    def _heed_worker(self) -> None:
        code = self._worker.ended()
        if code is None:
            return
        if code <= 0:
            how = f"was killed by {signal.Signals(-code).name}" if code else "was stopped"
            self._display.say(f"the worker {how}; starting another one")
        self._worker.restart(code)


@contextmanager
def kept_on_failure(log: Path) -> Iterator[None]:
    """Save *log*, which lies in the database's temporary folder, when the block fails."""
    try:
        yield
    except Exception:
        if log.exists():
            handle, kept = tempfile.mkstemp(prefix="carpool-demo-", suffix=".log")
            os.close(handle)
            shutil.copyfile(log, kept)
            click.echo(f"the worker's log is kept in {kept}", err=True)
        raise


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Let the first SIGINT, SIGTERM or SIGHUP unwind the block; more of them do not disturb its cleaning up."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def unwind(signum: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {each: signal.signal(each, unwind) for each in signals}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
