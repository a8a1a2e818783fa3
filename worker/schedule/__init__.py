"""Schedules: what ticks when, which tick fires, and a ledger row for every one that did not."""

from worker.schedule.declaration import Schedule, cron, every, registered
from worker.schedule.scheduler import Scheduler

__all__ = ["Schedule", "Scheduler", "cron", "every", "registered"]
