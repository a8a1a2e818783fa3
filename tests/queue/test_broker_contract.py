"""What Dramatiq's own Worker may expect of our broker, and what its users may."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import dramatiq.worker
import psycopg
import pytest
from dramatiq import Message, MessageProxy, Middleware, Worker
from dramatiq.errors import BrokerConnectionError, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import SkipMessage, TimeLimitExceeded
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend
from psycopg import sql

from tests.factories import column, num_sessions, opened_pool, scalar
from tests.waiting import wait_until
from worker import Context, PostgresBroker, Queues, job
from worker.queue.transaction import Transaction

WAIT = 15.0
WAIT_MS = 15_000
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
NOT_MIGRATED = "not_migrated"


@pytest.fixture
def broker(database: str) -> Iterator[PostgresBroker]:
    broker = PostgresBroker(database, schema="worker")
    yield broker
    broker.close()


@contextmanager
def working(broker: PostgresBroker, *, threads: int = 1, stop_within: float = 10.0) -> Iterator[Worker]:
    """Dramatiq's own Worker, as its command runs it."""
    worker = Worker(broker, worker_timeout=50, worker_threads=threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout=int(stop_within * 1000))


def take(consumer: dramatiq.Consumer) -> MessageProxy:
    """The next message of *consumer*, as a Worker's thread asks for it."""
    delivery = wait_until(lambda: next(consumer), WAIT, "a message")
    assert delivery is not None
    return delivery


def an_actor(broker: PostgresBroker, **options: Any) -> dramatiq.Actor[..., None]:
    """An actor that does nothing, named `idle`."""

    @dramatiq.actor(broker=broker, actor_name="idle", **options)
    def idle(*args: Any) -> None:
        pass

    return idle


def states(db: psycopg.Connection) -> list[str]:
    return column(db, "SELECT state FROM worker.job ORDER BY id")


def outcomes(db: psycopg.Connection) -> list[str]:
    return column(db, "SELECT outcome FROM worker.job_history ORDER BY id")


# Sending


def test_a_delayed_send_leaves_the_message_it_was_given_as_it_was(broker: PostgresBroker) -> None:
    message = an_actor(broker).message(1)

    enqueued = broker.enqueue(message, delay=60_000)

    assert "eta" not in message.options
    assert "eta" in enqueued.options


