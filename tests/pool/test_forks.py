"""A child that was forked after the pool had opened: told what to do, and unable to harm its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import worker

PARENT = """
import gc, os, sys, warnings
from worker.errors import PoolForked
from worker.pool import Pool, PoolOptions, get_pool

warnings.simplefilter("ignore")  # newer Pythons warn of forking beside threads; that is what this is about
pool = get_pool()
idle = [pool.acquire() for _ in range(2)]
for conn in idle:
    pool.release(conn)
pids = {conn.info.backend_pid for conn in idle}


def fork_and(child):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child() or 0
        except BaseException as exc:
            print(f"child: {type(exc).__name__}: {exc}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pid_of(conn):
    return conn.execute("SELECT pg_backend_pid()").fetchone()[0]


def unharmed():
    with pool.connection() as first, pool.connection() as second:
        print("parent unharmed:", {pid_of(first), pid_of(second)} == pids, flush=True)
"""


@pytest.fixture
def said(database: str):  # type: ignore[no-untyped-def]  # a function that runs a program
    """What a program prints that begins with `PARENT`: a pool with two idle connections, and ways to fork."""

    def run(program: str) -> list[str]:
        environment = {
            **os.environ,
            "WORKER_DATABASE_URL": database,
            "PYTHONPATH": str(Path(worker.__path__[0]).parent),
        }
        command = [sys.executable, "-c", PARENT + textwrap.dedent(program)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_the_child_gets_a_named_error_with_the_remedy(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        fork_and(lambda: pool.acquire())
        unharmed()
        """
    )

    assert lines[0].startswith("child: PoolForked: the pool was opened by process ")
    assert "open one here, worker.get_pool() does, or start children with spawn" in lines[0]
    assert lines[1:] == ["parent unharmed: True"]


def test_coroutines_of_the_child_get_it_too(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        import asyncio
        fork_and(lambda: asyncio.run(pool.acquire_async()))
        fork_and(lambda: pool.try_acquire())
        """
    )

    assert [line.split(":")[1] for line in lines] == [" PoolForked", " PoolForked"]


def test_the_child_opens_a_pool_of_its_own_on_first_use(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        def child():
            mine = get_pool()
            with mine.connection() as conn:
                print("a session of its own:", mine is not pool and pid_of(conn) not in pids)
            mine.close()
        fork_and(child)
        unharmed()
        """
    )

    assert lines == ["a session of its own: True", "parent unharmed: True"]


def test_closing_the_pool_in_the_child_leaves_the_parents_alone(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        fork_and(lambda: pool.close())
        unharmed()
        """
    )

    assert lines == ["parent unharmed: True"]


def test_a_child_that_leaves_a_block_of_the_parents_does_not_touch_its_session(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        with pool.connection() as conn:
            conn.execute("CREATE TABLE note (id int)")
            conn.execute("INSERT INTO note VALUES (1)")

            def child():
                conn.__exit__(None, None, None)  # would commit

            def child_that_uses_it():
                conn.execute("INSERT INTO note VALUES (2)")

            def child_that_returns_it():
                pool.release(conn)

            for each in (child, child_that_uses_it, child_that_returns_it):
                fork_and(each)
            print("the parent's transaction:", conn.info.transaction_status.name)
            conn.execute("INSERT INTO note VALUES (3)")
        with pool.connection() as conn:
            print("rows:", conn.execute("SELECT array_agg(id ORDER BY id) FROM note").fetchone()[0])
        unharmed()
        """
    )

    assert lines[-3:] == ["the parent's transaction: INTRANS", "rows: [1, 3]", "parent unharmed: True"]
    assert all("OperationalError" in line or "InterfaceError" in line for line in lines[:-3]), lines


def test_a_child_that_ends_with_its_garbage_collected_does_not_touch_the_parents_sessions(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        def child():
            global pool, idle
            pool = idle = None
            gc.collect()
        fork_and(child)
        unharmed()
        """
    )

    assert lines == ["parent unharmed: True"]


def test_a_child_that_ends_as_programs_do_does_not_touch_the_parents_sessions(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # the whole way out: atexit, collection of everything
        os.waitpid(pid, 0)
        unharmed()
        """
    )

    assert lines == ["parent unharmed: True"]


def test_a_child_forked_while_a_connection_is_out_may_drop_it(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        taken = pool.acquire()
        def child():
            global taken
            taken = None
            gc.collect()
        fork_and(child)
        pool.release(taken)
        unharmed()
        """
    )

    assert lines == ["parent unharmed: True"]


def test_a_child_forked_in_the_middle_of_the_pools_work_can_open_its_own(said) -> None:  # type: ignore[no-untyped-def]
    lines = said(
        """
        import threading
        over = threading.Event()
        def use():
            while not over.is_set():
                with pool.connection(timeout=30):
                    pass
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        def child():
            with get_pool().connection() as conn:
                pid_of(conn)
            get_pool().close()
        print("codes:", {fork_and(child) for _ in range(10)})
        over.set()
        for thread in threads:
            thread.join()
        """
    )

    assert lines == ["codes: {0}"]
