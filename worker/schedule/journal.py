"""What a pass decided, as log events; written after its transaction committed."""

from __future__ import annotations

from itertools import groupby

from worker.log import get_logger
from worker.schedule.backlog import Entry
from worker.schedule.declaration import Schedule

log = get_logger(__name__)


def log_entries(schedule: Schedule, entries: tuple[Entry, ...]) -> None:
    """
    One event for each tick that fired, one for each run of neighbours that were coalesced or skipped for one reason.

    The events are `schedule.fired`, `schedule.late`, `schedule.coalesced` and `schedule.skipped`.
    """
    for (outcome, reason), run in groupby(entries, key=lambda entry: (entry.outcome, entry.reason)):
        alike = list(run)
        if outcome == "coalesced":
            into = alike[-1].coalesced_into
            log.info("schedule.coalesced", schedule=schedule.name, **_extent(alike), into=str(into))
        elif outcome == "skipped":
            log.info("schedule.skipped", schedule=schedule.name, **_extent(alike), reason=reason)
        else:
            for entry in alike:
                _log_sent(schedule, entry)


def _log_sent(schedule: Schedule, entry: Entry) -> None:
    fields = {"schedule": schedule.name, "tick": str(entry.tick), "job_id": str(entry.job_id)}
    if entry.outcome == "late":
        log.warning("schedule.late", **fields, lateness=round(entry.lateness, 3))
    else:
        log.info("schedule.fired", **fields, lateness=round(entry.lateness, 3))


def _extent(entries: list[Entry]) -> dict[str, object]:
    extent: dict[str, object] = {"tick": str(entries[0].tick), "ticks": len(entries)}
    if len(entries) > 1:
        extent["to"] = str(entries[-1].tick)
    if entries[-1].until:
        # Too many to count: the last row stands for all before this instant.
        extent["until"] = str(entries[-1].until)
    return extent
