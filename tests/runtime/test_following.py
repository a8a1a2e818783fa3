"""What follows from a job's outcome - pipelines, callbacks, groups, results - exists exactly if the outcome does."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq import Actor, Message, group, pipeline
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import StubBackend as StubRateLimits
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend as StubResults
from psycopg import Connection

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, error, outcome, running_worker
from tests.waiting import wait_until
from worker import Context, PostgresBroker, job

# The worker of the fixture serves `broker`; a test with another broker starts one of its own.
pytestmark = pytest.mark.usefixtures("note")

RESULTS = StubResults()
NOTES = "SELECT word FROM note ORDER BY word"


def until_empty(db: psycopg.Connection) -> None:
    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, WAIT, "the end of all jobs")


def following(actor: Actor[..., Any]) -> Message[Any]:
    """A message that gets its argument from the one before."""
    return actor.message()


def until_noted(db: psycopg.Connection, word: str) -> None:
    wait_until(lambda: word in column(db, NOTES), WAIT, f"the note {word}")


def test_a_pipeline_hands_each_result_to_the_next(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def double(number: int) -> int:
        return 2 * number

    @job(broker=broker)
    def write(conn: Connection, number: int) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [str(number)])

    pipeline([double.message(3), following(double), following(write)], broker=broker).run()

    until_noted(db, "12")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("on_success", "nobody", "ActorNotFound: nobody"), ("pipe_target", {"queue_name": "default"}, "TypeError: ")],
)
def test_a_job_whose_next_step_cannot_be_made_is_dead_and_leaves_nothing(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection, option: str, value: Any, said: str
) -> None:
    """It may have been sent by a service that knows more actors, or by hand."""

    @job(broker=broker)
    def write(conn: Connection) -> None:
        conn.execute("INSERT INTO note VALUES ('a')")

    message = write.send_with_options(**{option: value})

    assert outcome(db, message) == "dead"
    assert said in error(db, message)
    assert column(db, NOTES) == []


def test_a_failing_job_is_retried_although_nobody_knows_its_on_failure(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=1, min_backoff=1, max_backoff=1)
    def fail() -> None:
        raise ValueError("its own reason")

    message = fail.send_with_options(on_failure="nobody")

    assert (outcome(db, message), "its own reason" in error(db, message)) == ("dead", True)
    assert column(db, "SELECT attempt FROM worker.job_dead") == [2]


def test_a_pipeline_of_plain_actors_runs(worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[int] = []

    @dramatiq.actor(broker=broker)
    def double(number: int) -> int:
        seen.append(number)
        return 2 * number

    pipeline([double.message(1), following(double), following(double)], broker=broker).run()

    wait_until(lambda: seen == [1, 2, 4], WAIT, "three runs")


def test_the_next_of_a_pipeline_commits_with_the_effect_of_the_one_before(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def write(conn: Connection, word: str) -> str:
        conn.execute("INSERT INTO note VALUES (%s)", [word])
        return word

    @job(broker=broker)
    def next_one(word: str) -> None: ...

    first = write.message("hello")
    pipeline([first, next_one.message_with_options(delay=3_600_000)], broker=broker).run()
    outcome(db, first)

    assert column(db, "SELECT note.xmin = job.xmin FROM note, worker.job") == [True]


def test_a_retry_in_a_pipeline_makes_its_next_once(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, min_backoff=1, max_backoff=1)
    def stumble(ctx: Context, word: str) -> str:
        if ctx.attempt < 3:
            raise ZeroDivisionError
        return word

    @job(broker=broker)
    def write(conn: Connection, word: str) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [word])

    pipeline([stumble.message("hello"), following(write)], broker=broker).run()
    until_noted(db, "hello")
    until_empty(db)

    assert column(db, NOTES) == ["hello"]


def test_a_pipeline_ends_where_a_job_dies(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def stumble(word: str) -> str:
        raise ZeroDivisionError

    @job(broker=broker)
    def write(conn: Connection, word: str) -> None:
        conn.execute("INSERT INTO note VALUES (%s)", [word])

    first = stumble.message("hello")
    pipeline([first, following(write)], broker=broker).run()
    outcome(db, first)

    assert scalar(db, "SELECT count(*) FROM worker.job") == 0


@pytest.mark.parametrize("with_connection", [True, False], ids=["with a connection", "without"])
def test_a_result_that_the_next_cannot_take_buries_the_job_and_says_so(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection, with_connection: bool
) -> None:
    """Dramatiq logs the hook's error and acknowledges the job: the rest of the pipeline would be gone untold."""

    @job(broker=broker)
    def strange() -> Any:
        return object()

    @job(broker=broker)
    def strange_with_connection(conn: Connection) -> Any:
        conn.execute("INSERT INTO note VALUES ('hello')")
        return object()

    @job(broker=broker)
    def write(word: str) -> None: ...

    first = (strange_with_connection if with_connection else strange).message()
    pipeline([first, following(write)], broker=broker).run()

    assert outcome(db, first) == "dead"
    assert "ArgumentError: job 'write'" in error(db, first)
    assert column(db, NOTES) == []


