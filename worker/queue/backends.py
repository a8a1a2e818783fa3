"""Dramatiq's result and rate limiter backends on Postgres, and its groups, joined to the jobs' transactions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, LiteralString, Protocol, TypeVar
from uuid import UUID

import psycopg
from dramatiq import Broker, Message, MessageProxy
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits import RateLimiterBackend
from dramatiq.results import Missing, ResultBackend

from worker import log
from worker.queue.delivery import Delivery, current
from worker.queue.schema import Schema

logger = log.get_logger(__name__)

T = TypeVar("T")

# result_pkey. A job that runs again replaces what its last run has returned.
STORE_RESULT: LiteralString = """
    INSERT INTO {schema}.result (key, value, expires_at)
    VALUES (%(key)s, %(value)s, now() + %(ttl)s * interval '1 millisecond')
    ON CONFLICT ON CONSTRAINT result_pkey DO UPDATE
    SET value = excluded.value, expires_at = excluded.expires_at"""

# result_pkey.
GET_RESULT: LiteralString = """
    SELECT value FROM {schema}.result WHERE key = %(key)s AND expires_at > now()"""

# counter_pkey, each. One that has expired counts as one that was never there.
ADD_COUNTER: LiteralString = """
    INSERT INTO {schema}.counter AS counter (key, value, expires_at)
    VALUES (%(key)s, %(value)s, clock_timestamp() + %(ttl)s * interval '1 millisecond')
    ON CONFLICT ON CONSTRAINT counter_pkey DO UPDATE
    SET value = excluded.value, expires_at = excluded.expires_at
    WHERE counter.expires_at <= clock_timestamp()
    RETURNING value"""

CHANGE_COUNTER: LiteralString = """
    INSERT INTO {schema}.counter AS counter (key, value, expires_at)
    SELECT %(key)s, %(amount)s, clock_timestamp() + %(ttl)s * interval '1 millisecond'
    WHERE %(amount)s BETWEEN %(minimum)s AND %(maximum)s
       OR EXISTS (SELECT FROM {schema}.counter WHERE key = %(key)s)
    ON CONFLICT ON CONSTRAINT counter_pkey DO UPDATE
    SET value = excluded.value + CASE WHEN counter.expires_at > clock_timestamp() THEN counter.value ELSE 0 END,
        expires_at = excluded.expires_at
    WHERE excluded.value + CASE WHEN counter.expires_at > clock_timestamp() THEN counter.value ELSE 0 END
        BETWEEN %(minimum)s AND %(maximum)s
    RETURNING value"""

# One caller of a limiter at a time: what is summed up is many rows, and some of them are not there yet.
LOCK_LIMITER: LiteralString = """
    SELECT pg_advisory_xact_lock(hashtextextended(%(limiter)s, 0))"""

# counter_pkey.
GET_COUNTERS: LiteralString = """
    SELECT key, value
    FROM {schema}.counter
    WHERE key = ANY(%(keys)s)
      AND expires_at > clock_timestamp()"""

# counter_pkey. Members of one group pass one by one from here to the end of their transactions.
LOCK_GROUP: LiteralString = """
    SELECT value FROM {schema}.counter WHERE key = %(key)s FOR UPDATE"""

# group_member_pkey. Whoever arrives when all others have is the last one, now and whenever it arrives again.
ARRIVE: LiteralString = """
    INSERT INTO {schema}.group_member AS member (key, job_id, was_last)
    SELECT %(key)s, %(job_id)s, count(*) + 1 >= %(parties)s
    FROM {schema}.group_member
    WHERE key = %(key)s
    ON CONFLICT ON CONSTRAINT group_member_pkey DO UPDATE
    SET was_last = member.was_last
    RETURNING was_last"""

# By the index on expires_at; a batch, so that nobody waits for long.
DELETE_EXPIRED: tuple[LiteralString, ...] = (
    """
    DELETE FROM {schema}.result
    WHERE key IN (
        SELECT key FROM {schema}.result WHERE expires_at <= now() ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED
    )""",
    """
    DELETE FROM {schema}.counter
    WHERE key IN (
        SELECT key FROM {schema}.counter WHERE expires_at <= now() ORDER BY expires_at LIMIT 10000
        FOR UPDATE SKIP LOCKED
    )""",
)

_UNBOUNDED = 2**62
_WAIT_INTERVAL = 0.05


class Executor(Protocol):
    """A broker on Postgres, as the backends need it."""

    @property
    def schema(self) -> Schema: ...

    def execute(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Run *work* in a transaction of its own."""
        ...


def in_transaction(broker: Executor, work: Callable[[psycopg.Connection[Any]], T]) -> T:
    """
    Run *work* in the transaction of the job whose hooks are running, so that both count or neither; else in its own.

    A failure leaves the job's next step missing, and hooks swallow it: so the job is told, and does not count as done.
    """
    delivery = current.get()
    if delivery is None or not delivery.collecting:
        return broker.execute(work)
    try:
        conn = delivery.conn if delivery.transaction is not None else None
        return broker.execute(work) if conn is None else work(conn)
    except Exception as exc:
        delivery.broken = exc
        raise


