"""The job threads: each takes a claimed job from the feed, runs it, takes the next."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable

from worker import clock, log
from worker.queue.claim import Claim
from worker.runtime.execution import Execution
from worker.runtime.hooks import Hooks

logger = log.get_logger(__name__)

# How long a thread that is not needed waits before it looks again whether the others still come along.
_LOOK_AGAIN = 0.002
# A job is quick that takes so long at most: a thread that others wait behind would have slept for most of a longer one.
_QUICK = 0.0005
# Whose jobs leave the interpreter alone for more of the time wait for something else, and others can run meanwhile.
_BUSY = 0.5


class JobThreads:
    """
    *count* threads that run what is put before them; a context manager.

    Only as many are awake as have work, because each that is not needed costs the others the interpreter: a thread
    that ends a job takes the next by itself, and one that takes a job behind which others wait wakes one more.

    One that a job keeps for good can be replaced; it ends after that job.
    """

    def __init__(self, count: int, execution: Execution, finished: Callable[[Claim], None], hooks: Hooks) -> None:
        self._execution = execution
        self._finished = finished
        self._hooks = hooks
        self._lock = threading.Lock()
        self._waiting: deque[Claim] = deque()
        self._asleep: list[threading.Lock] = []  # what each thread sleeps on; the last to fall asleep is woken first
        self._stands_by = False  # a thread that was woken, and has taken nothing yet
        self._num_taken = 0
        self._seen = (0, 0.0, 0.0)  # that number, the time and our CPU time, when the one that stands by looked last
        self._stopped = False
        self._idents: set[int] = set()
        self._retired: set[threading.Thread] = set()
        self._threads = [threading.Thread(target=self._run, name=f"job-{n}", daemon=True) for n in range(1, count + 1)]

    def __enter__(self) -> JobThreads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let each end after its job; one that does not within 2 s is named and left behind."""
        with self._lock:
            self._stopped = True
            for bed in self._asleep:
                bed.release()
            self._asleep.clear()
        deadline = clock.monotonic() + 2.0
        for thread in (*self._threads, *self._retired):
            thread.join(max(0.0, deadline - clock.monotonic()))
            if thread.is_alive():
                logger.error("job_thread.left", thread=thread.name)

    def start(self, claim: Claim) -> None:
        """Run *claim* on the next free thread; from the thread that ends a job, which takes the next by itself."""
        with self._lock:
            self._waiting.append(claim)
            if threading.get_ident() not in self._idents:
                self._wake_one()

    def take_back(self) -> list[Claim]:
        """Everything that no thread has begun."""
        with self._lock:
            claims = [*self._waiting]
            self._waiting.clear()
        return claims

    def replace(self, ident: int) -> tuple[str, str]:
        """
        Let the thread *ident* end after the job that it runs, and start another in its place; returns their names.

        Raises:
            RuntimeError: The system gives us no more threads; nothing has changed.
        """
        place, thread = next((n, one) for n, one in enumerate(self._threads) if one.ident == ident)
        successor = threading.Thread(target=self._run, name=_successor(thread.name), daemon=True)
        successor.start()
        with self._lock:
            self._threads[place] = successor
            self._retired.add(thread)
            # What it starts when its job ends is no longer its own to take.
            self._idents.discard(ident)
        return thread.name, successor.name

    @property
    def dead(self) -> list[str]:
        """Names of threads that ended although nobody asked them to."""
        return [thread.name for thread in self._threads if not thread.is_alive()]

    def _run(self) -> None:
        thread = threading.current_thread()
        self._hooks.after("worker_thread_boot", thread)
        self._idents.add(threading.get_ident())
        bed = threading.Lock()
        bed.acquire()
        while (claim := self._next(bed)) is not None:
            try:
                # In a context of its own: what a job binds, a later one on this thread must not find.
                contextvars.copy_context().run(self._execution.run, claim)
            except Exception as exc:
                self._execution.give_up(claim, exc)
            finally:
                self._finished(claim)
            if self._retired and thread in self._retired:
                break
        self._hooks.before("worker_thread_shutdown", thread)
        self._retired.discard(thread)

    def _next(self, bed: threading.Lock) -> Claim | None:
        """
        The next job, slept for if need be; None at the end.

        One that was woken lets the others go on while they are quick: it would only take turns with them. It stands
        by, in case one of them is held up.
        """
        woken = False
        while True:
            with self._lock:
                if self._waiting and not (woken and self._are_quick()):
                    if woken:
                        self._stands_by = False
                    self._num_taken += 1
                    claim = self._waiting.popleft()
                    self._wake_one()
                    return claim
                if self._stopped:
                    return None
                if self._waiting:
                    self._look()
                else:
                    self._asleep.append(bed)
                    if woken:
                        self._stands_by = woken = False
                patience = _LOOK_AGAIN if woken else -1
            bed.acquire(timeout=patience)
            woken = True

    def _wake_one(self) -> None:
        """Under the lock; one at a time, which wakes the next when it takes a job."""
        if self._waiting and self._asleep and not self._stands_by:
            self._stands_by = True
            self._look()
            self._asleep.pop().release()

    def _look(self) -> None:
        self._seen = (self._num_taken, clock.monotonic(), time.process_time())

    def _are_quick(self) -> bool:
        """Whether each of the others has taken several jobs since the last look, and they computed most of the time."""
        num_seen, seen_at, cpu_seen = self._seen
        num_taken, took = self._num_taken - num_seen, clock.monotonic() - seen_at
        num_others = max(1, len(self._threads) - len(self._asleep) - 1)
        if num_taken < 2 or took * num_others > num_taken * _QUICK:
            return False
        return time.process_time() - cpu_seen > took * _BUSY


def _successor(name: str) -> str:
    """`job-3`, then `job-3.2`, then `job-3.3`."""
    place, _, generation = name.partition(".")
    return f"{place}.{int(generation or 1) + 1}"
