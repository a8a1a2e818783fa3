"""A job that heeds no interrupt: its slot goes to others, within limits, and nothing is upset when it comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from structlog.testing import capture_logs

from tests.factories import column, scalar
from tests.running import WAIT, RunningWorker, error, outcome, running_worker
from tests.runtime.slots import Slots, claim
from tests.runtime.test_health import metric, told
from tests.waiting import wait_until
from worker import Pool, PostgresBroker, exits, job
from worker.queue.settlement import Outcome
from worker.runtime.replacement import Replacement
from worker.runtime.slot_feed import Aside
from worker.runtime.tally import Tally


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body counts as stuck a moment after its interrupt."""
    monkeypatch.setattr("worker.runtime.watchdog._REPORT", 0.05)


@pytest.fixture
def stick(broker: PostgresBroker, enough: threading.Event) -> Any:
    @job(broker=broker, name="stick", timeout=0.05, max_retries=0)
    def stick() -> None:
        assert enough.wait(WAIT)

    return stick


@pytest.fixture
def meet(broker: PostgresBroker) -> Any:
    """Done only where two run at once."""
    together = threading.Barrier(2, timeout=WAIT)

    @job(broker=broker, name="meet", max_retries=0)
    def meet() -> None:
        together.wait()

    return meet


def stuck(worker: RunningWorker, number: int = 1) -> None:
    wait_until(lambda: worker.feed.num_aside == number, WAIT, f"{number} to be put aside")


def job_threads(worker: RunningWorker) -> list[str]:
    alive = {thread.name for thread in threading.enumerate()}
    return sorted(thread.name for thread in worker.threads._threads if thread.name in alive)


def outcomes(db: psycopg.Connection, messages: list[Any]) -> set[str]:
    return {outcome(db, message) for message in messages}


def test_while_a_job_is_stuck_others_run_at_full_width(
    worker: RunningWorker, db: psycopg.Connection, stick: Any, meet: Any
) -> None:
    stick.send()
    stuck(worker)

    assert outcomes(db, [meet.send() for _ in range(20)]) == {"done"}
    assert worker.feed.num_running == 1


def test_what_is_replaced_is_told(
    worker: RunningWorker, db: psycopg.Connection, stick: Any, enough: threading.Event
) -> None:
    with capture_logs() as logs:
        message = stick.send()
        wait_until(lambda: metric(worker, "worker_jobs_stuck"), WAIT, "the gauge")
        during = told(worker.health.live())[1], metric(worker, "worker_jobs_in_progress", queue="default")
        enough.set()
        outcome(db, message)
    wait_until(lambda: not worker.feed.num_running, WAIT, "the end of the run")

    [event] = [entry for entry in logs if entry["event"] == "slot.replaced"]
    said = {name: event[name] for name in ("job_id", "actor", "successor", "stuck", "max_stuck")}
    expected = {"actor": "stick", "successor": f"{event['thread']}.2", "stuck": 1, "max_stuck": 1}
    assert said == {"job_id": message.message_id, **expected}
    assert (during[0]["ok"], during[0]["running"], during[0]["stuck"], during[1]) == (True, 1, 1, 1)
    assert metric(worker, "worker_jobs_stuck") == 0
    assert metric(worker, "worker_slots_replaced_total", queue="default", actor="stick") == 1


def test_one_that_comes_back_is_settled_as_ever_and_its_thread_ends(
    worker: RunningWorker, db: psycopg.Connection, stick: Any, meet: Any, enough: threading.Event
) -> None:
    before = len(job_threads(worker))
    message = stick.send()
    stuck(worker)
    retired = wait_until(lambda: [*worker.threads._retired], WAIT, "its thread to be retired")
    meeting = [meet.send() for _ in range(6)]
    enough.set()

    assert outcome(db, message) == "dead"
    assert "TimeLimitExceeded: it ran longer than its timeout of 0.05 s" in error(db, message)
    for thread in retired:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert outcomes(db, [*meeting, *(meet.send() for _ in range(6))]) == {"done"}
    assert (len(job_threads(worker)), worker.threads.dead, worker.feed.num_aside) == (before, [], 0)


