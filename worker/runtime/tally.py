"""The tally: what this process has done since it started, as counters and histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from worker.observe.metrics import Counter, Family, Histogram
from worker.queue.claim import Claim
from worker.queue.settlement import Outcome
from worker.schedule import Schedule
from worker.schedule.backlog import Entry
from worker.schedule.journal import log_entries


class Tally:
    """
    Counts jobs and ticks; safe from any thread.

    Args:
        begin: Called for each run that starts.
    """

    def __init__(self, begin: Callable[[], object] = lambda: None) -> None:
        self._begin = begin
        job = ("queue", "actor")
        self._jobs = Counter("worker_jobs_total", "Runs of jobs by how they ended.", *job, "outcome")
        self._durations = Histogram(
            "worker_job_duration_seconds", "From the first hook of a run to its settlement.", *job
        )
        self._waits = Histogram("worker_job_wait_seconds", "From the instant a job was due to its claim.", *job)
        self._replaced = Counter(
            "worker_slots_replaced_total", "Slots given to others because their job was stuck.", *job
        )
        self._ticks = Counter(
            "worker_schedule_fires_total", "Ticks that this process decided, by what became of them.",
            "schedule", "outcome",
        )  # fmt: skip
        self._lags = Histogram(
            "worker_schedule_lag_seconds", "From a tick to the transaction that fired it.", "schedule"
        )

    def started(self, claim: Claim) -> None:
        self._begin()
        self._waits.observe(max(0.0, claim.waited), claim.queue, claim.actor)

    def ended(self, claim: Claim, outcome: Outcome, duration: float) -> None:
        self._jobs.add(claim.queue, claim.actor, outcome.value)
        self._durations.observe(duration, claim.queue, claim.actor)

    def replaced(self, claim: Claim) -> None:
        self._replaced.add(claim.queue, claim.actor)

    def decided(self, schedule: Schedule, entries: tuple[Entry, ...]) -> None:
        """Log and count ticks that are in the ledger by now."""
        log_entries(schedule, entries)
        for entry in entries:
            self._ticks.add(schedule.name, entry.outcome)
            if entry.outcome in ("fired", "late"):
                self._lags.observe(entry.lateness, schedule.name)

    def families(self) -> Iterator[Family]:
        for kept in (self._jobs, self._durations, self._waits, self._replaced, self._ticks, self._lags):
            yield kept.family()
