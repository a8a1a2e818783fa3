"""Schedules: what ticks when, which tick fires, and a ledger row for every one that did not."""

from worker.schedule.declaration import Schedule, at, cron, every, registered
from worker.schedule.scheduler import Scheduler
from worker.schedule.schedules import Schedules

__all__ = ["Schedule", "Scheduler", "Schedules", "at", "cron", "every", "registered"]
