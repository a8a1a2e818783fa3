"""Which ticks of a schedule are due, and what its policies make of each: no database in here, only time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from worker.schedule.declaration import Schedule
from worker.schedule.trigger import Trigger

Outcome = Literal["fired", "late", "coalesced", "skipped"]
Reason = Literal["grace", "missed", "overlap", "paused", "changed", "removed"]

# Later than this is "missed"; above the scheduler's heartbeat, so that a tick which only that found is not.
PROMPT = 15.0
# Ticks that may fire in one transaction, which shares its connection with heartbeats and claims: about a tenth of a
# second. The next pass goes on from there, so this does not bound what is made up for.
MAX_TICKS = 200
# Neighbours that do not fire, for one reason: beyond so many one row covers them all.
MAX_LISTED = 1000

_TINY = timedelta(microseconds=1)


@dataclass(frozen=True)
class Entry:
    """
    One row of the ledger: what became of a tick.

    Attributes:
        lateness: Seconds from the tick to its decision, by the database's clock.
        reason: Why it was skipped: past its grace, missed, overlapping, paused, or its schedule changed or removed.
        coalesced_into: The later tick that makes up for this one.
        until: When set, this entry stands for all ticks from its own to before this instant: too many to list.
        job_id: The job that was sent.
        manual: Somebody asked for this run; its tick is when.
    """

    tick: datetime
    outcome: Outcome
    lateness: float
    reason: Reason | None = None
    coalesced_into: datetime | None = None
    until: datetime | None = None
    job_id: UUID | None = None
    manual: bool = False


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
    if paused:
        return Backlog(dropped(schedule.trigger, last_tick, now, now, "paused"))
    # Before the one no tick can fire, since the other none is missed.
    fires_from = now - timedelta(seconds=max(schedule.grace, PROMPT)) - _TINY
    prompt_from = max(now - timedelta(seconds=PROMPT) - _TINY, last_tick)
    entries = dropped(schedule.trigger, last_tick, fires_from, now, "grace")
    since = max(last_tick, fires_from)
    prompt = list(_ticks(schedule.trigger, prompt_from, now, MAX_TICKS + 1))
    if schedule.missed == "skip":
        entries += dropped(schedule.trigger, since, prompt_from, now, "missed")
    elif schedule.missed == "last":
        entries += _coalesced(schedule.trigger, since, prompt_from, now, prompt[0] if prompt else None)
    else:
        prompt = list(_ticks(schedule.trigger, since, now, MAX_TICKS + 1))
    entries += tuple(_fires(tick, now) for tick in prompt[:MAX_TICKS])
    return Backlog(entries, more=len(prompt) > MAX_TICKS)


def dropped(trigger: Trigger, after: datetime, to: datetime, now: datetime, reason: Reason) -> tuple[Entry, ...]:
    """The ticks after *after* up to *to*, skipped: one entry each, or one for all when they are beyond MAX_LISTED."""
    ticks = list(_ticks(trigger, after, to, MAX_LISTED + 1))
    if len(ticks) > MAX_LISTED:
        return (Entry(ticks[0], "skipped", _lateness(ticks[0], now), reason, until=to + _TINY),)
    return tuple(Entry(tick, "skipped", _lateness(tick, now), reason) for tick in ticks)


def _coalesced(
    trigger: Trigger, after: datetime, to: datetime, now: datetime, heir: datetime | None
) -> tuple[Entry, ...]:
    """The missed ticks: one run makes up for all, that of *heir*, the first in time, else of the last of them."""
    ticks = list(_ticks(trigger, after, to, MAX_LISTED + 1))
    if not ticks:
        return ()
    fires: tuple[Entry, ...] = ()
    if heir is None:
        heir = ticks.pop() if len(ticks) <= MAX_LISTED else _last(trigger, to)
        fires = (_fires(heir, now),)
        to = heir - _TINY
    if len(ticks) > MAX_LISTED:
        first = ticks[0]
        return Entry(first, "coalesced", _lateness(first, now), None, heir, until=to + _TINY), *fires
    return *(Entry(tick, "coalesced", _lateness(tick, now), None, heir) for tick in ticks), *fires


def _last(trigger: Trigger, to: datetime) -> datetime:
    """The last tick up to *to*; there is one."""
    back = timedelta(seconds=1)
    while (tick := trigger.after(to - back)) > to:
        back *= 2
    while (following := trigger.after(tick)) <= to:
        tick = following
    return tick


def _ticks(trigger: Trigger, after: datetime, to: datetime, limit: int) -> Iterator[datetime]:
    """At most *limit* ticks after *after* up to *to*."""
    tick = after
    for _ in range(limit):
        tick = trigger.after(tick)
        if tick > to:
            return
        yield tick


def _fires(tick: datetime, now: datetime) -> Entry:
    lateness = _lateness(tick, now)
    return Entry(tick, "fired" if lateness <= PROMPT else "late", lateness)


def _lateness(tick: datetime, now: datetime) -> float:
    return (now - tick).total_seconds()
