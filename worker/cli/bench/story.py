"""The bench from its first connection to its last, step by step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from worker import log
from worker.cli.bench.limits import Limits
from worker.cli.bench.scratch import NAME, scratch_schema
from worker.cli.database import connect
from worker.config import Config
from worker.errors import WorkerError
from worker.pool import Pool, PoolOptions
from worker.queue.actor import job
from worker.queue.broker import PostgresBroker
from worker.queue.lease import Lease
from worker.queue.schema import Schema
from worker.runtime.run import Parts, open_pool, serving, working
from worker.runtime.signals import Stop
from worker.runtime.vitals import Vitals

SLOTS = 10
_CHUNK = 1000
_LATENCIES = 100
_PAUSE = 0.02
_WARM_UP = 5
# A database far away should not keep anybody for hours.
_ENOUGH = 10.0
_POLL = 0.002
_STANDSTILL = 60.0

Say = Callable[[str], None]


@dataclass
class Found:
    """Seconds, and jobs per second."""

    limits: Limits
    slots: int
    jobs: int
    enqueue_per_second: float
    bulk_per_second: float
    drain_per_second: float
    cpu_per_job: float
    """Of the worker's process."""
    latency_median: float
    latency_p99: float

    def as_json(self) -> dict[str, Any]:
        figures = asdict(self)
        return {**self.limits._asdict(), **{name: value for name, value in figures.items() if name != "limits"}}


class _Jobs:
    """What runs: a job that does nothing, and one that notes how late it started."""

    def __init__(self, schema: Schema) -> None:
        self.broker = PostgresBroker(schema=schema.name)
        self.first_at: float | None = None
        self.ran: list[None] = []
        self.delays: list[float] = []

        @job(broker=self.broker)
        def nothing() -> None:
            if self.first_at is None:
                self.first_at = time.monotonic()
            self.ran.append(None)  # atomic, which `+= 1` is not

        @job(broker=self.broker)
        def late(sent_at: float) -> None:
            self.delays.append(time.monotonic() - sent_at)

        self.nothing, self.late = nothing, late


def measure(config: Config, number: int, *, say: Say) -> Found:
    """
    Args:
        number: How many jobs the drain takes.
        say: Told what is being done.

    Raises:
        DatabaseUnavailable: The database could not be reached, or was lost.
        Refused: No schema can be made there.
        WorkerError: The jobs stand still.
    """
    log.configure(config.log_format, "error")
    slots = config.slots or SLOTS
    with scratch_schema(config.database_url) as schema:
        own = _own(config, schema, slots)
        jobs = _Jobs(schema)
        say(f"measuring in schema {schema.name}, dropped at the end")
        say("  round trip and commit")
        with connect(own.database_url, name=NAME) as conn:
            limits = Limits.measure(conn, schema)
        say("  enqueue: sends one by one, then in bulk")
        enqueue, bulk = _send(own, jobs, number)
        say(f"  drain: {number:,} jobs that do nothing, {slots} at once")
        drain, cpu = _drain(own, jobs, number)
        say(f"  latency: {_LATENCIES} sends to an idle worker")
        delays = _latencies(own, jobs)
    p99 = delays[math.ceil(len(delays) * 0.99) - 1]
    return Found(limits, slots, number, enqueue, bulk, drain, cpu, statistics.median(delays), p99)


def _own(config: Config, schema: Schema, slots: int) -> Config:
    """One plain process on *schema*, whatever the user's workers are told."""
    plain = Config(database_url=config.database_url, schema=schema.name, slots=slots, pool_size=slots + 1, grace=1.0)
    return replace(plain, lease=config.lease, async_mode=config.async_mode, hygiene=config.hygiene)


def _send(config: Config, jobs: _Jobs, number: int) -> tuple[float, float]:
    """Sends per second, one by one and in bulk; afterwards *number* jobs wait."""
    with _sending(config, jobs):
        jobs.nothing.send()
        started, sent = time.monotonic(), 0
        while sent < number - 1 and time.monotonic() - started < _ENOUGH / 2:
            jobs.nothing.send()
            sent += 1
        one_by_one = sent / (time.monotonic() - started)
        jobs.nothing.send_many([()] * _CHUNK)
        started = time.monotonic()
        jobs.nothing.send_many([()] * _CHUNK)
        bulk = _CHUNK / (time.monotonic() - started)
    return one_by_one, bulk


def _drain(config: Config, jobs: _Jobs, number: int) -> tuple[float, float]:
    """Jobs per second from the first one's start until all are recorded as done, and CPU seconds for each."""
    with _sending(config, jobs) as pool:
        with pool.connection() as conn:
            conn.execute(Schema(config.schema).render("TRUNCATE {schema}.job").encode())
        for first in range(0, number, _CHUNK):
            jobs.nothing.send_many([()] * min(_CHUNK, number - first))
    cpu = time.process_time()
    with _worker(config, jobs) as parts:
        _wait(lambda: len(jobs.ran) >= number and not parts.dispatcher.num_outstanding, lambda: len(jobs.ran))
        assert jobs.first_at is not None  # noqa: S101  (for mypy)
        seconds = time.monotonic() - jobs.first_at
    return number / seconds, (time.process_time() - cpu) / number


def _latencies(config: Config, jobs: _Jobs) -> list[float]:
    """Seconds from each send to the start of its job, sorted."""
    with _worker(config, jobs):
        until = time.monotonic() + _ENOUGH
        for sent in range(1, _LATENCIES + _WARM_UP + 1):
            jobs.late.send(time.monotonic())
            _wait(lambda sent=sent: len(jobs.delays) >= sent, lambda: len(jobs.delays))  # type: ignore[misc]  # bound now
            time.sleep(_PAUSE)
            if time.monotonic() > until and sent > _WARM_UP:
                break
    return sorted(jobs.delays[_WARM_UP:])


@contextmanager
def _sending(config: Config, jobs: _Jobs) -> Iterator[Pool]:
    """A sender's process: a pool and the broker on it."""
    pool = Pool.connect(PoolOptions.from_config(config, application_name=NAME, min_size=0))
    try:
        with serving(jobs.broker, pool, config):
            yield pool
    finally:
        pool.close(grace=1.0)


@contextmanager
def _worker(config: Config, jobs: _Jobs) -> Iterator[Parts]:
    """The worker as `worker run` has it, in this process, without signals and schedules."""
    lease = Lease(Schema(config.schema), duration=config.lease, slots=config.job_slots, pool_size=config.pool_size)
    with (
        open_pool(config, lease) as pool,
        serving(jobs.broker, pool, config),
        working(jobs.broker, pool, lease, Stop(), Vitals(), config) as parts,
    ):
        yield parts


def _wait(done: Callable[[], bool], progress: Callable[[], int]) -> None:
    """Until *done*; gives up when *progress* has not changed for a minute."""
    seen, since = progress(), time.monotonic()
    while not done():
        if progress() != seen:
            seen, since = progress(), time.monotonic()
        elif time.monotonic() - since > _STANDSTILL:
            raise WorkerError(f"the bench stands still: no job ran for {_STANDSTILL:g} s; `worker doctor` may say why")
        time.sleep(_POLL)
