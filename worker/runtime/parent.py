"""The parent: the supervisor as one of its processes sees it. It is told of this process, asks it, and may be gone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, fields
from queue import Empty, SimpleQueue
from typing import Any
from uuid import UUID

from worker import log
from worker.config import Address, Config
from worker.runtime.link import Fields, Link
from worker.runtime.vitals import Stage

logger = log.get_logger(__name__)

# An order comes as soon as the process is there.
_PATIENCE = 30.0


class Parent:
    """
    Listens to this process's vitals as a service manager would, and answers for it.

    When the supervisor is gone, however it ended, this process is asked to stop, as by SIGTERM: it drains.
    """

    def __init__(self, end: socket.socket) -> None:
        self.number = 0
        """Which of its processes this is, from 1."""
        self._orders: SimpleQueue[Fields] = SimpleQueue()
        self._answers: dict[str, Callable[..., Any]] = {}
        self._is_ending = False
        self._link = Link(end, "supervisor-link", self._hear, self._gone)
        self._link.start()

    def close(self) -> None:
        """Nothing is heard or said any more; that the supervisor goes is no matter now. Twice is harmless."""
        self._link.close()

    def order(self) -> Config:
        """
        What this process is to be.

        Raises:
            ConnectionError: Nobody said so.
        """
        try:
            order = self._orders.get(timeout=_PATIENCE)
        except Empty:
            raise ConnectionError("the supervisor has given no order") from None
        self.number = order["number"]
        return config_from(order["config"])

    def answer(self, **answers: Callable[..., Any]) -> None:
        """What this process is asked for from now on: by subject, what makes the answer from the question's fields."""
        self._answers.update(answers)

    def hello(self) -> None:
        """From now on signals are heard."""
        self._link.tell("hello")

    def is_worker(self, worker_id: UUID) -> None:
        """By this name its sessions and its row are found."""
        self._link.tell("worker", id=str(worker_id))

    def counted(self, families: list[Any]) -> None:
        """The last numbers of this process."""
        self._link.tell("counted", families=families)

    # As the vitals' listener

    def entered(self, stage: str, told: str) -> None:
        self._is_ending |= stage in (Stage.DRAINING, Stage.CUTTING, Stage.CLOSING)
        self._link.tell("stage", stage=stage, told=told)

    def beaten(self, *, well: bool) -> None:
        self._link.tell("beat", well=well)

    def reloading(self) -> None:
        """Never: the supervisor replaces its processes."""

    def _hear(self, subject: str, told: Fields) -> Any:
        if subject == "order":
            self._orders.put(told)
            return None
        answer = self._answers.get(subject)
        if answer is None:
            raise LookupError(f"{subject}: there is nothing to say yet")
        return answer(**told)

    def _gone(self) -> None:
        logger.warning("supervisor.gone")
        if not self._is_ending:  # a second request would cost the jobs their grace
            os.kill(os.getpid(), signal.SIGTERM)


def config_told(config: Config) -> dict[str, Any]:
    """*config* for a link."""
    return asdict(config)


def config_from(told: dict[str, Any]) -> Config:
    """The other way. What this version does not know is left out: the supervisor may be newer, or older."""
    known = {field.name for field in fields(Config)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told.items() if name in known
    }
    if values.get("http") is not None:
        values["http"] = Address(*values["http"])
    return Config(**values)
