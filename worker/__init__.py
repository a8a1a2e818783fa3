"""Background jobs and cron on one Postgres connection pool: what a job's author may import."""

from worker.errors import (
    ArgumentError,
    Cancelled,
    ConfigError,
    DatabaseUnavailable,
    NotFound,
    PoolDeadlock,
    PoolForked,
    Refused,
    SchemaError,
    SignatureError,
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
from worker.queue.broker import PostgresBroker, ensure_broker
from worker.queue.context import Context
from worker.queue.enqueue import bind
from worker.queue.limit import Limit
from worker.queue.queues import Queues
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
    "Refused",
    "Schedules",
    "SchemaError",
    "SignatureError",
    "WorkerError",
    "at",
    "bind",
    "bind_pool",
    "cron",
    "every",
    "get_pool",
    "get_pool_async",
    "job",
]

# So that a module of plain actors or jobs can be imported anywhere, with no server in sight.
ensure_broker()
