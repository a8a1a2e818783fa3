"""
Signals: the first asks the worker to stop, the second to hurry, the third leaves; others ask it to do or tell.

SIGHUP asks for new code and settings, but where the log goes to a terminal it says that this has gone: then it is one
more request to stop. One that was ignored from the start (`nohup`) stays ignored.

A handler runs between two steps of the main thread, which may just hold a lock; so it takes none. It notes the request
and puts it on a queue that is made for that, and the main thread does the rest.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType

from worker import clock, log

logger = log.get_logger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_TELLING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT, signal.SIGHUP)


class StoppedEarly(BaseException):
    """Raised in the main thread by the first request to stop, where nothing is lost by that: before any job runs."""


class Stop:
    """Whether and how urgently the process was asked to stop, and what else it was asked for."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        """When the first request came, monotonic."""
        self.hurry = False
        """Whether a second one came."""
        self._raises = False
        self._requests: SimpleQueue[int] = SimpleQueue()
        self._answers: dict[int, Callable[[], object]] = {}

    @property
    def asked(self) -> bool:
        return self.asked_at is not None

    def on(self, signum: int, answer: Callable[[], object]) -> None:
        """Call *answer* on the thread that waits, each time that *signum* comes."""
        self._answers[signum] = answer

    def ask(self, signum: int = signal.SIGTERM) -> None:
        """One more request to stop."""
        if self.hurry:
            os._exit(128 + signum)
        self.hurry = self.asked
        if self.asked_at is None:
            self.asked_at = clock.monotonic()
        self._requests.put(signum)
        if self._raises:
            self._raises = False
            raise StoppedEarly

    def tell(self, signum: int) -> None:
        """A request for something else than to stop."""
        self._requests.put(signum)

    def wait(self, timeout: float) -> bool:
        """Sleep for *timeout* seconds, or until asked to stop: whether that is so. Answers other requests meanwhile."""
        deadline = clock.monotonic() + timeout
        while not self.asked:
            try:
                request = self._requests.get(timeout=max(0.0, deadline - clock.monotonic()))
            except Empty:
                break
            if not self.asked and request in self._answers:
                self._answers[request]()
        return self.asked

    @contextmanager
    def raising(self) -> Iterator[None]:
        """
        While the block lasts, a request to stop ends it at once.

        Raises:
            StoppedEarly: One came, now or before.
        """
        self._raises = True
        try:
            if self.asked:
                raise StoppedEarly
            yield
        finally:
            self._raises = False
        if self.asked:
            raise StoppedEarly  # the block has swallowed it


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Take signals as requests while the block lasts; the handlers before it come back after."""
    stop = Stop()

    def handle(signum: int) -> None:
        if is_request_to_stop(signum):
            stop.ask(signum)
        else:
            stop.tell(signum)

    with taken(handle):
        yield stop


def is_request_to_stop(signum: int) -> bool:
    return signum in _STOPPING or (signum == signal.SIGHUP and sys.stderr.isatty())


@contextmanager
def taken(handle: Callable[[int], object]) -> Iterator[None]:
    """Call *handle* between two steps of the main thread for each signal that is ours, while the block lasts."""
    ours = [*_STOPPING, *_TELLING]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        ours.remove(signal.SIGHUP)

    def called(signum: int, _: FrameType | None) -> None:
        handle(signum)

    before = {signum: signal.signal(signum, called) for signum in ours}
    # Held over an exec, so that none is lost while nobody listens.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def hold() -> None:
    """Keep all that come from here on, also over an exec, for whoever takes them next."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [*_STOPPING, *_TELLING])
