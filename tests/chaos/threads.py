"""Noise made by threads: users, leaking jobs, threads that die holding, a pinned connection."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any
from weakref import ref

import psycopg
from psycopg.rows import dict_row

from tests.chaos.scene import SOILED_ZONE, Scene, check_answer
from worker.pool import Connection, holder

Actor = Callable[[Scene, random.Random, str], None]

_TIMEOUT = 8.0
_ZOMBIE = 20.0


def use(scene: Scene, rng: random.Random, who: str) -> None:
    """A short transaction, in each of the ways to have one."""
    with scene.attempt(who, "use"):
        if rng.random() < 0.1:
            with scene.pool.try_begin() as maybe:
                if maybe is not None:
                    with scene.alone(maybe, who):
                        work(maybe, rng, who)
            return
        begun = scene.pool.begin if rng.random() < 0.2 else scene.pool.connection
        with begun(_TIMEOUT) as conn, scene.alone(conn, who):
            work(conn, rng, who)
            if rng.random() < 0.05:
                raise psycopg.OperationalError("the job failed")


def work(conn: psycopg.Connection[Any], rng: random.Random, who: str) -> None:
    for number in range(rng.randint(1, 3)):
        token = f"{who} {number} {rng.random()}"
        check_answer(conn.execute("SELECT %s", [token]).fetchone(), token)
    if rng.random() < 0.05:
        conn.execute("SELECT pg_sleep(%s)", [rng.uniform(0, 0.2)])


def nest(scene: Scene, rng: random.Random, who: str) -> None:
    """A second connection while holding one, which a pool that is small enough must refuse."""
    with scene.attempt(who, "nested use"), scene.pool.connection(_TIMEOUT) as first, scene.alone(first, who):
        work(first, rng, who)
        with scene.pool.connection(_TIMEOUT) as second, scene.alone(second, f"{who} again"):
            work(second, rng, who)


def hurry(scene: Scene, rng: random.Random, who: str) -> None:
    """Give up waiting again and again."""
    with scene.attempt(who, "hurried use"), scene.pool.connection(rng.uniform(0, 0.02)) as conn, scene.alone(conn, who):
        work(conn, rng, who)


def soil(scene: Scene, rng: random.Random, who: str) -> None:
    """Give back a connection as nobody should."""
    with scene.attempt(who, "dirty return"):
        conn = scene.pool.acquire(_TIMEOUT)
        try:
            with scene.alone(conn, who):
                rng.choice(DIRT)(conn)
        finally:
            scene.pool.release(conn)


def _open_transaction(conn: Connection) -> None:
    conn.execute("SELECT 1")


def _failed_transaction(conn: Connection) -> None:
    try:
        conn.execute("SELECT 1/0")
    except psycopg.DataError:
        return


def _settings(conn: Connection) -> None:
    conn.execute("SELECT set_config('TimeZone', %s, false)", [SOILED_ZONE])
    conn.execute("SET application_name = 'somebody else'")
    conn.commit()


def _attributes(conn: Connection) -> None:
    conn.autocommit = True
    conn.row_factory = dict_row


def _pipeline(conn: Connection) -> None:
    conn.pipeline().__enter__()


def _statement(conn: Connection) -> None:
    conn.pgconn.send_query(b"SELECT pg_sleep(1)")


def _closed(conn: Connection) -> None:
    conn.close()


DIRT = (_open_transaction, _failed_transaction, _settings, _attributes, _pipeline, _statement, _closed)


def leak_job(scene: Scene, rng: random.Random, who: str) -> None:
    """A job that keeps what it took, one or two, and is reported over."""
    name = scene.leaks.name("job over")
    kept: list[Connection] = []

    def job() -> None:
        holder.set(name)
        for _ in range(rng.choice([1, 1, 2])):
            conn = scene.pool.acquire(_TIMEOUT)
            kept.append(conn)
            scene.taken(conn, who + name)
            work(conn, rng, who)

    with scene.attempt(who, "leaking job"):
        try:
            copy_context().run(job)
        finally:
            if kept:
                scene.leaks.made(name, len(kept))
                scene.pool.reclaim(name)


def leak_and_use_on(scene: Scene, rng: random.Random, who: str) -> None:
    """A job that is reported over while its thread goes on using its connection, and returns it in the end."""
    name = scene.leaks.name("job over, still running")
    has_one, reclaimed = threading.Event(), threading.Event()

    def job() -> None:
        holder.set(name)
        conn = scene.pool.acquire(_TIMEOUT)
        scene.taken(conn, name)
        has_one.set()
        try:
            while not reclaimed.is_set() or not conn.closed:
                conn.execute("SELECT pg_sleep(%s)", [rng.choice([0.001, 0.01, 0.5])])
        except psycopg.OperationalError:
            reclaimed.wait(_ZOMBIE)
        scene.pool.release(conn)

    def run() -> None:
        with scene.attempt(name, "leaking job that goes on"):
            job()

    thread = threading.Thread(target=run, name=name)
    thread.start()
    if has_one.wait(_TIMEOUT + 1):
        scene.over.wait(rng.uniform(0, 0.05))
        scene.leaks.made(name)
        scene.pool.reclaim(name)
    reclaimed.set()
    thread.join(_ZOMBIE)
    if thread.is_alive():
        scene.surprise(who, RuntimeError(f"{name} did not notice that its connection was taken"))


def die_holding(scene: Scene, rng: random.Random, who: str) -> None:
    """A thread that ends while it has a connection; somebody may still know the connection."""
    name = scene.leaks.name("thread dead")
    kept: list[Connection] = []

    def run() -> None:
        with scene.attempt(name, "dying thread"):
            conn = scene.pool.acquire(_TIMEOUT)
            kept.append(conn)
            scene.taken(conn, name)
            work(conn, rng, who)

    thread = threading.Thread(target=lambda: _as_holder(name, run), name=name)
    thread.start()
    thread.join(_ZOMBIE)
    if kept:
        scene.leaks.made(name)
    if rng.random() < 0.5:
        scene.over.wait(rng.uniform(0, 1))


def drop(scene: Scene, rng: random.Random, who: str) -> None:
    """Forget the connection itself, and live on."""
    name = scene.leaks.name("connection dropped")

    def take() -> ref[Connection] | None:
        with scene.attempt(who, "dropped connection"):
            conn = scene.pool.acquire(_TIMEOUT)
            with suppress(psycopg.Error):
                scene.taken(conn, name)
                work(conn, rng, who)
            return ref(conn)
        return None

    dropped = _as_holder(name, take)
    if dropped is not None:
        if dropped() is not None:
            gc.collect()  # the error of a killed session keeps it alive, by the frames of its traceback
        scene.leaks.made(name)


def cancel(scene: Scene, rng: random.Random, who: str) -> None:
    """A job whose statement another thread cancels."""
    name = scene.leaks.name("cancelled job")
    has_one, over = threading.Event(), threading.Event()

    def job() -> None:
        with scene.attempt(name, "cancelled query"), scene.pool.connection(_TIMEOUT) as conn, scene.alone(conn, name):
            has_one.set()
            conn.execute("SELECT pg_sleep(30)")

    def run() -> None:
        _as_holder(name, job)
        over.set()

    thread = threading.Thread(target=run, name=name)
    thread.start()
    has_one.wait(_TIMEOUT + 1)
    while not over.wait(rng.uniform(0.001, 0.02)):
        scene.pool.cancel(name, timeout=2)
    thread.join(_ZOMBIE)


def pin(scene: Scene, rng: random.Random, who: str) -> None:
    """The runtime's own connection, in use all the time, and made again whenever it is lost."""
    with scene.attempt(who, "pinned connection"), scene.pool.pinned() as conn:
        conn.execute("LISTEN chaos")
        until = rng.uniform(0.1, 5)
        waited = 0.0
        while waited < until and not scene.over.is_set():
            token = f"{who} {rng.random()}"
            check_answer(conn.execute("SELECT %s", [token]).fetchone(), token)
            scene.busy_since.pop(who, None)
            scene.over.wait(0.05)
            waited += 0.05


def _as_holder(name: str, call: Callable[[], Any]) -> Any:
    def named() -> Any:
        holder.set(name)
        return call()

    return copy_context().run(named)