def test_hooks_around_a_send_see_the_copy_and_the_delay(broker: PostgresBroker) -> None:
    seen: list[tuple[str, Message[Any], int | None]] = []

    class Witness(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            seen.append(("before", message, delay))

        def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            seen.append(("after", message, delay))

    broker.add_middleware(Witness())
    message = an_actor(broker).message()

    enqueued = broker.enqueue(message, delay=60_000)

    assert [(when, seen_message is enqueued, delay) for when, seen_message, delay in seen] == [
        ("before", True, 60_000),
        ("after", True, 60_000),
    ]


def test_a_message_proxy_can_be_sent(broker: PostgresBroker, db: psycopg.Connection) -> None:
    message = an_actor(broker).message(1)

    broker.enqueue(MessageProxy(message))  # type: ignore[arg-type]  # Retries passes proxies

    assert Message.decode(scalar(db, "SELECT message FROM worker.job")) == message


def test_a_message_id_that_is_no_uuid_arrives_as_it_was(broker: PostgresBroker) -> None:
    message = an_actor(broker).message().copy(message_id="order-42")
    broker.enqueue(message)

    delivery = take(broker.consume("default", timeout=100))

    assert delivery.message_id == "order-42"


def test_a_message_id_that_is_no_uuid_finds_its_row_again(broker: PostgresBroker, db: psycopg.Connection) -> None:
    message = an_actor(broker).message().copy(message_id="order-42")

    broker.enqueue(message)
    broker.enqueue(message)

    assert states(db) == ["available"]


def test_the_name_of_a_delay_queue_means_its_queue(broker: PostgresBroker, db: psycopg.Connection) -> None:
    broker.enqueue(an_actor(broker).message().copy(queue_name="default.DQ"))

    assert column(db, "SELECT queue FROM worker.job") == ["default"]


def test_an_eta_that_is_no_number_means_now(broker: PostgresBroker, db: psycopg.Connection) -> None:
    broker.enqueue(an_actor(broker).message_with_options(eta="tomorrow"))

    assert states(db) == ["available"]


@pytest.mark.parametrize("call", ["enqueue", "consume", "join"])
def test_a_queue_that_nobody_declared_is_refused(broker: PostgresBroker, call: str) -> None:
    message: Message[Any] = Message("unknown", "idle", (), {}, {})

    with pytest.raises(QueueNotFound, match="unknown"):
        getattr(broker, call)(message if call == "enqueue" else "unknown")


def test_a_database_that_cannot_be_reached_is_a_lost_connection_to_the_sender() -> None:
    broker = PostgresBroker(NOWHERE, schema="worker")

    with pytest.raises(BrokerConnectionError, match="not enqueued for certain"):
        an_actor(broker).send()


def test_a_database_that_is_gone_is_a_lost_connection_to_the_sender(
    database: str, server: str, db: psycopg.Connection
) -> None:
    with opened_pool(database, acquire_timeout=0.5) as pool:
        broker = PostgresBroker(pool=pool, schema="worker")
        idle = an_actor(broker)
        idle.send()

        with closed_to_everybody(server, db.info.dbname), pytest.raises(BrokerConnectionError):
            idle.send()


def test_a_database_that_cannot_be_reached_is_a_lost_connection_to_the_consumer() -> None:
    broker = PostgresBroker(NOWHERE, schema="worker")
    broker.declare_queue("default")

    with pytest.raises(BrokerConnectionError, match="nobody"):
        broker.consume("default")


def test_a_database_that_cannot_be_reached_is_a_lost_connection_to_a_join() -> None:
    broker = PostgresBroker(NOWHERE, schema="worker")
    broker.declare_queue("default")

    with pytest.raises(BrokerConnectionError, match="nobody"):
        broker.join("default")


@contextmanager
def closed_to_everybody(server: str, name: str) -> Iterator[None]:
    """A database that ends its sessions and takes no others."""
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
        admin.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


# Consuming


def test_a_consumer_with_nothing_to_do_returns_none_after_its_timeout(broker: PostgresBroker) -> None:
    broker.declare_queue("default")

    assert next(broker.consume("default", timeout=20)) is None


def test_a_consumer_holds_no_more_messages_than_its_prefetch(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker)
    for _ in range(5):
        idle.send()

    consumer = broker.consume("default", prefetch=2, timeout=100)
    take(consumer), take(consumer)

    assert sorted(states(db)) == ["available"] * 3 + ["running"] * 2
    assert next(consumer) is None


def test_an_acknowledged_message_makes_room_for_the_next(broker: PostgresBroker) -> None:
    idle = an_actor(broker)
    first, second = idle.send(1), idle.send(2)
    consumer = broker.consume("default", prefetch=1, timeout=100)
    delivery = take(consumer)
    assert delivery == first

    consumer.ack(delivery)

    assert take(consumer) == second


def test_two_consumers_of_a_queue_share_its_messages(broker: PostgresBroker) -> None:
    idle = an_actor(broker)
    sent = [idle.send(n) for n in range(2)]

    consumers = [broker.consume("default", prefetch=1, timeout=100) for _ in range(2)]

    taken = [take(consumer) for consumer in consumers]
    assert sorted(taken, key=lambda delivery: delivery.args) == sent


def test_a_consumer_goes_on_when_another_of_its_queue_is_closed(broker: PostgresBroker) -> None:
    idle = an_actor(broker)
    staying, leaving = broker.consume("default", timeout=100), broker.consume("default", timeout=100)

    leaving.close()

    assert idle.send() == take(staying)


def test_a_stale_acknowledgement_changes_nothing(broker: PostgresBroker, db: psycopg.Connection) -> None:
    an_actor(broker).send()
    consumer = broker.consume("default", timeout=100)
    delivery = take(consumer)
    db.execute("UPDATE worker.job SET token = token + 1")

    consumer.ack(delivery)

    assert states(db) == ["running"]


def test_an_acknowledgement_leaves_the_next_delivery_of_a_message_that_was_sent_again(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    message = an_actor(broker).send()
    consumer = broker.consume("default", prefetch=2, timeout=100)
    first = take(consumer)
    broker.enqueue(message)
    second = take(consumer)

    consumer.ack(first)

    assert states(db) == ["running"]
    consumer.ack(second)
    assert states(db) == []


def test_a_rejected_message_is_dead(broker: PostgresBroker, db: psycopg.Connection) -> None:
    an_actor(broker).send()
    consumer = broker.consume("default", timeout=100)
    delivery = take(consumer)
    delivery.stuff_exception(ValueError("no such thing"))

    consumer.nack(delivery)

    assert "no such thing" in scalar(db, "SELECT error FROM worker.job_dead")


def test_an_acknowledgement_after_the_consumer_was_closed_counts(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    an_actor(broker).send()
    consumer = broker.consume("default", timeout=100)
    delivery = take(consumer)
    consumer.close()

    consumer.ack(delivery)

    assert outcomes(db) == ["done"]


def test_an_acknowledgement_after_the_broker_was_closed_returns_at_once(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    an_actor(broker).send()
    consumer = broker.consume("default", timeout=100)
    delivery = take(consumer)
    broker.close()
    began = time.monotonic()

    consumer.ack(delivery)

    assert time.monotonic() - began < 1
    assert states(db) == ["available"]


def test_closing_a_consumer_gives_back_what_nobody_took(broker: PostgresBroker, db: psycopg.Connection) -> None:
    an_actor(broker).send()
    consumer = broker.consume("default", timeout=100)
    wait_until(lambda: states(db) == ["running"], WAIT, "the claim")

    consumer.close()

    wait_until(lambda: states(db) == ["available"], WAIT, "the release")
    assert scalar(db, "SELECT attempt FROM worker.job") == 0


def test_an_unreadable_message_ends_dead_and_the_rest_of_its_batch_is_delivered(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    idle = an_actor(broker)
    sent = [idle.send(n) for n in range(3)]
    db.execute("UPDATE worker.job SET message = 'rubbish' WHERE id = %s", [sent[1].message_id])
    consumer = broker.consume("default", prefetch=3, timeout=100)

    taken = [take(consumer) for _ in range(2)]

    assert taken == [sent[0], sent[2]]
    wait_until(lambda: column(db, "SELECT id::text FROM worker.job_dead") == [sent[1].message_id], WAIT, "its end")


def test_consuming_begins_again_when_what_stopped_it_is_mended(database: str) -> None:
    broker = PostgresBroker(database, schema=NOT_MIGRATED)
    idle = an_actor(broker)
    consumer = broker.consume("default", timeout=20)
    with pytest.raises(BrokerConnectionError, match="worker migrate"):
        wait_until(lambda: next(consumer), WAIT, "the reason")
    with psycopg.connect(database, autocommit=True) as conn:
        broker.schema.migrate(conn)

    consumer = broker.consume("default", timeout=100)

    assert idle.send() == take(consumer)
    broker.close()


def test_a_send_fails_at_once_where_the_dispatcher_has_failed(database: str) -> None:
    broker = PostgresBroker(database, schema=NOT_MIGRATED)
    idle = an_actor(broker)
    consumer = broker.consume("default", timeout=20)
    with pytest.raises(BrokerConnectionError, match="worker migrate"):
        wait_until(lambda: next(consumer), WAIT, "the reason")
    dispatcher = broker.dispatcher
    assert dispatcher is not None
    wait_until(lambda: not dispatcher.is_alive, WAIT, "its end")
    began = time.monotonic()

    with pytest.raises(BrokerConnectionError):
        idle.send()

    assert time.monotonic() - began < 1
    broker.close()


# Delays


def test_a_queue_has_no_delay_queue_whose_messages_would_wait_in_memory(broker: PostgresBroker) -> None:
    broker.declare_queue("default")

    assert broker.get_declared_delay_queues() == set()


def test_a_delayed_message_waits_in_the_table(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker)
    with working(broker) as worker:
        idle.send()
        idle.send_with_options(delay=60_000)

        wait_until(lambda: states(db) == ["scheduled"], WAIT, "the end of the other")

        assert not any(consumer.delay_queue.unfinished_tasks for consumer in worker.consumers.values())


def test_a_message_that_was_delayed_is_delivered_without_an_eta(broker: PostgresBroker) -> None:
    an_actor(broker).send_with_options(delay=50)

    delivery = take(broker.consume("default", timeout=100))

    assert "eta" not in delivery.options


# Running, by Dramatiq's Worker


def test_messages_run_in_the_order_in_which_they_were_sent(broker: PostgresBroker) -> None:
    order: list[int] = []

    @dramatiq.actor(broker=broker)
    def note(n: int) -> None:
        order.append(n)

    for n in range(20):
        note.send(n)
    with working(broker, threads=1):
        broker.join("default", timeout=WAIT_MS)

    assert order == list(range(20))


def test_a_join_returns_in_no_gap_between_retries(broker: PostgresBroker) -> None:
    attempts: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=25, min_backoff=0)
    def fail() -> None:
        attempts.append(1)
        raise ValueError

    with working(broker):
        fail.send()
        broker.join("default", timeout=WAIT_MS)
        assert len(attempts) == 26


def test_a_join_waits_for_what_follows_from_a_message(broker: PostgresBroker) -> None:
    results: list[int] = []

    @dramatiq.actor(broker=broker)
    def add(*numbers: int) -> int:
        return sum(numbers)

    @dramatiq.actor(broker=broker)
    def note(*numbers: int) -> None:
        results.extend(numbers)

    steps = [*[add.message(1) for _ in range(11)], note.message()]
    with working(broker):
        dramatiq.pipeline(steps, broker=broker).run()
        broker.join("default", timeout=WAIT_MS)
        assert results == [11]


def test_a_join_that_waits_too_long_says_so(broker: PostgresBroker) -> None:
    an_actor(broker).send()

    with pytest.raises(QueueJoinTimeout, match="default"):
        broker.join("default", timeout=50)


def test_a_flush_leaves_other_queues_alone(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker)
    broker.declare_queue("other")
    idle.send()
    idle.send_with_options(delay=60_000)
    broker.enqueue(idle.message().copy(queue_name="other"))

    broker.flush("default")

    assert column(db, "SELECT queue FROM worker.job") == ["other"]


def test_flushing_everything_leaves_nothing(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker)
    broker.declare_queue("other")
    idle.send_with_options(delay=60_000)
    broker.enqueue(idle.message().copy(queue_name="other"))

    broker.flush_all()

    assert states(db) == []


def test_a_limit_of_a_queue_is_kept_from_the_first_job_on(broker: PostgresBroker, db: psycopg.Connection) -> None:
    inside, most, lock = 0, 0, threading.Lock()
    two = threading.Barrier(2)

    @dramatiq.actor(broker=broker, queue_name="few", max_retries=0)
    def meet() -> None:
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        two.wait(WAIT)
        with lock:
            inside -= 1

    Queues(db).limit("few", running=2, force=True)
    for _ in range(12):
        meet.send()
    with working(broker, threads=6):
        broker.join("few", timeout=WAIT_MS)

    assert (most, outcomes(db)) == (2, ["done"] * 12)


# Outcomes


class Spoiler(Middleware):
    """Makes a message that cannot be sent again."""

    def after_process_message(self, broker: Any, message: Any, **outcome: Any) -> None:
        message.options["spoilt"] = object()


def test_a_job_that_failed_and_that_no_middleware_dealt_with_is_dead(database: str, db: psycopg.Connection) -> None:
    broker = PostgresBroker(database, schema="worker", middleware=[])

    @dramatiq.actor(broker=broker)
    def fail() -> None:
        raise ValueError("no such invoice")

    with working(broker):
        fail.send()
        broker.join("default", timeout=WAIT_MS)

    assert "no such invoice" in scalar(db, "SELECT error FROM worker.job_dead")
    broker.close()


def test_a_job_whose_retries_failed_is_dead_and_not_gone(broker: PostgresBroker, db: psycopg.Connection) -> None:
    def broken(retries: int, exception: BaseException) -> bool:
        raise RuntimeError("who wrote this")

    @dramatiq.actor(broker=broker, retry_when=broken)
    def fail() -> None:
        raise ValueError("no such invoice")

    with working(broker):
        fail.send()
        broker.join("default", timeout=WAIT_MS)

    assert "no such invoice" in scalar(db, "SELECT error FROM worker.job_dead")


def test_a_job_whose_retry_cannot_be_stored_is_dead_and_not_gone(
    broker: PostgresBroker, db: psycopg.Connection
) -> None:
    broker.add_middleware(Spoiler())

    @dramatiq.actor(broker=broker)
    def fail() -> None:
        raise ValueError

    with working(broker):
        fail.send()
        broker.join("default", timeout=WAIT_MS)

    assert "not JSON serializable" in scalar(db, "SELECT error FROM worker.job_dead")


def test_an_error_in_an_after_hook_changes_no_outcome(broker: PostgresBroker, db: psycopg.Connection) -> None:
    class Broken(Middleware):
        def after_process_message(self, broker: Any, message: Any, **outcome: Any) -> None:
            raise RuntimeError

    broker.add_middleware(Broken())
    idle = an_actor(broker)

    with working(broker):
        idle.send()
        broker.join("default", timeout=WAIT_MS)

    assert outcomes(db) == ["done"]


def test_a_job_whose_thread_is_interrupted_in_an_after_hook_runs_again(
    broker: PostgresBroker, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Middleware):
        def after_process_message(self, broker: Any, message: Any, *, exception: Any = None, **_: Any) -> None:
            if exception is not None:
                raise TimeLimitExceeded

    # It ends Dramatiq's thread, of which pytest would tell.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    broker.add_middleware(Late())
    runs: list[int] = []

    @dramatiq.actor(broker=broker)
    def fail_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    with working(broker, threads=2):
        fail_once.send()
        broker.join("default", timeout=WAIT_MS)

    assert len(runs) == 2
    assert outcomes(db) == ["done"]


class InterruptAfterSuccess(Middleware):
    def after_process_message(self, broker: Any, message: Any, *, exception: Any = None, **_: Any) -> None:
        if exception is None:
            raise TimeLimitExceeded


def test_an_interrupt_after_the_commit_leaves_the_job_done(broker: PostgresBroker, db: psycopg.Connection) -> None:
    broker.add_middleware(InterruptAfterSuccess(), before=Transaction)
    db.execute("CREATE TABLE effect (attempt int)")

    @job(broker=broker, min_backoff=0)
    def write(conn: psycopg.Connection, ctx: Context) -> None:
        conn.execute("INSERT INTO effect VALUES (%s)", [ctx.attempt])

    with working(broker):
        write.send()
        broker.join("default", timeout=WAIT_MS)

    assert column(db, "SELECT attempt FROM effect") == [1]
    assert outcomes(db) == ["done"]


def test_an_interrupt_after_the_commit_makes_no_failure_of_its_result(broker: PostgresBroker) -> None:
    backend = StubBackend()
    broker.add_middleware(Results(backend=backend))
    broker.add_middleware(InterruptAfterSuccess(), before=Transaction)

    @job(broker=broker, store_results=True, max_retries=0)
    def answer(conn: psycopg.Connection) -> int:
        return 42

    with working(broker):
        message = answer.send()
        broker.join("default", timeout=WAIT_MS)

    assert backend.get_result(message, block=True, timeout=WAIT_MS) == 42


def test_a_message_that_a_middleware_skips_is_done(broker: PostgresBroker, db: psycopg.Connection) -> None:
    class Skip(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise SkipMessage("not today")

    broker.add_middleware(Skip())
    idle = an_actor(broker)

    with working(broker):
        idle.send()
        broker.join("default", timeout=WAIT_MS)

    assert outcomes(db) == ["done"]


def test_a_message_that_is_too_old_is_dead_with_the_reason(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker, max_age=1)
    broker.enqueue(idle.message().copy(message_timestamp=0))

    with working(broker):
        broker.join("default", timeout=WAIT_MS)

    assert "age limit exceeded" in scalar(db, "SELECT error FROM worker.job_dead")


def test_whoever_waits_for_the_result_of_a_job_whose_retry_cannot_be_stored_hears_of_its_failure(
    broker: PostgresBroker,
) -> None:
    backend = StubBackend()
    broker.add_middleware(Results(backend=backend))
    broker.add_middleware(Spoiler())

    @dramatiq.actor(broker=broker, store_results=True)
    def fail() -> None:
        raise ValueError("no such invoice")

    with working(broker):
        message = fail.send()

        with pytest.raises(ResultFailure, match="no such invoice"):
            backend.get_result(message, block=True, timeout=WAIT_MS)


# Jobs with a connection


def test_a_commit_that_fails_is_retried_and_its_write_is_gone(broker: PostgresBroker, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE effect (n int UNIQUE DEFERRABLE INITIALLY DEFERRED, attempt int)")
    db.execute("INSERT INTO effect VALUES (1, 0)")

    @job(broker=broker, min_backoff=1, max_backoff=1)
    def write(conn: psycopg.Connection, ctx: Context) -> None:
        conn.execute("INSERT INTO effect VALUES (%s, %s)", [ctx.attempt, ctx.attempt])

    with working(broker):
        write.send()
        broker.join("default", timeout=WAIT_MS)

    assert column(db, "SELECT attempt FROM effect ORDER BY 1") == [0, 2]


def test_a_job_whose_token_changed_while_it_ran_leaves_no_write(broker: PostgresBroker, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE effect (n int)")

    @job(broker=broker)
    def write(conn: psycopg.Connection) -> None:
        conn.execute("INSERT INTO effect VALUES (1)")
        db.execute("UPDATE worker.job SET token = token + 1")
        written.set()

    written = threading.Event()
    with working(broker):
        write.send()
        assert written.wait(WAIT)

    assert column(db, "SELECT n FROM effect") == []
    assert outcomes(db) == []


def test_what_a_failed_job_with_a_connection_has_sent_is_gone(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker)

    @job(broker=broker, max_retries=0)
    def fail(conn: psycopg.Connection) -> None:
        idle.send()
        raise ValueError

    with working(broker):
        fail.send()
        broker.join("default", timeout=WAIT_MS)

    assert column(db, "SELECT actor FROM worker.job_history") == ["fail"]


# Ending


def test_a_worker_that_stops_gives_back_what_it_has_not_started(broker: PostgresBroker, db: psycopg.Connection) -> None:
    started, go_on = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def block() -> None:
        started.set()
        go_on.wait(WAIT)

    for _ in range(2):
        block.send()
    with working(broker, threads=1, stop_within=0.1):
        assert started.wait(WAIT)
        wait_until(lambda: states(db) == ["running"] * 2, WAIT, "the claim ahead")

    wait_until(lambda: sorted(states(db)) == ["available", "running"], WAIT, "the release")
    assert column(db, "SELECT attempt FROM worker.job WHERE state = 'available'") == [0]
    go_on.set()
    wait_until(lambda: outcomes(db) == ["done"], WAIT, "the end of the one that ran")


def test_a_worker_that_stops_claims_nothing_more(broker: PostgresBroker, db: psycopg.Connection) -> None:
    started, go_on = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def block() -> None:
        started.set()
        go_on.wait(WAIT)

    block.send()
    with working(broker, threads=1) as worker:
        assert started.wait(WAIT)
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        wait_until(lambda: not worker.workers[0].running, WAIT, "the beginning of the end")

        block.send()

        go_on.set()
        stopping.join(WAIT)
        assert not stopping.is_alive()
    assert column(db, "SELECT token FROM worker.job") == [0]


def test_a_worker_can_be_followed_by_another_on_the_same_broker(broker: PostgresBroker, db: psycopg.Connection) -> None:
    idle = an_actor(broker)
    idle.send()
    with working(broker) as worker:
        broker.join("default", timeout=WAIT_MS)
    broker.middleware = [known for known in broker.middleware if getattr(known, "worker", None) is not worker]

    with working(broker):
        idle.send()
        broker.join("default", timeout=WAIT_MS)

    assert outcomes(db) == ["done", "done"]


def test_nothing_remains_of_a_broker_that_was_closed(database: str, db: psycopg.Connection) -> None:
    broker = PostgresBroker(database, schema="worker")
    idle = an_actor(broker)
    threads = set(threading.enumerate())
    with working(broker):
        idle.send()
        broker.join("default", timeout=WAIT_MS)

    broker.close()

    assert num_sessions(db, "carpool") == 0
    assert column(db, "SELECT id FROM worker.worker") == []
    wait_until(lambda: set(threading.enumerate()) <= threads, WAIT, "the end of its threads")


def test_closing_a_broker_twice_is_harmless(broker: PostgresBroker) -> None:
    broker.declare_queue("default")
    broker.consume("default")

    broker.close()
    broker.close()


PROGRAM = """
import sys, time, dramatiq
from worker import PostgresBroker

broker = PostgresBroker(sys.argv[1], schema="worker")

@dramatiq.actor(broker=broker)
def hold(n):
    print("running", flush=True)
    time.sleep(600)

dramatiq.Worker(broker, worker_threads=1).start()
time.sleep(600)
"""


def test_the_jobs_of_a_worker_that_was_killed_run_again(
    broker: PostgresBroker, database: str, db: psycopg.Connection, tmp_path: Path
) -> None:
    ran: list[int] = []

    @dramatiq.actor(broker=broker)
    def hold(n: int) -> None:
        ran.append(n)

    for n in range(2):
        hold.send(n)
    with a_program(PROGRAM, [database], tmp_path) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "running\n"
        wait_until(lambda: states(db) == ["running"] * 2, WAIT, "the claim ahead")

        victim.kill()
        victim.wait(WAIT)

    with working(broker):
        broker.join("default", timeout=WAIT_MS)
    assert sorted(ran) == [0, 1]


@contextmanager
def a_program(text: str, arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    path = folder / "program.py"
    path.write_text(text, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(path), *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