def test_the_callback_of_a_success_runs(worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[Any] = []

    @dramatiq.actor(broker=broker)
    def after(message: dict[str, Any], result: int) -> None:
        seen.append(result)

    @dramatiq.actor(broker=broker)
    def answer() -> int:
        return 42

    answer.send_with_options(on_success=after)

    wait_until(lambda: seen == [42], WAIT, "the callback")


def test_what_a_declaration_names_by_the_job_itself_follows(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection
) -> None:
    seen: list[str] = []

    @job(broker=broker)
    def after(message: dict[str, Any], result: None) -> None:
        seen.append("success")

    @job(broker=broker)
    def sorry(message: dict[str, Any], error: dict[str, Any]) -> None:
        seen.append("failure")

    @job(broker=broker, on_success=after)
    def good() -> None: ...

    @job(broker=broker, on_failure=sorry, max_retries=0)
    def bad() -> None:
        raise ZeroDivisionError

    good.send()
    bad.send()

    wait_until(lambda: sorted(seen) == ["failure", "success"], WAIT, "both callbacks")


def test_the_callback_of_a_failure_runs(worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection) -> None:
    seen: list[Any] = []

    @dramatiq.actor(broker=broker)
    def after(message: dict[str, Any], exception: dict[str, str]) -> None:
        seen.append(exception["type"])

    @dramatiq.actor(broker=broker, max_retries=0)
    def stumble() -> None:
        raise ZeroDivisionError

    stumble.send_with_options(on_failure=after)

    wait_until(lambda: seen == ["ZeroDivisionError"], WAIT, "the callback")


@pytest.fixture
def extended() -> PostgresBroker:
    """A broker with more of Dramatiq's middleware."""
    broker = PostgresBroker(schema="worker")
    broker.add_middleware(GroupCallbacks(StubRateLimits()))
    broker.add_middleware(Results(backend=RESULTS))
    return broker


def test_a_group_calls_back_when_all_of_it_is_done(
    extended: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    finished = threading.Event()

    @dramatiq.actor(broker=extended)
    def one(number: int) -> None: ...

    @dramatiq.actor(broker=extended)
    def all_done() -> None:
        finished.set()

    together = group([one.message(number) for number in range(5)], broker=extended)
    together.add_completion_callback(all_done.message())
    with running_worker(extended, database):
        together.run()

        assert finished.wait(WAIT)


def test_results_can_be_waited_for(extended: PostgresBroker, database: str) -> None:
    @dramatiq.actor(broker=extended, store_results=True)
    def answer() -> int:
        return 42

    with running_worker(extended, database):
        assert answer.send().get_result(backend=RESULTS, block=True, timeout=20_000) == 42


def test_the_failure_of_a_job_that_is_dead_can_be_waited_for(extended: PostgresBroker, database: str) -> None:
    @dramatiq.actor(broker=extended, store_results=True, max_retries=0)
    def stumble() -> int:
        raise ZeroDivisionError

    with running_worker(extended, database), pytest.raises(ResultFailure, match="ZeroDivisionError"):
        stumble.send().get_result(backend=RESULTS, block=True, timeout=20_000)
