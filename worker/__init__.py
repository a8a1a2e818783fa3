"""Background jobs and cron on one Postgres connection pool: what a job's author may import."""

from worker.errors import (
    ArgumentError,
    Cancelled,
    ConfigError,
    DatabaseUnavailable,
    LeaseLost,
    NotFound,
    PoolDeadlock,
    PoolForked,
    Refused,
    SchemaError,
    SignatureError,
    UnreadableJob,
    UnrecordableStep,
    WorkerError,
)
from worker.pool import (
    AsyncMode,
    ConnectOptions,
    HygieneMode,
    Pool,
    PoolOptions,
    bind_pool,
    get_pool,
    get_pool_async,
)
from worker.queue.actor import job
from worker.queue.backends import PostgresGroups, PostgresLimits, PostgresResults
from worker.queue.binding import bind
from worker.queue.broker import PostgresBroker, ensure_broker
from worker.queue.context import Context
from worker.queue.jobs import JobFilter, Jobs
from worker.queue.limit import Limit
from worker.queue.many import send_many, send_many_async
from worker.queue.queues import Queues
from worker.queue.rate import Rate
from worker.queue.retries import Retry
from worker.queue.sent import Sent
from worker.queue.snooze import Snooze
from worker.queue.stop_reason import StopReason
from worker.queue.unique import Unique
from worker.schedule import Schedules, at, cron, every

__all__ = [
    "ArgumentError",
    "AsyncMode",
    "Cancelled",
    "ConfigError",
    "ConnectOptions",
    "Context",
    "DatabaseUnavailable",
    "HygieneMode",
    "JobFilter",
    "Jobs",
    "LeaseLost",
    "Limit",
    "NotFound",
    "Pool",
    "PoolDeadlock",
    "PoolForked",
    "PoolOptions",
    "PostgresBroker",
    "PostgresGroups",
    "PostgresLimits",
    "PostgresResults",
    "Queues",
    "Rate",
    "Refused",
    "Retry",
    "Schedules",
    "SchemaError",
    "Sent",
    "SignatureError",
    "Snooze",
    "StopReason",
    "Unique",
    "UnreadableJob",
    "UnrecordableStep",
    "WorkerError",
    "at",
    "bind",
    "bind_pool",
    "cron",
    "every",
    "get_pool",
    "get_pool_async",
    "job",
    "send_many",
    "send_many_async",
]

# So that a module of plain actors or jobs can be imported anywhere, with no server in sight.
ensure_broker()
