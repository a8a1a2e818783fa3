"""Every error a caller may want to tell apart; each class is one sentence."""

from __future__ import annotations

import psycopg
import psycopg_pool
from dramatiq.middleware import Interrupt


class WorkerError(Exception):
    """Base of the errors raised by this package."""


class ConfigError(WorkerError):
    """A setting is missing or has a value that cannot work."""


class SchemaError(WorkerError):
    """The database's schema is missing or of a version that this worker cannot serve."""


class SignatureError(WorkerError, TypeError):
    """A job's parameters cannot work: raised when its module is imported."""


class ArgumentError(WorkerError, TypeError):
    """A job was sent arguments or options that cannot work: raised by the sender's call."""


class UnreadableJob(ArgumentError):
    """A job in the queue does not fit its function, so that no run of it can succeed: it is dead at once."""


class UnrecordableStep(UnreadableJob):
    """What a step returned cannot be recorded, and each attempt would do the step again: the job is dead at once."""


class NotFound(WorkerError):
    """There is nothing by the name that was given."""


class Refused(WorkerError):
    """What was asked for cannot be done as things are now."""


class EmbeddedError(WorkerError):
    """The embedded Postgres could not be found or started."""


class DatabaseUnavailable(WorkerError, psycopg.OperationalError):
    """The database could not be reached; the message holds the true reason, without the password."""


class PoolDeadlock(WorkerError, psycopg_pool.PoolTimeout):
    """A caller that holds a connection asked for another, and nobody is left who could ever return one."""


class PoolForked(WorkerError, psycopg.InterfaceError):
    """A pool was used in a child process that was forked after it had opened: the child needs one of its own."""


class LostLease(WorkerError):
    """The job belongs to another delivery by now: nothing of this one may be written."""


class TransactionEnded(WorkerError):
    """A job ended the transaction it was given, so its writes could not commit with its completion."""


class HookStuck(WorkerError):
    """A middleware's hook never returned, so the worker that ran it was ended, and the job's attempt failed."""


class Cancelled(Interrupt):
    """Raised inside a job's body when somebody cancelled the job: it is dead, and runs no more."""


class LeaseLost(Interrupt):
    """Raised inside a job's body when this worker could not renew its lease in time, or has lost it."""
