"""Several processes with the same schedule, and kill -9: each tick fires once and none is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import IO

import pytest

from tests.schedule.standins import Book
from tests.waiting import wait_until
from worker import clock

PATIENCE = 30.0

Start = Callable[..., "subprocess.Popen[str]"]


@contextmanager
def ticking(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.schedule.ticking", url, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert _out(process).readline().startswith("started")
            yield process
        finally:
            # The end of its input ends it; who hangs inside a transaction does not look.
            process.kill()


@pytest.fixture
def start(database: str) -> Iterator[Start]:
    """Start a process that ticks each second; it ends with the test."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(ticking(database, *options))


def _out(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _assert_each_tick_fired_once(book: Book) -> None:
    ticks = book.db.execute("SELECT tick, job_id FROM worker.tick ORDER BY tick").fetchall()
    assert {(later[0] - earlier[0]).total_seconds() for earlier, later in pairwise(ticks)} == {1.0}
    assert {outcome for _, outcome, _ in book.told()} <= {"fired", "late"}
    assert sorted(job_id for _, job_id in ticks) == sorted(book.job_ids())


def test_three_processes_fire_each_tick_once_though_one_is_killed(start: Start, book: Book) -> None:
    processes = [start() for _ in range(3)]
    wait_until(lambda: len(book.told()) >= 3, PATIENCE, "ticks of three processes")

    processes[0].kill()
    reached = len(book.told())
    wait_until(lambda: len(book.told()) >= reached + 4, PATIENCE, "ticks of the two that are left")

    for process in processes:
        process.kill()
        process.wait(PATIENCE)
    _assert_each_tick_fired_once(book)


def test_a_process_killed_inside_its_transaction_leaves_the_tick_to_others(start: Start, book: Book) -> None:
    victim = start("hang")
    assert _out(victim).readline() == "inside\n"
    start()
    looked_until = clock.now() + timedelta(seconds=2)
    wait_until(lambda: clock.now() > looked_until, PATIENCE, "some looks of the other process")
    held_up = (book.told(), book.job_ids())

    victim.kill()
    wait_until(lambda: len(book.told()) >= 3, PATIENCE, "the ticks that were held up")

    assert held_up == ([], [])
    _assert_each_tick_fired_once(book)
