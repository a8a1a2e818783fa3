"""The sender: bursts of jobs all the while, straight to the server, wherever it is at the moment."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from tests.chaos.faults.jobs import KINDS
from tests.chaos.sampler import NAME
from worker import bind

_INTERVAL = 0.2
_PATIENCE = 60.0


class Sending(threading.Thread):
    """
    Sends until it is told to stop. A burst that failed is not repeated; the next one has new numbers.

    Args:
        url: Says where the server is.
        size: Jobs of a burst.
    """

    def __init__(self, url: Callable[[], str], size: int) -> None:
        super().__init__(name="sending")
        self._url = url
        self._size = size
        self._chance = random.Random(size)  # noqa: S311  # chaos, repeatable
        self._over = threading.Event()
        self._next = 1
        self.confirmed: list[int] = []
        """What the server has confirmed: of this nothing may be lost."""
        self.num_failed = 0

    def run(self) -> None:
        # Not in a loop without a pause: the server may refuse at once, for minutes.
        while not self._over.wait(0.05):
            with (
                suppress(psycopg.Error),
                psycopg.connect(self._url(), application_name=NAME, connect_timeout=5) as conn,
            ):
                while not self._over.wait(_INTERVAL):
                    self._burst(conn)

    def _burst(self, conn: psycopg.Connection) -> None:
        numbers = range(self._next, self._next + self._size)
        self._next += self._size
        self.num_failed += 1
        with conn.transaction(), bind(conn):
            for number in numbers:
                kind = self._chance.choice(list(KINDS))
                conn.execute("INSERT INTO sent VALUES (%s, %s)", [number, kind])
                KINDS[kind].send(number)
        self.num_failed -= 1
        self.confirmed += numbers

    def stop(self) -> None:
        self._over.set()
        self.join(_PATIENCE)
        assert not self.is_alive(), "the sender does not end"
