"""The crowd: who makes which noise, on which thread or loop."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

from tests.chaos import loops, threads
from tests.chaos.scene import Scene

# Each actor has a thread, or a task, of its own and does its one thing again and again.
THREADS: dict[str, tuple[int, threads.Actor]] = {
    "user": (6, threads.use),
    "nesting": (2, threads.nest),
    "hurried": (2, threads.hurry),
    "dirty": (2, threads.soil),
    "leaking job": (2, threads.leak_job),
    "running on": (1, threads.leak_and_use_on),
    "dying": (2, threads.die_holding),
    "dropping": (1, threads.drop),
    "cancelled": (1, threads.cancel),
    "closing loops": (2, loops.close_holding),
    "pinned": (1, threads.pin),
}
TASKS: dict[str, tuple[int, loops.AsyncActor]] = {
    "user": (4, loops.use),
    "nesting": (1, loops.nest),
    "hurried": (2, loops.hurry),
    "dirty": (1, loops.soil),
    "cancelled": (3, loops.be_cancelled),
    "leaking job": (1, loops.leak_job),
    "dropping": (1, loops.drop),
}
LOOPS = 2
# The rarer ones do their thing a few times a second: they are the adversity of the others, not the load.
RARE = {"leaking job", "running on", "dying", "dropping", "cancelled", "closing loops", "dirty"}
LEAVE = 60.0


class Crowd:
    """All actors, from `start` until they have left after the end of the noise."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._threads = [
            self._thread(f"{name} {number}", actor)
            for name, (count, actor) in THREADS.items()
            for number in range(count)
        ]
        self._threads += [threading.Thread(target=self._run_loop, args=(number,)) for number in range(LOOPS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def left(self) -> list[str]:
        """Wait for all to leave; who did not."""
        for thread in self._threads:
            thread.join(LEAVE)
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _thread(self, who: str, actor: threads.Actor) -> threading.Thread:
        def run() -> None:
            rng = self._scene.rng(who)
            while not self._scene.over.wait(self._pause(who, rng)):
                self._guard(who, lambda: actor(self._scene, rng, who))

        return threading.Thread(target=run, name=f"chaos {who}")

    def _run_loop(self, number: int) -> None:
        async def act(who: str, actor: loops.AsyncActor) -> None:
            rng = self._scene.rng(who)
            while not self._scene.over.is_set():
                # A task of its own each time, as each is a job with a name of its own.
                task = asyncio.create_task(actor(self._scene, rng, who))
                await asyncio.wait({task})
                if (error := task.exception()) is not None:
                    self._scene.surprise(who, error)
                await asyncio.sleep(self._pause(who, rng))

        async def live() -> None:
            async with asyncio.TaskGroup() as group:
                for name, (count, actor) in TASKS.items():
                    for each in range(count):
                        group.create_task(act(f"loop {number} {name} {each}", actor))

        asyncio.run(live())

    def _guard(self, who: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as exc:
            self._scene.surprise(who, exc)

    def _pause(self, who: str, rng: random.Random) -> float:
        if self._scene.calm.is_set():
            return 0.5
        return rng.expovariate(5) if any(name in who for name in RARE) else rng.expovariate(100)
