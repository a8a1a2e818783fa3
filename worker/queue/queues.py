"""Queues in people's hands: looked at, paused and resumed, limited, on a connection of theirs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, LiteralString

import psycopg
from psycopg.rows import class_row

from worker.errors import ArgumentError, NotFound
from worker.queue.queue_limit import QueueLimit
from worker.queue.queue_statements import (
    FIND_OBSTACLES,
    LIMIT_QUEUE,
    LIST_KNOWN,
    LIST_PAUSED_ACTORS,
    LIST_QUEUES,
    PAUSE,
    RESUME,
    UNLIMIT_QUEUE,
)
from worker.queue.schema import Schema

Kind = Literal["queue", "actor"]


@dataclass(frozen=True, kw_only=True)
class FoundQueue:
    """
    A queue as it was when it was looked for; its jobs by number.

    Args:
        waiting: Due, and not running.
        oldest: Seconds since the first of those was due; None when none waits.
        paused_at: Since when nothing of it is started; None when it is not paused.
        workers: Live ones that serve it.
        unknown: How many of the waiting ones are of an actor that no live worker knows, by its name.
        max_running: How many may run at once, on all workers; None when any number may.
        max_starts: How many may start within any *starts_per* seconds; None when any number may.
        starts: How many have, if that is limited.
    """

    name: str
    waiting: int
    running: int
    scheduled: int
    dead: int
    oldest: float | None
    paused_at: datetime | None
    workers: int
    unknown: dict[str, int]
    max_running: int | None
    max_starts: int | None
    starts_per: float | None
    starts: int | None

    @property
    def limit(self) -> QueueLimit | None:
        """Its limit, if people have set one."""
        return _limit(self.max_running, self.max_starts, self.starts_per)


class Queues:
    """
    The queues of a database.

    Everything happens in *conn*'s transaction: a pause or a limit holds when it commits, within 2 s on every worker.
    """

    def __init__(self, conn: psycopg.Connection[Any], schema: Schema | None = None) -> None:
        self._conn = conn
        self._schema = schema or Schema()

    def list(self) -> list[FoundQueue]:
        """Every queue that holds jobs, is paused or limited, or is served by a live worker, by name."""
        with self._conn.cursor(row_factory=class_row(FoundQueue)) as cur:
            return cur.execute(self._schema.render(LIST_QUEUES).encode()).fetchall()

    def paused_actors(self) -> dict[str, datetime]:
        """The actors that are paused in every queue, and since when."""
        return dict(self._conn.execute(self._schema.render(LIST_PAUSED_ACTORS).encode()).fetchall())

    def pause(self, name: str | None = None, *, actor: str | None = None, force: bool = False) -> bool:
        """
        Start no more jobs of a queue, or of an actor in every queue. Running ones finish, and sends still work.

        Args:
            name: Of a queue; or else *actor*.
            force: Also a name that neither a job nor a live worker uses yet.

        Returns:
            False when it was paused already.

        Raises:
            NotFound: Nobody uses that name; says which is like it.
        """
        kind, chosen = _chosen(name, actor)
        if not force:
            self._check_known(kind, chosen, "paused")
        return self._say(PAUSE, kind, chosen)

    def resume(self, name: str | None = None, *, actor: str | None = None) -> bool:
        """
        Start its jobs again.

        Returns:
            False when it was not paused.
        """
        return self._say(RESUME, *_chosen(name, actor))

    def limit(
        self,
        name: str,
        *,
        running: int | None = None,
        starts: int | None = None,
        per: float | timedelta | None = None,
        force: bool = False,
    ) -> QueueLimit | None:
        """
        Let at most so many jobs of a queue run at once, and start within some seconds, on all workers together.

        This is the whole limit: what is not named is not limited, whatever was before. What runs already goes on, and
        is counted; starts are counted from now on.

        Args:
            running: How many run at once. A claim takes a place, the settled job gives it up.
            starts: How many start within any *per* seconds, or timedelta.
            force: Also a name that neither a job nor a live worker uses yet.

        Returns:
            The limit that it had before; None when it had none.

        Raises:
            ConfigError: A value cannot work; says which.
            NotFound: Nobody uses that name; says which is like it.
        """
        limit = QueueLimit.of(name, running, starts, per)
        if not force:
            self._check_known("queue", name, "limited")
        return self._say_limit(
            LIMIT_QUEUE, {"queue": name, "running": limit.running, "starts": limit.starts, "per": limit.per}
        )

    def unlimit(self, name: str) -> QueueLimit | None:
        """
        Lift the limit of a queue.

        Returns:
            The one that it had; None when it had none.
        """
        return self._say_limit(UNLIMIT_QUEUE, {"queue": name})

    def obstacle(self, queue: str, actor: str) -> str | None:
        """Why a job of *queue* and *actor* cannot start, in one sentence; None when it only waits for its turn."""
        parameters = {"queue": queue, "actor": actor}
        row = self._conn.execute(self._schema.render(FIND_OBSTACLES).encode(), parameters).fetchone()
        queue_paused_at, actor_paused_at, anybody, served, known, *told, is_full, opens_at = row or (None,) * 10
        limit = _limit(*told)
        reasons = {
            f"queue {queue!r} is paused since {_instant(queue_paused_at)}": queue_paused_at is not None,
            f"actor {actor!r} is paused since {_instant(actor_paused_at)}": actor_paused_at is not None,
            "no worker lives": not anybody,
            f"no live worker knows actor {actor!r}": not known,
            f"no live worker serves queue {queue!r}": not served,
            f"queue {queue!r} is limited to {limit}: as many run already": is_full,
            f"queue {queue!r} is limited to {limit}: the next may start at {_instant(opens_at)}": opens_at is not None,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _check_known(self, kind: Kind, name: str, done: str) -> None:
        row = self._conn.execute(self._schema.render(LIST_KNOWN).encode()).fetchone()
        queues, actors, some_are_silent = row or ([], [], False)
        known: list[str] = queues if kind == "queue" else actors
        if name in known or some_are_silent:
            return
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f"; it can be {done} all the same by force"
        raise NotFound(f"{kind} {name!r}: no job and no live worker uses that name{hint}")

    def _say(self, statement: LiteralString, kind: Kind, name: str) -> bool:
        parameters = {"kind": kind, "name": name, "later": self._schema.channels["later"]}
        return self._conn.execute(self._schema.render(statement).encode(), parameters).fetchone() is not None

    def _say_limit(self, statement: LiteralString, parameters: dict[str, Any]) -> QueueLimit | None:
        parameters |= {"later": self._schema.channels["later"]}
        row = self._conn.execute(self._schema.render(statement).encode(), parameters).fetchone()
        return None if row is None else _limit(*row)


def _chosen(queue: str | None, actor: str | None) -> tuple[Kind, str]:
    if queue is not None and actor is None:
        return "queue", queue
    if actor is not None and queue is None:
        return "actor", actor
    raise ArgumentError(f"queue {queue!r}, actor {actor!r}: expected exactly one name")


def _limit(running: int | None, starts: int | None, per: float | None) -> QueueLimit | None:
    return None if running is None and starts is None else QueueLimit(running=running, starts=starts, per=per)


def _instant(value: datetime | None) -> str:
    return "" if value is None else value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
