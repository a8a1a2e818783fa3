"""Putting a schedule's job into the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from worker.queue.binding import bind
from worker.queue.identity import job_id
from worker.schedule.declaration import Schedule


def send(conn: Connection[Any], schedule: Schedule, tick: datetime, delay: float) -> UUID:
    """
    Send the job of *tick* in *conn*'s transaction, due in *delay* seconds; it finds schedule and tick in its Context.

    Returns:
        The job's id.

    Raises:
        ArgumentError: The arguments that the schedule computes do not fit the job.
    """
    args, kwargs = schedule.args_of(tick)
    with bind(conn):
        message = schedule.actor.send_with_options(
            args=args,
            kwargs=kwargs,
            delay=round(delay * 1000) or None,
            schedule=schedule.name,
            scheduled_for=tick.isoformat(),
        )
    return job_id(message.message_id)
