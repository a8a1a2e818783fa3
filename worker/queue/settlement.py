"""Settling: writing what became of jobs, fenced by their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from worker.queue.insertion import commits_by_itself, insert
from worker.queue.new_job import NewJob, columns
from worker.queue.schema import Schema
from worker.queue.statements import FINISH_JOBS, SETTLE_JOBS

# The beginning of a traceback says where, its end what went wrong; a row that is rewritten at each attempt should not
# carry all of it.
_ERROR_LENGTH = 4000
# Why a job is dead that somebody has cancelled.
CANCELLED = "cancelled"


class Outcome(StrEnum):
    """What became of one run of a job."""

    DONE = "done"
    RETRY = "retry"
    DEAD = "dead"
    RELEASED = "released"


class Settlement(NamedTuple):
    """
    The outcome of one delivery, and the jobs that follow from it.

    Args:
        delay: Seconds until a retried or released job is due again.
        options: The message's options when they changed, encoded; so is *message* for a plain actor.
    """

    id: UUID
    token: int
    outcome: Outcome
    delay: float = 0.0
    error: str | None = None
    options: str | None = None
    message: bytes | None = None
    following: tuple[NewJob, ...] = ()

    @property
    def proof(self) -> tuple[UUID, int]:
        """What it is fenced by."""
        return self.id, self.token

    @property
    def is_bare(self) -> bool:
        """Whether it says that the job is done and nothing else."""
        return self[2:] == _BARE

    @property
    def is_one_statement(self) -> bool:
        """Whether a single statement writes it, with any number of others, so that a pipeline can take it."""
        return not self.following or all(new.is_plain for new in self.following)

    @property
    def makes_available(self) -> bool:
        """Whether a job can be claimed at once because of it."""
        if self.outcome is Outcome.DONE and not self.following:
            return False
        returned = self.outcome in (Outcome.RETRY, Outcome.RELEASED) and self.delay <= 0
        return returned or any(new.delay <= 0 for new in self.following)


_BARE = (Outcome.DONE, 0.0, None, None, None, ())


def settle(conn: psycopg.Connection[Any], schema: Schema, settlements: Sequence[Settlement]) -> set[UUID]:
    """
    Write *settlements* together, within the transaction of *conn* if it is in one.

    Returns:
        The ids whose token still held; of all others nothing was written: their lease is lost.
    """
    ids = {settlement.id for settlement in settlements}
    if all(settlement.is_one_statement for settlement in settlements):
        return ids - read_lost(send_settlements(conn, schema, settlements))
    with conn.transaction() if commits_by_itself(conn) else nullcontext():
        owned = ids - read_lost(send_settlements(conn, schema, settlements))
        following = [new for settlement in settlements if settlement.id in owned for new in settlement.following]
        insert(conn, schema, [new for new in following if not new.is_plain])
        return owned


def send_settlements(
    conn: psycopg.Connection[Any], schema: Schema, settlements: Sequence[Settlement]
) -> psycopg.Cursor[Any]:
    """
    The same in one statement, for a pipeline: `read_lost` when that is synced.

    What follows from a settlement and is not plain is left to `settle`, which asks whether the token held.
    """
    # In the order of their ids, as every batch is, so that two of them cannot wait for each other.
    settlements = sorted(settlements, key=_order)
    if all(settlement.is_bare for settlement in settlements):
        # As text: a list of UUIDs costs psycopg more than the database.
        ids = "{" + ",".join([settlement.id.hex for settlement in settlements]) + "}"
        tokens = "{" + ",".join([str(settlement.token) for settlement in settlements]) + "}"
        return conn.execute(schema.render(FINISH_JOBS).encode(), {"ids": ids, "tokens": tokens})
    parents = [(settlement.id, new) for settlement in settlements for new in settlement.following if new.is_plain]
    return conn.execute(
        schema.render(SETTLE_JOBS).encode(),
        {
            **schema.channels,
            "ids": [s.id for s in settlements],
            "tokens": [s.token for s in settlements],
            "outcomes": [s.outcome.value for s in settlements],
            "delays": [s.delay for s in settlements],
            "errors": [s.error for s in settlements],
            "options": [s.options for s in settlements],
            "messages": [s.message for s in settlements],
            "new_parents": [parent for parent, _ in parents],
            **columns([new for _, new in parents], prefix="new_"),
        },
    )


def read_lost(sent: psycopg.Cursor[Any]) -> set[UUID]:
    """The ids, mostly none, of sent settlements whose token did not hold any more."""
    return {row[0] for row in sent}


def _order(settlement: Settlement) -> tuple[int, int]:
    return settlement.id.int, settlement.token  # numbers compare faster than UUIDs


def storable(error: str, length: int = _ERROR_LENGTH) -> str:
    """*error* as Postgres can store it: without its middle beyond *length*, without NULs or lone surrogates."""
    if len(error) > length:
        left_out = f"\n[... {len(error) - length:,} characters ...]\n"
        half = length // 2
        error = error[:half] + left_out + error[len(left_out) + half - length :]
    return error.replace("\0", "\ufffd").encode(errors="replace").decode()
