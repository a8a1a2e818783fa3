"""Which ticks of a schedule are due, and what its policies make of each: no database in here, only time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from worker.schedule.declaration import Schedule
from worker.schedule.trigger import Trigger

Outcome = Literal["fired", "late", "coalesced", "skipped"]
Reason = Literal["grace", "missed", "overlap", "paused"]

# Later than this is "missed"; above the scheduler's heartbeat, so that a tick which only that found is not.
PROMPT = 15.0
# Ticks decided in one transaction, which shares its connection with heartbeats and claims: about a tenth of a second.
# The next pass goes on from there, so this does not bound what is made up for.
MAX_TICKS = 200

_TINY = timedelta(microseconds=1)


@dataclass(frozen=True)
class Entry:
    """
    One row of the ledger: what became of a tick.

    Attributes:
        lateness: Seconds from the tick to its decision, by the database's clock.
        reason: Why it was skipped: past its grace, missed, overlapping, or paused.
        coalesced_into: The later tick that makes up for this one.
        until: When set, this entry stands for all ticks from its own to before this instant: too many to list.
        job_id: The job that was sent.
    """

    tick: datetime
    outcome: Outcome
    lateness: float
    reason: Reason | None = None
    coalesced_into: datetime | None = None
    until: datetime | None = None
    job_id: UUID | None = None


@dataclass(frozen=True)
class Backlog:
    """The due ticks, oldest first, and whether there are more than were looked at."""

    entries: tuple[Entry, ...]
    more: bool = False


def backlog(schedule: Schedule, *, last_tick: datetime, now: datetime, paused: bool) -> Backlog:
    """
    Sort out the ticks after *last_tick* up to *now*.

    Entries say `fired` or `late` for ticks to fire; whether an overlap forbids it, and the job's id, come later.
    """
    grace = max(schedule.grace, PROMPT)
    # Before this no tick can fire. Those are listed apart, so that a long downtime cannot delay the others.
    fires_from = now + _TINY if paused else now - timedelta(seconds=grace)
    dropped = _dropped(schedule.trigger, last_tick, fires_from, now, "paused" if paused else "grace")
    due = _ticks(schedule.trigger, max(last_tick, fires_from - _TINY), now + _TINY)
    # One run makes up for all that were missed: that of the first tick that is in time, else of the last missed one.
    heir = next((tick for tick in due if _lateness(tick, now) <= PROMPT), due[-1] if due else now)
    entries = [_entry(schedule, tick, now, heir) for tick in due[:MAX_TICKS]]
    return Backlog((*dropped, *entries), more=len(due) > MAX_TICKS)


def _ticks(trigger: Trigger, after: datetime, before: datetime) -> list[datetime]:
    """At most one more than MAX_TICKS, which tells that there are more."""
    ticks: list[datetime] = []
    tick = trigger.after(after)
    while tick < before and len(ticks) <= MAX_TICKS:
        ticks.append(tick)
        tick = trigger.after(tick)
    return ticks


def _dropped(trigger: Trigger, after: datetime, before: datetime, now: datetime, reason: Reason) -> list[Entry]:
    ticks = _ticks(trigger, after, before)
    entries = [Entry(tick, "skipped", _lateness(tick, now), reason) for tick in ticks[:MAX_TICKS]]
    if len(ticks) > MAX_TICKS:
        entries[-1] = replace(entries[-1], until=before)
    return entries


def _entry(schedule: Schedule, tick: datetime, now: datetime, heir: datetime) -> Entry:
    lateness = _lateness(tick, now)
    if lateness <= PROMPT:
        return Entry(tick, "fired", lateness)
    if schedule.missed == "skip":
        return Entry(tick, "skipped", lateness, "missed")
    if schedule.missed == "last" and tick != heir:
        return Entry(tick, "coalesced", lateness, coalesced_into=heir)
    return Entry(tick, "late", lateness)


def _lateness(tick: datetime, now: datetime) -> float:
    return (now - tick).total_seconds()
