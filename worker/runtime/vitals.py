"""The vitals: whether everything that must live in this process lives, and which stage the process is in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from worker import clock, log

logger = log.get_logger(__name__)

# The main thread makes a round every half second; closing, without rounds, takes less than this.
_MAX_SILENCE = 30.0


class Stage(StrEnum):
    """Where a worker is between its start and its end."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """By SIGTSTP: nothing is claimed until SIGCONT."""
    DRAINING = "draining"
    """Nothing ticks, nothing is claimed, what waited was given back; running jobs have their grace."""
    CUTTING = "cutting"
    """The grace is over: statements are cancelled, jobs interrupted and given back."""
    CLOSING = "closing"
    """The last outcomes are written, then the connections end."""


class Listener(Protocol):
    """Who wants to know."""

    def entered(self, stage: str, told: str) -> None: ...

    def beaten(self, *, well: bool) -> None: ...

    def reloading(self) -> None: ...


Trouble = Callable[[], str | None]


class Vitals:
    """
    The facts about liveness, in one place: supervision acts on them, probes and the service manager are told.

    Each internal thread is watched by its name, from after its start to before its end.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self.stage = Stage.STARTING
        self._listener = listener
        self._lock = threading.Lock()
        self._watched: dict[str, Trouble] = {}
        self._beaten_at = clock.monotonic()
        if listener is not None:
            # Not logged: a boot that fails for a person's mistake is told in one line.
            listener.entered(self.stage.value, self.stage.value)

    @contextmanager
    def watching(self, **parts: Trouble) -> Iterator[None]:
        """While the block lasts, what each of *parts* returns is its trouble, None when it is well."""
        with self._lock:
            self._watched.update(parts)
        try:
            yield
        finally:
            with self._lock:
                for name in parts:
                    self._watched.pop(name, None)

    def enter(self, stage: Stage, **fields: object) -> None:
        """The process is in *stage* from now on; *fields* are for the log and for people."""
        self.stage = stage
        logger.info("worker.stage", stage=stage.value, **fields)
        if self._listener is not None:
            details = ", ".join(f"{name} {value}" for name, value in fields.items())
            self._listener.entered(stage.value, f"{stage.value}: {details}" if details else stage.value)

    def reload(self) -> None:
        """What is entered from now on is the way to new code under the same process id, not to the end."""
        if self._listener is not None:
            self._listener.reloading()

    def beat(self) -> None:
        """The main thread has made a round."""
        self._beaten_at = clock.monotonic()
        if self._listener is not None:
            self._listener.beaten(well=not self.troubles())

    def troubles(self) -> dict[str, str]:
        """By name, what is wrong with those that are not well."""
        with self._lock:
            watched = list(self._watched.items())
        found = {name: said for name, trouble in watched if (said := trouble()) is not None}
        silence = clock.monotonic() - self._beaten_at
        if silence > _MAX_SILENCE:
            found["main"] = f"no round for {silence:.0f} s"
        return found


def dead_unless(is_alive: Callable[[], bool]) -> Trouble:
    """The trouble of a thread that must not end."""
    return lambda: None if is_alive() else "its thread has ended"
