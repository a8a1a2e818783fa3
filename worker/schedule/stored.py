"""A schedule that people keep in the database, as a worker that knows its actor runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from dramatiq import Actor

from worker import log
from worker.errors import ConfigError
from worker.schedule.declaration import Missed, Overlap, Schedule
from worker.schedule.rows import Row

logger = log.get_logger(__name__)

PLACE = "the database"


def stored(row: Row, actors: Callable[[str], Actor[Any, Any] | None]) -> Schedule | None:
    """The schedule of *row*; None when no actor here has that name, or a newer worker wrote what we cannot read."""
    actor = actors(row.actor)
    if actor is None:
        logger.info("schedule.unknown_job", schedule=row.name, job=row.actor)
        return None
    try:
        trigger = row.trigger
    except ConfigError as exc:
        logger.warning("schedule.unreadable", schedule=row.name, reason=str(exc))
        return None
    missed, overlap = cast("Missed", row.missed), cast("Overlap", row.overlap)
    return Schedule(
        row.name,
        row.spec,
        row.tz,
        missed,
        overlap,
        row.grace,
        trigger,
        actor,
        PLACE,
        row.jitter,
        row.args,
        row.module,
        "database" if row.source == "database" else "code",
    )
