"""The hooks of `async def` jobs: on the loop where nothing in them waits, and on threads of their own where it may."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq import group
from dramatiq.middleware import AgeLimit, Middleware
from dramatiq.results import Results
from psycopg import AsyncConnection

from tests.running import RunningWorker, outcome, running_worker
from worker import Context, Pool, PostgresBroker, PostgresResults, job, tracing
from worker.queue.delivery import Delivery
from worker.runtime.execution import Execution

LOOP, THREADS = "job-loop", "job-hooks"
Where = dict[str, str]
Declare = Callable[[PostgresBroker], Any]


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> Where:
    """On which thread the hooks before the body of `note` were called, and those behind it."""
    found: Where = {}

    def listen(name: str) -> None:
        call = getattr(Execution, name)

        def called(execution: Execution, delivery: Delivery, *args: Any) -> Any:
            if delivery.actor_name == "note":
                found[name] = threading.current_thread().name.partition("_")[0]
            return call(execution, delivery, *args)

        monkeypatch.setattr(Execution, name, called)

    listen("prepare")
    listen("conclude")
    return found


@pytest.fixture
def run(broker: PostgresBroker, database: str, db: psycopg.Connection) -> Callable[[Declare], str]:
    """Declares a job, then starts a worker for it and tells what became of it."""

    def run(declare: Declare) -> str:
        declared = declare(broker)
        with running_worker(broker, database):
            return outcome(db, declared.send())

    return run


def plain(broker: PostgresBroker) -> Any:
    @job(broker=broker)
    async def note() -> None: ...

    return note


def an_actor(broker: PostgresBroker) -> Any:
    @dramatiq.actor(broker=broker)
    async def note() -> None: ...

    return note


def with_a_connection_given_back(broker: PostgresBroker) -> Any:
    @job(broker=broker)
    async def note(pool: Pool) -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")

    return note


@pytest.mark.parametrize("declare", [plain, an_actor, with_a_connection_given_back])
def test_hooks_that_wait_for_nothing_cost_no_thread(
    run: Callable[[Declare], str], where: Where, declare: Declare
) -> None:
    assert run(declare) == "done"

    assert where == {"prepare": LOOP, "conclude": LOOP}


def with_a_connection(broker: PostgresBroker) -> Any:
    @job(broker=broker)
    async def note(conn: AsyncConnection) -> None: ...

    return note


def with_a_result(broker: PostgresBroker) -> Any:
    @job(broker=broker, store_results=True)
    async def note() -> int:
        return 1

    return note


def with_a_next(broker: PostgresBroker) -> Any:
    @job(broker=broker)
    def after(message: Any, result: Any) -> None: ...

    @job(broker=broker, on_success="after")
    async def note() -> None: ...

    return note


def with_results_by_default(broker: PostgresBroker) -> Any:
    broker.add_middleware(Results(backend=PostgresResults(broker), store_results=True))
    return plain(broker)


def with_somebodys_middleware(broker: PostgresBroker) -> Any:
    broker.add_middleware(Middleware())
    return plain(broker)


def with_a_middleware_that_is_more_than_dramatiqs(broker: PostgresBroker) -> Any:
    broker.add_middleware(type("Patient", (AgeLimit,), {})())
    return plain(broker)


@pytest.mark.parametrize(
    "declare",
    [
        with_a_connection,
        with_a_result,
        with_a_next,
        with_results_by_default,
        with_somebodys_middleware,
        with_a_middleware_that_is_more_than_dramatiqs,
    ],
)
def test_hooks_that_may_wait_keep_nobody_from_the_loop(
    run: Callable[[Declare], str], where: Where, declare: Declare
) -> None:
    assert run(declare) == "done"

    assert where == {"prepare": THREADS, "conclude": THREADS}


def test_so_do_those_of_a_groups_member(
    broker: PostgresBroker, worker: RunningWorker, where: Where, db: psycopg.Connection
) -> None:
    over = threading.Event()
    note = plain(broker)

    @job(broker=broker)
    def after() -> None:
        over.set()

    both = group([note.message(), note.message()], broker=broker)
    both.add_completion_callback(after.message())
    both.run()

    assert over.wait(20)
    assert where["conclude"] == THREADS


def test_so_do_those_that_begin_and_end_a_span(
    run: Callable[[Declare], str], where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter may send each span by itself, when it ends."""
    monkeypatch.setattr(tracing, "is_on", lambda: True)

    assert run(plain) == "done"

    assert where == {"prepare": THREADS, "conclude": THREADS}


def test_a_job_is_done_although_opentelemetry_is_just_being_imported(
    run: Callable[[Declare], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: until then the module is there, and empty."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    runs = []

    def importing(broker: PostgresBroker) -> Any:
        @job(broker=broker)
        async def note() -> None:
            runs.append(1)
            monkeypatch.setitem(sys.modules, "opentelemetry.trace", ModuleType("trace"))
            assert tracing.ids() == {}  # of a line of the log

        return note

    assert run(importing) == "done"
    assert runs == [1]


def with_a_transaction_at_its_end(broker: PostgresBroker) -> Any:
    @job(broker=broker)
    async def note(ctx: Context) -> None:
        async with ctx.finish() as conn:
            await conn.execute("SELECT 1")

    return note


def with_a_connection_that_is_kept(broker: PostgresBroker) -> Any:
    kept = []

    @job(broker=broker)
    async def note(pool: Pool) -> None:
        kept.append(await pool.acquire_async())

    return note


def with_an_error(broker: PostgresBroker) -> Any:
    @job(broker=broker, max_retries=0)
    async def note() -> None:
        raise ZeroDivisionError

    return note


@pytest.mark.parametrize(
    ("declare", "became"),
    [
        (with_a_transaction_at_its_end, "done"),
        (with_a_connection_that_is_kept, "done"),
        (with_an_error, "dead"),
    ],
)
def test_hooks_that_have_something_to_end_or_to_render_are_only_behind_the_body_on_a_thread(
    run: Callable[[Declare], str], where: Where, declare: Declare, became: str
) -> None:
    assert run(declare) == became

    assert where == {"prepare": LOOP, "conclude": THREADS}
