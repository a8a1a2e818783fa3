"""The scene: what all who make noise share, and what each of them checks whenever it has a connection."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import tuple_row
from psycopg_pool import PoolTimeout

from tests.chaos.leaks import Leaks
from worker.errors import PoolDeadlock
from worker.pool import Pool

SHOWN = 5
SOILED_ZONE = "Europe/Berlin"
"""A setting that nobody may find."""


class Shared(Exception):
    """A connection is not its holder's alone, or not as a connection should come out of the pool."""


class Scene:
    """A pool, the end of the noise, and the counts of what happened."""

    def __init__(self, pool: Pool, seed: int, leaks: Leaks) -> None:
        self.pool = pool
        self.seed = seed
        self.leaks = leaks
        self.over = threading.Event()
        self.calm = threading.Event()
        """Set while nobody should do anything, so that connections get old while idle."""
        self.counts: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.busy_since: dict[str, float] = {}
        self._users: WeakKeyDictionary[PGconn, str] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def rng(self, name: str) -> random.Random:
        """The same choices for the same seed and name, whatever the others do."""
        return random.Random(f"{self.seed} {name}")  # noqa: S311  # noise, not secrets

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def surprise(self, who: str, error: BaseException) -> None:
        """*error* is none of those that the noise itself causes."""
        self.count(f"surprise {type(error).__name__}")
        if len(self.surprises) < SHOWN:
            self.surprises.append(f"{who}: {''.join(traceback.format_exception(error))}")

    @contextmanager
    def attempt(self, who: str, what: str) -> Iterator[None]:
        """Count how *what* ends; an error that a killed, cancelled or full database explains ends here."""
        self.busy_since[who] = time.monotonic()
        try:
            yield
        except PoolTimeout:
            self.count(f"{what}: timeout")
        except PoolDeadlock:
            self.count(f"{what}: deadlock refused")
        except psycopg.OperationalError:
            self.count(f"{what}: lost or cancelled")
        except Exception as exc:
            self.surprise(who, exc)
        else:
            self.count(what)
        finally:
            self.busy_since.pop(who, None)

    def stuck(self, patience: float) -> list[str]:
        """Who has been at one thing for longer than anything here may take."""
        now = time.monotonic()
        return [who for who, since in self.busy_since.copy().items() if now - since > patience]

    @contextmanager
    def alone(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], who: str) -> Iterator[None]:
        """Check that *conn* is fresh, and nobody else's while the block lasts."""
        self.taken(conn, who)
        try:
            yield
        finally:
            self.let_go(conn)

    def taken(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], who: str) -> None:
        """*who* has *conn*, for good unless it lets go."""
        with self._lock:
            other = self._users.setdefault(conn.pgconn, who)
        if other is not who:
            raise Shared(f"{who} was given a connection that {other} has")
        status = conn.pgconn.transaction_status
        if status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.UNKNOWN):
            raise Shared(f"{who} was given a connection in the state {TransactionStatus(status).name}")
        if conn.autocommit or conn.row_factory is not tuple_row:
            raise Shared(f"{who} was given a connection with the attributes of another holder")
        if conn.info.parameter_status("TimeZone") == SOILED_ZONE:
            raise Shared(f"{who} was given a session with the settings of another holder")

    def let_go(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        with self._lock:
            self._users.pop(conn.pgconn, None)


def check_answer(row: tuple[Any, ...] | None, token: str) -> None:
    if row != (token,):
        raise Shared(f"asked for {token!r}, and got somebody else's answer: {row!r}")
