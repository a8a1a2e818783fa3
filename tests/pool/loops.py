"""An event loop on a thread of its own, as a web server has one beside its other threads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.factories import JOIN, InThread

T = TypeVar("T")


class Loop:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = InThread(self.loop.run_forever)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.start(work).result(JOIN)

    def close(self) -> None:
        """Stop at once and close: tasks that were not done stay where they are."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.result()
        self.loop.close()


@contextmanager
def running_loop() -> Iterator[Loop]:
    loop = Loop()
    try:
        yield loop
    finally:
        if not loop.loop.is_closed():
            loop.close()