class PostgresResults(ResultBackend):
    """Dramatiq's result backend: what a job with a connection returns exists only if the job's transaction commits."""

    def __init__(self, broker: Executor, **options: Any) -> None:
        super().__init__(**options)
        self._broker = broker

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        try:
            value = self.encoder.encode(result)
        except Exception as exc:
            if (delivery := current.get()) is not None and delivery.collecting:
                delivery.broken = exc
            raise
        parameters = {"key": message_key, "value": value, "ttl": ttl}
        statement = self._broker.schema.render(STORE_RESULT).encode()
        in_transaction(self._broker, lambda conn: conn.execute(statement, parameters))

    def _get(self, message_key: str) -> Any:
        statement = self._broker.schema.render(GET_RESULT).encode()
        row = self._broker.execute(lambda conn: conn.execute(statement, {"key": message_key}).fetchone())
        return Missing if row is None else self.encoder.decode(bytes(row[0]))


class PostgresLimits(RateLimiterBackend):
    """
    Dramatiq's rate limiter backend: counters that every worker sees at once.

    Each change is a transaction of its own, also within a job: others must see it while the job runs.
    """

    def __init__(self, broker: Executor) -> None:
        self._broker = broker

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Add a counter unless it is there; whether it was added. *ttl* in milliseconds, here and below."""
        return self._changed(ADD_COUNTER, {"key": key, "value": value, "ttl": ttl})

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        """Add *amount* unless that is more than *maximum*; whether it was added."""
        return self._change(key, amount, -_UNBOUNDED, maximum, ttl)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        """Take *amount* away unless that is less than *minimum*; whether it was taken."""
        return self._change(key, -amount, minimum, _UNBOUNDED, ttl)

    def incr_and_sum(self, key: str, keys: Callable[[], list[str]], amount: int, maximum: int, ttl: int) -> bool:
        """Add *amount* to *key* unless the sum of *keys* would be more than *maximum*; whether it was added."""
        render = self._broker.schema.render

        def change(conn: psycopg.Connection[Any]) -> bool:
            # Dramatiq's windows are one key for each second, of the limiter's name and the second's number.
            limiter = key.rpartition("@")[0] or key
            conn.execute(render(LOCK_LIMITER).encode(), {"limiter": f"{self._broker.schema.name}:{limiter}"})
            summed = keys()
            found = conn.execute(render(GET_COUNTERS).encode(), {"keys": [key, *summed]})
            values: dict[str, int] = dict(found.fetchall())
            together = sum(values.get(one, 0) for one in summed)
            if values.get(key, 0) + amount > maximum or together + amount > maximum:
                return False
            parameters = {"key": key, "amount": amount, "minimum": -_UNBOUNDED, "maximum": maximum, "ttl": ttl}
            return conn.execute(render(CHANGE_COUNTER).encode(), parameters).fetchone() is not None

        return self._broker.execute(change)

    def wait(self, key: str, timeout: int | None) -> bool:
        """Block until `wait_notify` was called for *key*, *timeout* milliseconds at most; whether it was."""
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        statement = self._broker.schema.render(GET_COUNTERS).encode()
        while not self._broker.execute(lambda conn: conn.execute(statement, {"keys": [key]}).fetchone()):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(_WAIT_INTERVAL)
        return True

    def wait_notify(self, key: str, ttl: int) -> None:
        """Let everybody who waits for *key* go on, and who comes within *ttl*."""
        self.add(key, 1, ttl)

    def _change(self, key: str, amount: int, minimum: int, maximum: int, ttl: int) -> bool:
        parameters = {"key": key, "amount": amount, "minimum": minimum, "maximum": maximum, "ttl": ttl}
        return self._changed(CHANGE_COUNTER, parameters)

    def _changed(self, statement: LiteralString, parameters: dict[str, Any]) -> bool:
        text = self._broker.schema.render(statement).encode()
        return self._broker.execute(lambda conn: conn.execute(text, parameters).fetchone()) is not None


class PostgresGroups(GroupCallbacks):
    """
    Dramatiq's completion callbacks of groups, exactly once.

    A member is counted with its completion, in its own transaction if it has one. One that runs again after a crash is
    not counted again; the last one is the last again, so that a crash between counting and enqueueing loses nothing.
    """

    def __init__(self, broker: Executor, **options: Any) -> None:
        super().__init__(PostgresLimits(broker), **options)
        self._broker = broker

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        key = message.options.get("group_completion_uuid")
        callbacks = message.options.get("group_completion_callbacks")
        if exception is not None or not (key and callbacks):
            return
        if not isinstance(message, Delivery):
            super().after_process_message(  # type: ignore[no-untyped-call]  # Dramatiq's, and untyped
                broker, message, result=result, exception=exception
            )
        elif in_transaction(self._broker, lambda conn: self._is_last(conn, key, message.claim.id)):
            for callback in callbacks:
                broker.enqueue(Message(**callback))

    def _is_last(self, conn: psycopg.Connection[Any], key: str, job_id: UUID) -> bool:
        render = self._broker.schema.render
        group = conn.execute(render(LOCK_GROUP).encode(), {"key": key}).fetchone()
        if group is None:
            logger.warning("group.expired", group=key, reason="it was not complete within the barrier's time to live")
            return False
        parameters = {"key": key, "job_id": job_id, "parties": group[0]}
        row = conn.execute(render(ARRIVE).encode(), parameters).fetchone()
        return row is not None and bool(row[0])
