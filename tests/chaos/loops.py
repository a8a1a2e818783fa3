"""Noise made by coroutines: users on several loops, cancelled ones, leaking jobs, loops closed under their tasks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import psycopg

from tests.chaos.scene import Scene, check_answer
from worker.pool import holder

AsyncActor = Callable[[Scene, random.Random, str], Coroutine[Any, Any, None]]

_TIMEOUT = 8.0
_CANCELLED = 20.0


async def use(scene: Scene, rng: random.Random, who: str) -> None:
    """A short transaction, in each of the ways to have one."""
    with scene.attempt(who, "async use"):
        if rng.random() < 0.1:
            async with scene.pool.try_begin() as maybe:
                if maybe is not None:
                    with scene.alone(maybe, who):
                        await work(maybe, rng, who)
            return
        begun = scene.pool.begin if rng.random() < 0.2 else scene.pool.connection
        async with begun(_TIMEOUT) as conn:
            with scene.alone(conn, who):
                await work(conn, rng, who)
                if rng.random() < 0.05:
                    raise psycopg.OperationalError("the job failed")


async def work(conn: psycopg.AsyncConnection[Any], rng: random.Random, who: str) -> None:
    for number in range(rng.randint(1, 3)):
        token = f"{who} {number} {rng.random()}"
        check_answer(await (await conn.execute("SELECT %s", [token])).fetchone(), token)
    if rng.random() < 0.05:
        await conn.execute("SELECT pg_sleep(%s)", [rng.uniform(0, 0.2)])


async def nest(scene: Scene, rng: random.Random, who: str) -> None:
    """A second connection while holding one."""
    with scene.attempt(who, "async nested use"):
        async with scene.pool.connection(_TIMEOUT) as first:
            with scene.alone(first, who):
                await work(first, rng, who)
                async with scene.pool.connection(_TIMEOUT) as second:
                    with scene.alone(second, f"{who} again"):
                        await work(second, rng, who)


async def soil(scene: Scene, rng: random.Random, who: str) -> None:
    """Give back a session as nobody should."""
    with scene.attempt(who, "async dirty return"):
        view = await scene.pool.acquire_async(_TIMEOUT)
        try:
            with scene.alone(view, who):
                match rng.randint(0, 2):
                    case 0:
                        await view.execute("SELECT 1")
                    case 1:
                        await view.set_autocommit(True)
                        await view.execute("SET application_name = 'somebody else'")
                    case _:
                        await view.close()
        finally:
            await scene.pool.release_async(view)


async def be_cancelled(scene: Scene, rng: random.Random, who: str) -> None:
    """A task that is cancelled wherever it is: in the line, at the hand-over, in a query, while giving back."""

    async def victim() -> None:
        async with scene.pool.connection(_TIMEOUT) as conn:
            with scene.alone(conn, who):
                await work(conn, rng, who)
                await conn.execute("SELECT pg_sleep(%s)", [rng.choice([0, 0.01, 30])])

    with scene.attempt(who, "cancelled task"):
        task = asyncio.create_task(victim())
        await asyncio.sleep(rng.choice([0, 0, rng.uniform(0, 0.005), rng.uniform(0, 0.1)]))
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=_CANCELLED)
        if not done:
            raise RuntimeError(f"{who} did not end {_CANCELLED:g} s after it was cancelled")
        with suppress(asyncio.CancelledError):
            task.result()


async def hurry(scene: Scene, rng: random.Random, who: str) -> None:
    """Give up waiting again and again, by either of the two ways."""
    with scene.attempt(who, "async hurried use"):
        patience = rng.uniform(0, 0.02)
        if rng.random() < 0.5:
            view = await scene.pool.acquire_async(patience)
        else:
            try:
                view = await asyncio.wait_for(scene.pool.acquire_async(_TIMEOUT), patience)
            except TimeoutError:
                return
        try:
            with scene.alone(view, who):
                await work(view, rng, who)
                await view.commit()
        finally:
            await scene.pool.release_async(view)


async def leak_job(scene: Scene, rng: random.Random, who: str) -> None:
    """A job that keeps what it took and is reported over; it may go on using it."""
    name = scene.leaks.name("async job over")
    holder.set(name)
    goes_on = rng.random() < 0.5
    with scene.attempt(who, "async leaking job"):
        view = await scene.pool.acquire_async(_TIMEOUT)
        using = asyncio.create_task(_use_until_lost(view, rng))
        try:
            scene.taken(view, name)
            if not goes_on:
                using.cancel()
            await asyncio.sleep(rng.uniform(0, 0.05))
        finally:
            scene.leaks.made(name)
            await asyncio.to_thread(scene.pool.reclaim, name)
            done, _ = await asyncio.wait({using}, timeout=_CANCELLED)
        if not done:
            raise RuntimeError(f"{name} did not notice that its connection was taken")
        if not using.cancelled() and (error := using.exception()) is not None:
            raise error


async def _use_until_lost(view: psycopg.AsyncConnection[Any], rng: random.Random) -> None:
    with suppress(psycopg.OperationalError):
        while True:
            await view.execute("SELECT pg_sleep(%s)", [rng.choice([0.001, 0.01, 0.5])])


async def drop(scene: Scene, rng: random.Random, who: str) -> None:
    """Forget the connection itself, and live on."""
    name = scene.leaks.name("async connection dropped")
    holder.set(name)
    taken = False
    with scene.attempt(who, "async dropped connection"):
        view = await scene.pool.acquire_async(_TIMEOUT)
        taken = True
        scene.taken(view, name)
        del view
    if taken:
        scene.leaks.made(name)


def close_holding(scene: Scene, rng: random.Random, who: str) -> None:
    """A loop that is closed while its tasks hold connections, wait for some, or are in the middle of something."""
    loop = asyncio.new_event_loop()
    kept: list[Any] = []
    held: list[str] = []
    maybe: list[str] = []

    async def hold(name: str) -> None:
        holder.set(name)
        view = await scene.pool.acquire_async(_TIMEOUT)
        held.append(name)
        scene.taken(view, name)
        if rng.random() < 0.5:
            await view.execute("SELECT 1")
        kept.append(view)

    async def be_in_the_middle(name: str) -> None:
        holder.set(name)
        async with scene.pool.connection(_TIMEOUT) as conn:
            await conn.execute("SELECT pg_sleep(%s)", [rng.choice([0.001, 0.02, 2])])

    async def live() -> None:
        for _ in range(rng.randint(0, 2)):
            maybe.append(scene.leaks.name("loop closed in the middle"))
            kept.append(asyncio.create_task(be_in_the_middle(maybe[-1])))
        for _ in range(rng.randint(1, 2)):
            with suppress(psycopg.OperationalError):
                await asyncio.create_task(hold(scene.leaks.name("loop closed")))
        await asyncio.sleep(rng.choice([0, 0.001, 0.02]))

    with scene.attempt(who, "loop closed while holding"):
        try:
            copy_context().run(loop.run_until_complete, live())
        finally:
            for name in maybe:
                scene.leaks.possible(name)
            loop.close()
            for name in held:
                scene.leaks.made(name)
    for task in kept:
        if isinstance(task, asyncio.Task) and task.done() and not task.cancelled():
            task.exception()  # looked at
    if rng.random() < 0.5:
        scene.over.wait(rng.uniform(0, 1))
