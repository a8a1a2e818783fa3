"""What one side of the comparison must be able to do: ourselves, and every other library."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar, NamedTuple

from tests.bench.tally import Tally

SLOTS = 10
"""How many jobs each side runs at once, and how many connections its jobs have."""

INSERT = "INSERT INTO bench (number) VALUES (%s)"


@dataclass(frozen=True)
class Places:
    """Where the stores of this round are; None for one that is not there."""

    postgres: str
    redis: str | None = None
    rabbitmq: str | None = None
    rabbitmq_pid: int | None = None
    node_modules: str | None = None


class Guarantee(NamedTuple):
    """What a side gives for its number, in words of a few letters, and whether it does."""

    durable: str
    """What becomes of a job that was sent when the store, or the worker, dies."""
    atomic: bool
    """A job's write and its completion commit together."""
    fenced: bool
    """A worker that was taken for dead cannot complete a job that somebody else has by now."""

    @property
    def words(self) -> str:
        given = [name for name in ("atomic", "fenced") if getattr(self, name)]
        return ", ".join([self.durable, *given])


class Sender(ABC):
    """
    A library with one way to use it, as far as it sends. Made anew in a process of its own for each stage of each run.

    Raises:
        ImportError: What it stands on is not on this machine.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    store: ClassVar[str]
    """Postgres, Redis or RabbitMQ."""
    packages: ClassVar[tuple[str, ...]]
    """Distributions whose versions are told."""
    guarantee: ClassVar[Guarantee]
    settings: ClassVar[str]
    """What was set, and who recommends it."""

    def __init__(self, places: Places, tally: Tally) -> None:
        if self.store != "Postgres" and getattr(places, self.store.lower()) is None:
            raise ImportError(f"{self.store} is not installed")
        self.places = places
        self.tally = tally

    @abstractmethod
    def prepare(self) -> None:
        """Make the tables it needs; before any other stage, once for each run."""

    @abstractmethod
    def sending(self) -> AbstractContextManager[Callable[[str, float], None]]:
        """How an application sends one job, connected within the block: called with the work and its argument."""

    def enqueue(self, number: int) -> float:
        """Seconds for *number* sends of the job that does nothing, one by one."""
        with self.sending() as send:
            send("drain", 0)
            started = time.monotonic()
            for _ in range(number):
                send("drain", 0)
            return time.monotonic() - started

    def bulk(self, number: int, size: int) -> float | None:
        """Seconds for *number* sends, *size* at once; None if there is no such call."""
        return None

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in self.packages}


class Peer(Sender):
    """
    A library that also runs what it has sent.

    The jobs are three: "drain" does nothing, "inserts" writes one row, "latency" tells when it was sent. Each calls
    `tally`, which is how the clock knows that it ran.
    """

    @abstractmethod
    def fill(self, work: str, number: int) -> None:
        """Send *number* jobs, by any way that is quick; numbered from 0 where the job takes a number."""

    @abstractmethod
    def working(self, work: str) -> AbstractContextManager[None]:
        """A worker that runs the jobs of *work*, within the block."""

    @abstractmethod
    def num_left(self) -> int:
        """Jobs that the store still has, waiting or running."""

    @contextmanager
    def flowing(self) -> Iterator[Callable[[str, list[float]], None]]:
        """How an application sends many jobs at once: called with the work and an argument for each."""
        with self.sending() as send:

            def send_each(work: str, arguments: list[float]) -> None:
                for argument in arguments:
                    send(work, argument)

            yield send_each

    def cpu_seconds(self) -> float:
        """Of the worker, so far."""
        return time.process_time()

    def counts(self) -> dict[str, float]:
        """What it has counted by itself in `working`, for all jobs of the run."""
        return {}
