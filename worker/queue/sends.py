"""Sends: jobs of many senders, enqueued together, none of them failing for another."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import Future
from typing import Any
from uuid import UUID

import psycopg

from worker.errors import LeaseLost
from worker.queue.insertion import insert
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema

Proof = tuple[UUID, int]
Send = tuple[Sequence[NewJob], "Future[None]", "Proof | None"]

SENT_IN_VAIN = "the job is another worker's by now: nothing was sent"


class Sends:
    """The jobs that are still to be enqueued. `add` is for any thread, everything else for the dispatcher's."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._pending: deque[Send] = deque()

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, jobs: Sequence[NewJob], sender: Proof | None = None) -> Future[None]:
        """Take *jobs* of one sender, plain ones; durable when the future is done. *sender* is the run, if it is one."""
        sent: Future[None] = Future()
        self._pending.append((jobs, sent, sender))
        return sent

    def take(self, lost: Container[Proof] = ()) -> list[Send]:
        """Everything whose sender has not given up, nor is *lost*, to be confirmed, failed or written apart."""
        taken = []
        for send in accepted(self._pending):
            if send[2] is not None and send[2] in lost:
                send[1].set_exception(LeaseLost(SENT_IN_VAIN))
            else:
                taken.append(send)
        return taken

    def confirm(self, batch: list[Send]) -> None:
        """Tell the senders of *batch* that it is durable."""
        for _, sent, _ in batch:
            sent.set_result(None)

    def fail(self, batch: list[Send], exc: psycopg.Error) -> None:
        """A lost confirmation may hide a commit: the senders must hear that it is not known."""
        for _, sent, _ in batch:
            sent.set_exception(exc)

    def write_apart(self, conn: psycopg.Connection[Any], batch: list[Send]) -> None:
        """
        Write sender by sender, so that nobody fails for his neighbour's job.

        Raises:
            psycopg.Error: The connection broke; every sender has heard it.
        """
        for position, (jobs, sent, _) in enumerate(batch):
            try:
                insert(conn, self._schema, jobs)
            except psycopg.Error as exc:
                sent.set_exception(exc)
                if conn.broken:
                    self.fail(batch[position + 1 :], exc)
                    raise
            else:
                sent.set_result(None)

    def abandon(self) -> None:
        """Nobody writes any more."""
        for _, sent, _ in self._pending:
            sent.cancel()


def accepted(pending: deque[Any]) -> list[Any]:
    """Take everything from *pending* whose future nobody has given up."""
    taken = []
    while pending:
        item = pending.popleft()
        if item[1].set_running_or_notify_cancel():
            taken.append(item)
    return taken
