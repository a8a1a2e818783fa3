"""Signals: the first asks the worker to stop, the second to hurry, the third leaves; SIGUSR1 asks it to tell."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from worker import log

logger = log.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether and how urgently the process was asked to stop."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.hurry = threading.Event()
        self.report = threading.Event()
        """Set by SIGUSR1: say in the log what the connections are used for."""

    def ask(self, signum: int) -> None:
        """One more request."""
        if self.hurry.is_set():
            os._exit(128 + signum)
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Take signals as requests while the block lasts; the handlers before it come back after."""
    stop = Stop()

    def handle(signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGUSR1:
            stop.report.set()
        else:
            stop.ask(signum)

    before = {signum: signal.signal(signum, handle) for signum in _SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