def test_one_that_goes_on_and_returns_has_succeeded(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection, enough: threading.Event
) -> None:
    @job(broker=broker, timeout=0.05, max_retries=0)
    def swallow() -> None:
        with suppress(BaseException):
            enough.wait(WAIT)

    message = swallow.send()
    stuck(worker)
    enough.set()

    assert outcome(db, message) == "done"


def test_of_a_stuck_coroutine_the_slot_goes_to_others(
    worker: RunningWorker, broker: PostgresBroker, db: psycopg.Connection, meet: Any, enough: threading.Event
) -> None:
    @job(broker=broker, timeout=0.05, max_retries=0)
    async def swallow() -> None:
        while not enough.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    before = job_threads(worker)
    message = swallow.send()
    stuck(worker)

    assert outcomes(db, [meet.send() for _ in range(6)]) == {"done"}
    assert (job_threads(worker), worker.threads._retired) == (before, set())
    enough.set()
    assert outcome(db, message) == "done"
    wait_until(lambda: not worker.feed.num_aside, WAIT, "its end")


# Connections


class Width:
    """How many jobs with a connection run at once, at most, and how many sessions there are then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = self.most_sessions = 0

    def __call__(self, conn: Connection) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'carpool %%'"
        sessions = scalar(conn, query)
        with self._lock:
            self.most_sessions = max(self.most_sessions, sessions)
            self._now -= 1


@pytest.mark.parametrize("held", ["lent", "taken"])
def test_a_stuck_job_keeps_its_connection_from_no_job_that_was_claimed_for_it(
    broker: PostgresBroker, database: str, db: psycopg.Connection, meet: Any, enough: threading.Event, held: str
) -> None:
    """Of two connections for jobs it keeps one: beside it two jobs run, and one of them may have the other."""

    @job(broker=broker, timeout=0.05, max_retries=0, name="stick")
    def stick_with_lent(conn: Connection) -> None:
        conn.execute("SELECT 1")
        assert enough.wait(WAIT)

    @job(broker=broker, timeout=0.05, max_retries=0, name="stick_taking")
    def stick_with_taken(pool: Pool) -> None:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            assert enough.wait(WAIT)

    width = Width()

    @job(broker=broker, max_retries=0)
    def write(conn: Connection) -> None:
        width(conn)

    with running_worker(broker, database, pool_size=3, slots=2) as worker, capture_logs() as logs:
        with worker.pool.connection(), worker.pool.connection():
            pass  # from here on nobody waits for one to be made
        (stick_with_lent if held == "lent" else stick_with_taken).send()
        stuck(worker)
        queued = worker.pool.stats().queued_total
        for _ in range(40):
            write.send()
        meeting = [meet.send() for _ in range(4)]
        during = outcomes(db, meeting), outcomes(db, [write.send()])
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 1, WAIT, "the jobs")
        waited = worker.pool.stats().queued_total - queued
        most = width.most
        enough.set()

    assert during == ({"done"}, {"done"})
    assert (most, width.most_sessions, waited) == (1, 3, 0)
    assert [entry for entry in logs if entry["event"] in ("job.no_connection", "job.released")] == []


@pytest.fixture
def slots(broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Slots]:
    @job(broker=broker)
    def plain() -> None: ...

    @job(broker=broker)
    def with_conn(conn: Connection) -> None: ...

    return lambda **numbers: Slots(broker, monkeypatch, **numbers)


def test_what_was_claimed_ahead_and_would_find_no_connection_is_given_back(slots: Callable[..., Slots]) -> None:
    made = slots(slots=2, checkouts=2)
    made.feed.put([claim("with_conn", number) for number in range(4)] + [claim("plain", 4)])

    made.feed.put_aside(claim("with_conn", 0), 1)

    # The one that is aside keeps one connection, the other that runs has the other.
    released = [(UUID(int=number), Outcome.RELEASED) for number in (2, 3)]
    assert [(one.id, one.outcome) for one in made.settled] == released
    assert [one.id.int for one in made.started] == [0, 1, 4]
    [room] = made.feed.rooms()
    assert (room.limit, room.free, room.holding, room.checkouts) == (0, 0, ["with_conn"], 0)


def test_what_comes_of_a_claim_that_was_under_way_is_given_back_too(slots: Callable[..., Slots]) -> None:
    made = slots(slots=2, checkouts=2)
    made.feed.put([claim("with_conn", 0), claim("plain", 1)])
    made.feed.put_aside(claim("with_conn", 0), 1)

    made.feed.put([claim("with_conn", number) for number in (2, 3)])

    assert [one.id.int for one in made.started] == [0, 1, 2]
    assert [one.id.int for one in made.settled] == [3]


def test_when_it_comes_back_there_is_room_for_as_many_as_before(slots: Callable[..., Slots]) -> None:
    made = slots(slots=2, checkouts=2)
    before = made.feed.rooms()
    made.feed.put([claim("with_conn", 0), claim("plain", 1)])
    made.feed.put_aside(claim("with_conn", 0), 1)
    made.feed.finished(claim("plain", 1))
    assert not made.feed.idle.is_set()

    made.feed.finished(claim("with_conn", 0))

    assert made.feed.rooms() == before
    assert made.feed.idle.is_set()


def test_while_one_is_stuck_no_suspect_is_claimed_and_one_that_is_stuck_keeps_its_slot(
    slots: Callable[..., Slots],
) -> None:
    """A suspect runs alone, so that nothing else is blamed should it take its worker along."""
    made = slots(slots=2, checkouts=2)
    made.feed.put([claim("plain", 0)])
    assert made.feed.put_aside(claim("plain", 0), 1)
    assert [room.idle for room in made.feed.rooms()] == [False]
    made.feed.finished(claim("plain", 0))
    made.feed.put([claim("plain", 1, suspect=True)])

    assert made.feed.put_aside(claim("plain", 1, suspect=True), 1) is None
    assert [room.limit for room in made.feed.rooms()] == [0]


def test_what_is_over_by_now_is_not_put_aside(slots: Callable[..., Slots]) -> None:
    made = slots(slots=2, checkouts=2)
    made.feed.put([claim("plain", 0)])
    made.feed.finished(claim("plain", 0))

    assert made.feed.put_aside(claim("plain", 0), 1) is None


@pytest.mark.parametrize(("number", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (20, 10)])
def test_at_most_half_of_the_slots_and_at_least_one_may_be_had_twice(
    slots: Callable[..., Slots], number: int, most: int
) -> None:
    made = slots(slots=number, checkouts=number)
    put_aside = 0
    for each in range(most + 1):
        made.feed.put([claim("plain", each)])
        put_aside += made.feed.put_aside(claim("plain", each), 1) is not None

    assert (put_aside, made.feed.num_aside) == (most, most)


# Beyond the limit, and the end


def test_beyond_the_limit_a_stuck_job_keeps_its_slot_and_ends_the_worker_no_sooner(
    broker: PostgresBroker, database: str, db: psycopg.Connection, stick: Any, enough: threading.Event
) -> None:
    """It may be tidying up, for which `stuck` seconds are given to all."""
    with running_worker(broker, database, stuck=600) as worker:
        messages = [stick.send() for _ in range(2)]
        watchdog = worker.feed._watchdog
        assert watchdog is not None
        wait_until(lambda: watchdog._unreplaced, WAIT, "the second to be refused")
        worker.stop.wait(1.0)  # two looks of the main thread
        assert (worker.supervision.is_running, worker.feed.num_aside, worker.feed.num_running) == (True, 1, 2)
        enough.set()
        outcomes(db, messages)


def test_more_than_may_be_stuck_end_the_worker_like_one(
    broker: PostgresBroker, database: str, db: psycopg.Connection, stick: Any, enough: threading.Event
) -> None:
    with running_worker(broker, database, stuck=4) as worker:
        messages = [stick.send() for _ in range(2)]
        code = worker.supervision.result()
        assert not enough.is_set()

    assert code == exits.INTERNAL
    assert outcomes(db, messages) == {"dead"}
    assert {"it went on after its interrupt" in error(db, message) for message in messages} == {True}


def test_that_the_system_gives_no_threads_is_said_once_until_it_does() -> None:
    given: list[Any] = [RuntimeError("can't start new thread")] * 3
    given += [Aside("job-1", "job-1.2", 1), RuntimeError("can't start new thread")]

    def put_aside(*_: object) -> Aside:
        if isinstance(found := given.pop(0), Aside):
            return found
        raise found

    feed: Any = SimpleNamespace(put_aside=put_aside, max_aside=1)
    guard: Any = SimpleNamespace(delivery=SimpleNamespace(claim=claim("plain", 0)), job_thread=1)
    replace = Replacement(feed, Tally())

    with capture_logs() as logs:
        replaced = [replace(guard) for _ in range(5)]

    assert replaced == [False, False, False, True, False]
    assert [entry["event"] for entry in logs] == ["slot.not_replaced", "slot.replaced", "slot.not_replaced"]


def test_one_that_was_refused_is_replaced_when_another_comes_back(
    broker: PostgresBroker, database: str, db: psycopg.Connection, meet: Any
) -> None:
    gates = {number: threading.Event() for number in (0, 1)}

    @job(broker=broker, timeout=0.05, max_retries=0)
    async def stick(number: int) -> None:
        while not gates[number].is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    with running_worker(broker, database, stuck=600) as worker:
        watchdog = worker.feed._watchdog
        assert watchdog is not None
        stick.send(0)
        stuck(worker)
        stick.send(1)
        wait_until(lambda: watchdog._unreplaced, WAIT, "the second to be refused")
        gates[0].set()
        wait_until(lambda: not watchdog._unreplaced and worker.feed.num_aside == 1, WAIT, "its turn")

        assert outcomes(db, [meet.send() for _ in range(6)]) == {"done"}
        gates[1].set()


def test_a_drain_waits_for_a_stuck_job_as_for_any_other(
    broker: PostgresBroker, database: str, db: psycopg.Connection, stick: Any, enough: threading.Event
) -> None:
    with capture_logs() as logs:
        with running_worker(broker, database, grace=WAIT) as worker:
            message = stick.send()
            stuck(worker)
            worker.stop.ask()
            # Once the drain has begun.
            releasing = threading.Thread(target=lambda: release(logs, enough))
            releasing.start()
        releasing.join(WAIT)

    told_of = {entry["event"]: entry for entry in logs if entry["event"] in ("worker.draining", "worker.drained")}
    assert (told_of["worker.draining"]["running"], told_of["worker.drained"]["left"]) == (1, 0)
    assert [entry for entry in logs if entry["event"] in ("worker.cutting", "job_thread.left")] == []
    assert outcome(db, message) == "dead"
    assert column(db, "SELECT id FROM worker.job") == []


def release(logs: list[Any], enough: threading.Event) -> None:
    wait_until(lambda: any(entry["event"] == "worker.draining" for entry in logs), WAIT, "the drain")
    enough.set()


def test_what_gets_stuck_in_a_drain_is_not_replaced(
    broker: PostgresBroker, database: str, db: psycopg.Connection, enough: threading.Event
) -> None:
    @job(broker=broker, max_retries=0)
    def stick() -> None:
        assert enough.wait(WAIT)

    with capture_logs() as logs:
        with running_worker(broker, database, grace=0.0) as worker:
            stick.send()
            wait_until(lambda: worker.feed.num_running == 1, WAIT, "the run")
            worker.stop.ask()
            releasing = threading.Thread(target=lambda: release_reported(logs, enough))
            releasing.start()
        releasing.join(WAIT)

    assert [entry for entry in logs if entry["event"] == "slot.replaced"] == []
    assert column(db, "SELECT (state, attempt)::text FROM worker.job") == ["(available,0)"]


def release_reported(logs: list[Any], enough: threading.Event) -> None:
    wait_until(lambda: any(entry["event"] == "job.stuck" for entry in logs), WAIT, "the report")
    enough.set()
