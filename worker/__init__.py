"""Background jobs and cron on one Postgres connection pool: what a job's author may import."""

from worker.errors import (
    ArgumentError,
    ConfigError,
    DatabaseUnavailable,
    NotFound,
    Refused,
    SchemaError,
    SignatureError,
    WorkerError,
)
from worker.pool import Pool, get_pool
from worker.queue.actor import job
from worker.queue.broker import PostgresBroker, ensure_broker
from worker.queue.context import Context
from worker.queue.enqueue import bind
from worker.schedule import Schedules, at, cron, every

__all__ = [
    "ArgumentError",
    "ConfigError",
    "Context",
    "DatabaseUnavailable",
    "NotFound",
    "Pool",
    "PostgresBroker",
    "Refused",
    "Schedules",
    "SchemaError",
    "SignatureError",
    "WorkerError",
    "at",
    "bind",
    "cron",
    "every",
    "get_pool",
    "job",
]

# So that a module of plain actors or jobs can be imported anywhere, with no server in sight.
ensure_broker()
