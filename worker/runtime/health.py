"""Health: whether this worker lives, whether it is ready, and its numbers; as pages."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from importlib.metadata import version
from typing import Any, NamedTuple

import psycopg

from worker import clock, log
from worker.observe.http import Page
from worker.observe.metrics import CONTENT_TYPE, Family, Sample, only_growing, render
from worker.pool import Pool
from worker.queue.dispatcher import Dispatcher
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.statements import COUNT_QUEUES, COUNT_TIMEOUT
from worker.runtime.supervision import SLOW_PASS
from worker.runtime.tally import Tally
from worker.runtime.vitals import Stage, Vitals
from worker.schedule import registered

logger = log.get_logger(__name__)

# Counting reads the whole hot table, so however many ask, it is done as often as this.
_COUNT_EVERY = 15.0
# A page does not wait longer for the counts, but shows those it had.
_COUNT_PATIENCE = 1.0


class Health:
    """What the probes and Prometheus are answered. Nothing here asks the database but the counts of the metrics."""

    def __init__(self, vitals: Vitals, pool: Pool, dispatcher: Dispatcher, feed: SlotFeed, tally: Tally) -> None:
        self._vitals = vitals
        self._pool = pool
        self._dispatcher = dispatcher
        self._feed = feed
        self._tally = tally
        self._counts = _Counts(dispatcher)

    def pages(self) -> dict[str, Any]:
        return {"/livez": self.live, "/readyz": self.ready, "/metrics": self.metrics}

    def live(self) -> Page:
        """Whether every internal thread lives and the main thread makes its rounds; the database does not matter."""
        return self._answer(self._vitals.troubles())

    def ready(self) -> Page:
        """Whether jobs would run: all is well, the database answers, the schema fits, and claims are made."""
        return self._answer(self._reasons())

    def told(self) -> dict[str, Any]:
        """Both, for the supervisor of this process."""
        return {
            "troubles": self._vitals.troubles(),
            "reasons": self._reasons(),
            "running": self._feed.num_running,
            "stuck": self._feed.num_aside,
        }

    def families(self) -> list[Family]:
        """The numbers, for the same."""
        return list(self._families())

    def growing(self) -> list[Family]:
        """Those that only grow, without a look into the database."""
        return only_growing([*self._tally.families(), *self._pool_families()])

    def _reasons(self) -> dict[str, str]:
        reasons = self._vitals.troubles()
        if not self._dispatcher.is_connected:
            reasons["database"] = "there is no connection to it"
        elif self._dispatcher.lease.remaining <= 0:
            reasons["database"] = f"no heartbeat came through for {self._dispatcher.lease.duration:g} s"
        if (busy_for := self._dispatcher.busy_for) > SLOW_PASS:
            reasons["dispatcher"] = f"its pass has taken {busy_for:.1f} s: the database does not answer, or it is stuck"
        if self._dispatcher.failure is not None:
            reasons["dispatcher"] = str(self._dispatcher.failure)
        if self._vitals.stage is not Stage.RUNNING:
            reasons["stage"] = f"{self._vitals.stage.value}: nothing is claimed"
        return reasons

    def metrics(self) -> Page:
        return Page(200, CONTENT_TYPE, render(self._families()))

    def _answer(self, reasons: Mapping[str, str]) -> Page:
        body = {
            "ok": not reasons,
            "reasons": reasons,
            "stage": self._vitals.stage.value,
            "worker": str(self._dispatcher.lease.worker_id),
            "running": self._feed.num_running,
            "stuck": self._feed.num_aside,
        }
        return Page(503 if reasons else 200, "application/json", json.dumps(body) + "\n")

    def _families(self) -> Iterator[Family]:
        lease = self._dispatcher.lease
        worker = {"version": version("carpool"), "worker": str(lease.worker_id)}
        beaten_at = time.time() - (lease.duration - lease.remaining)
        yield _gauge("worker_build_info", "This worker; always 1.", (worker, 1))
        yield _gauge(
            "worker_heartbeat_timestamp_seconds", "When the lease was last renewed.", ({}, beaten_at), together="min"
        )
        yield _gauge("worker_ready", "Whether /readyz says so.", ({}, float(not self._reasons())), together="min")
        yield _gauge("worker_slots", "How many jobs may run at once.", ({}, self._feed.num_slots))
        yield _gauge(
            "worker_jobs_stuck", "Jobs that heed no interrupt, and whose slots others have.", ({}, self._feed.num_aside)
        )
        running = dict.fromkeys(self._feed.queues, 0)
        for claim in self._feed.running():
            running[claim.queue] = running.get(claim.queue, 0) + 1
        yield _gauge(
            "worker_jobs_in_progress", "Jobs that run in this process.",
            *(({"queue": queue}, number) for queue, number in sorted(running.items())),
        )  # fmt: skip
        yield from self._tally.families()
        yield from self._pool_families()
        now = clock.now()
        yield _gauge(
            "worker_schedule_next_fire_timestamp_seconds", "The next tick of each schedule declared here.",
            *(({"schedule": one.name}, one.trigger.after(now).timestamp()) for one in registered()),
            together="max",
        )  # fmt: skip
        yield from self._counts.families()

    def _pool_families(self) -> Iterator[Family]:
        stats = self._pool.stats()
        states = {"idle": stats.idle, "out": stats.out, "reserved": stats.reserved}
        yield _gauge(
            "worker_pool_connections", "Connections of this process by what they do.",
            *(({"state": state}, number) for state, number in states.items()),
        )  # fmt: skip
        yield _gauge("worker_pool_max_connections", "The most that it ever holds.", ({}, stats.max_size))
        yield _gauge("worker_pool_waiting", "Callers who wait for a connection.", ({}, stats.waiting))
        yield _gauge(
            "worker_pool_oldest_checkout_seconds",
            "How long the longest has been out.",
            ({}, stats.oldest_checkout),
            together="max",
        )
        totals = {
            "worker_pool_wait_seconds_total": ("What callers have waited together.", stats.waited_seconds_total),
            "worker_pool_requests_total": ("Connections that were asked for.", stats.requests_total),
            "worker_pool_queued_total": ("Those that were waited for.", stats.queued_total),
            "worker_pool_timeouts_total": ("Those that were waited for in vain.", stats.timeouts_total),
            "worker_pool_connects_total": ("Attempts to connect.", stats.connects_total),
            "worker_pool_connect_errors_total": ("Those that failed.", stats.connect_errors_total),
            "worker_pool_reclaimed_total": ("Connections taken from owners who were gone.", stats.reclaimed_total),
        }
        for name, (text, total) in totals.items():
            yield Family(name, "counter", text, [Sample({}, total)])


class _Count(NamedTuple):
    """A queue in the database: its jobs by number, seconds, and its limits if it has any."""

    queue: str
    available: int
    held: int
    throttled: int
    scheduled: int
    running: int
    oldest: float
    max_running: int | None
    max_starts_per_second: float | None


class _Counts:
    """The queues' counts from the database: read at most once in a while, and by the fleet's oldest worker only."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._rows: list[_Count] = []

    def families(self) -> Iterator[Family]:
        rows = self._current()
        yield _gauge(
            "worker_queue_jobs", "Jobs in the database; told by one worker of the fleet.",
            *(
                ({"queue": row.queue, "state": state}, getattr(row, state))
                for row in rows
                for state in ("available", "held", "throttled", "scheduled", "running")
            ),
        )  # fmt: skip
        yield _gauge(
            "worker_queue_oldest_age_seconds", "How long the oldest job that could run has waited; told by one worker.",
            *(({"queue": row.queue}, row.oldest) for row in rows),
            together="max",
        )  # fmt: skip
        limits = {
            "worker_queue_max_running": ("How many jobs of a limited queue may run at once", "max_running"),
            "worker_queue_max_starts_per_second": ("How many of them may start", "max_starts_per_second"),
        }
        for name, (text, of) in limits.items():
            told = [({"queue": row.queue}, limit) for row in rows if (limit := getattr(row, of)) is not None]
            yield _gauge(name, f"{text}; told by one worker.", *told, together="max")

    def _current(self) -> list[_Count]:
        with self._lock:
            if self._dispatcher.is_connected and clock.monotonic() - self._read_at >= _COUNT_EVERY:
                self._read_at = clock.monotonic()
                self._rows = self._read_in_time()
            return self._rows

    def _read_in_time(self) -> list[_Count]:
        reading = None
        try:
            reading = self._dispatcher.submit(self._read)
            return reading.result(_COUNT_PATIENCE)
        except (TimeoutError, CancelledError, psycopg.Error) as exc:
            logger.warning("metrics.counts_failed", reason=str(exc) or type(exc).__name__)
            return self._rows
        finally:
            # One that nobody waits for any more must not be done when the dispatcher has better things to do.
            if reading is not None:
                reading.cancel()

    def _read(self, conn: psycopg.Connection[Any]) -> list[_Count]:
        conn.execute(COUNT_TIMEOUT)
        parameters = {"worker": self._dispatcher.lease.worker_id}
        rows = conn.execute(self._dispatcher.schema.render(COUNT_QUEUES).encode(), parameters)
        return [_Count(*row) for row in rows]


def _gauge(name: str, text: str, *samples: tuple[Mapping[str, str], float], together: str = "sum") -> Family:
    return Family(name, "gauge", text, [Sample(labels, value) for labels, value in samples], together)
