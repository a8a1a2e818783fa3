"""
Our pool beside plain psycopg_pool, in one run: `python -m tests.bench.pool [--runs N]`.

The two sides take turns in short blocks, so that whatever else the machine does hits both. Each run is a process of
its own. A checkout alone is counted in CPU time, as it waits for nothing; a transaction by the clock. Exit code 0 when
the targets hold: a checkout and its return cost at most 20 us more, a transaction at most 1.1 times as much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg_pool

from worker import embedded
from worker.pool import Pool, PoolOptions

EXIT_HELD, EXIT_MISSED = 0, 1

RUNS = 3
SIZE = 4
THREADS = 8
BLOCK = 200
# Blocks of each side; those with round trips are shorter, as they last long enough.
BLOCKS = 60
SLOW_BLOCK = 40

MAX_MORE = 20.0
MAX_RATIO = 1.1
CHECKOUT, BLOCKED, TRANSACTION, CONTENDED, ASYNC = (
    "acquire, release",
    "with connection()",
    "transaction",
    f"transaction, {THREADS} threads on {SIZE}",
    "async transaction",
)

Seconds = float
Block = Callable[[], Seconds]
# Microseconds of one operation, plain and ours; ours / plain; ours - plain. The latter two are medians over pairs of
# blocks beside each other, which the machine's other work hits alike.
Measured = tuple[float, float, float, float]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.pool", description="Our pool beside plain psycopg_pool.")
    parser.add_argument("--runs", type=int, default=RUNS, help="processes, one after the other")
    parser.add_argument("--one", action="store_true", help="one run in this process; prints its medians as JSON")
    options = parser.parse_args(arguments)
    with _server() as url:
        if options.one:
            print(json.dumps(run_once(url)))
            return EXIT_HELD
        command = [sys.executable, "-m", "tests.bench.pool", "--one"]
        environment = {**os.environ, "WORKER_TEST_DATABASE_URL": url}
        runs = [
            json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(options.runs)
        ]
    return _report(runs)


def run_once(url: str) -> dict[str, Measured]:
    """By measure, medians over blocks that took turns."""
    with ExitStack() as stack:
        plain = stack.enter_context(psycopg_pool.ConnectionPool(url, min_size=SIZE, max_size=SIZE))
        ours = Pool.connect(PoolOptions(conninfo=url, min_size=SIZE, max_size=SIZE))
        stack.callback(ours.close)
        plain.wait()
        return {
            CHECKOUT: _taking_turns(_checkouts(plain), _checkouts(ours), BLOCKS),
            BLOCKED: _taking_turns(_blocks(plain), _blocks(ours), BLOCKS),
            TRANSACTION: _taking_turns(_transactions(plain), _transactions(ours), BLOCKS, SLOW_BLOCK),
            CONTENDED: _taking_turns(_contended(plain), _contended(ours), BLOCKS, SLOW_BLOCK),
            ASYNC: asyncio.run(_async_transactions(url, ours)),
        }


def _taking_turns(plain: Block, ours: Block, blocks: int, size: int = BLOCK) -> Measured:
    plain(), ours()  # warm: connections made, statements prepared
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(blocks):
        # The first of a pair may find the caches colder, so that takes turns as well.
        for side, block in ((0, plain), (1, ours)) if number % 2 else ((1, ours), (0, plain)):
            times[side].append(block() / size * 1e6)
    return _measured(*times)


def _measured(plain: list[float], ours: list[float]) -> Measured:
    pairs = list(zip(plain, ours, strict=True))
    return (
        statistics.median(plain),
        statistics.median(ours),
        statistics.median(mine / other for other, mine in pairs),
        statistics.median(mine - other for other, mine in pairs),
    )


# Neither of the next two waits for anything, so its cost is the thread's own time: what other threads and processes
# take meanwhile is nobody's doing here.


def _checkouts(pool: psycopg_pool.ConnectionPool[Any]) -> Block:
    def block() -> Seconds:
        begun = time.thread_time()
        for _ in range(BLOCK):
            pool.putconn(pool.getconn())
        return time.thread_time() - begun

    return block


def _blocks(pool: psycopg_pool.ConnectionPool[Any]) -> Block:
    def block() -> Seconds:
        begun = time.thread_time()
        for _ in range(BLOCK):
            with pool.connection():
                pass
        return time.thread_time() - begun

    return block


def _transactions(pool: psycopg_pool.ConnectionPool[Any]) -> Block:
    def block() -> Seconds:
        begun = time.perf_counter()
        for _ in range(SLOW_BLOCK):
            with pool.connection() as conn:
                conn.execute("SELECT 1")
        return time.perf_counter() - begun

    return block


def _contended(pool: psycopg_pool.ConnectionPool[Any]) -> Block:
    def some() -> None:
        for _ in range(SLOW_BLOCK // THREADS):
            with pool.connection() as conn:
                conn.execute("SELECT 1")

    def block() -> Seconds:
        threads = [threading.Thread(target=some) for _ in range(THREADS)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    return block


async def _async_transactions(url: str, ours: Pool) -> Measured:
    async def block(pool: Any) -> Seconds:
        begun = time.perf_counter()
        for _ in range(SLOW_BLOCK):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        return time.perf_counter() - begun

    times: tuple[list[float], list[float]] = ([], [])
    async with psycopg_pool.AsyncConnectionPool(url, min_size=SIZE, max_size=SIZE) as plain:
        await plain.wait()
        await block(plain), await block(ours)
        for number in range(BLOCKS):
            for side, pool in ((0, plain), (1, ours)) if number % 2 else ((1, ours), (0, plain)):
                times[side].append(await block(pool) / SLOW_BLOCK * 1e6)
    return _measured(*times)


def _report(runs: list[dict[str, Measured]]) -> int:
    """Print medians over the runs, with the least and the most; whether the targets hold."""
    print(f"medians of {len(runs)} runs [least..most], us for one operation; ratio = ours / psycopg_pool")
    print(f"{'':<30}{'ratio':<22}{'more':<24}{'psycopg_pool':<26}ours")
    held = True
    for measure in runs[0]:
        plain, ours, ratio, more = map(list, zip(*(run[measure] for run in runs), strict=True))
        print(f"{measure:<30}{_spread(ratio, 2):<22}{_spread(more, 1):<24}{_spread(plain, 1):<26}{_spread(ours, 1)}")
        if measure in (CHECKOUT, BLOCKED):
            held = held and statistics.median(more) <= MAX_MORE
        if measure == TRANSACTION:
            held = held and statistics.median(ratio) <= MAX_RATIO
    verdict = "hold" if held else "MISSED"
    print(f"targets, {MAX_MORE:g} us more for a checkout, {MAX_RATIO:g} times a transaction: {verdict}")
    return EXIT_HELD if held else EXIT_MISSED


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


@contextmanager
def _server() -> Iterator[str]:
    if given := os.environ.get("WORKER_TEST_DATABASE_URL"):
        yield given
        return
    with embedded.start(fast=True) as postgres:
        yield postgres.url


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
