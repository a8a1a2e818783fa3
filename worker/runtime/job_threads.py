"""The job threads: each takes a claimed job from the feed, runs it, takes the next."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue

from worker import clock, log
from worker.queue.claim import Claim
from worker.runtime.execution import Execution
from worker.runtime.hooks import Hooks

logger = log.get_logger(__name__)


class JobThreads:
    """*count* threads that run what is put before them; a context manager."""

    def __init__(self, count: int, execution: Execution, finished: Callable[[Claim], None], hooks: Hooks) -> None:
        self._execution = execution
        self._finished = finished
        self._hooks = hooks
        self._waiting: SimpleQueue[Claim | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"job-{n}", daemon=True) for n in range(1, count + 1)]

    def __enter__(self) -> JobThreads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let each end after its job; one that does not within 2 s is named and left behind."""
        for _ in self._threads:
            self._waiting.put(None)
        deadline = clock.monotonic() + 2.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - clock.monotonic()))
            if thread.is_alive():
                logger.error("job_thread.left", thread=thread.name)

    def start(self, claim: Claim) -> None:
        """Run *claim* on the next free thread."""
        self._waiting.put(claim)

    def take_back(self) -> list[Claim]:
        """Everything that no thread has begun."""
        claims = []
        while not self._waiting.empty():
            if (claim := self._waiting.get()) is not None:
                claims.append(claim)
        return claims

    @property
    def dead(self) -> list[str]:
        """Names of threads that ended although nobody asked them to."""
        return [thread.name for thread in self._threads if not thread.is_alive()]

    def _run(self) -> None:
        thread = threading.current_thread()
        self._hooks.after("worker_thread_boot", thread)
        while (claim := self._waiting.get()) is not None:
            try:
                # In a context of its own: what a job binds, a later one on this thread must not find.
                contextvars.copy_context().run(self._execution.run, claim)
            except Exception as exc:
                self._execution.give_up(claim, exc)
            finally:
                self._finished(claim)
        self._hooks.before("worker_thread_shutdown", thread)
