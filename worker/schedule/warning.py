"""What to warn of when a schedule is registered."""

from __future__ import annotations

from datetime import datetime

from worker.schedule.trigger import Cron, Trigger

_HOURS = 24


def gap_warning(trigger: Trigger, now: datetime) -> str | None:
    """Which day's clock change is the next to skip a time of *trigger*; None when none does within ten years."""
    # What runs in every hour misses nothing in the one that is skipped.
    if not isinstance(trigger, Cron) or len(trigger.crontab.calendar.hours) == _HOURS:
        return None
    skipped = trigger.next_gap(now)
    if skipped is None:
        return None
    wall, tick = skipped
    instead = "does not run then" if tick is None else f"runs at {tick.astimezone(trigger.zone):%H:%M} instead"
    return f"on {wall:%Y-%m-%d} the clock skips {wall:%H:%M}: it {instead}"
