"""What the supervisor is made of: shares of a budget, back-off, numbers put together, the link to a process."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
from structlog.testing import capture_logs

from tests.waiting import wait_until
from worker.config import Address, Config
from worker.observe.metrics import Counter, Family, Histogram, Sample, only_growing, render, together
from worker.processes.backoff import Backoff
from worker.processes.child import Child, how_it_ended
from worker.processes.pages import Pages
from worker.processes.post import Post
from worker.processes.shares import shares
from worker.processes.supervisor import Supervisor
from worker.queue.last_words import resident
from worker.runtime.link import Fields, Link
from worker.runtime.parent import config_from, config_told
from worker.runtime.reload import Reload
from worker.runtime.wear import Wear

WAIT = 10.0

# Shares


def test_a_budget_is_divided_to_its_last_connection() -> None:
    config = Config(pool_size=20, slots=8, processes=3, http=Address("127.0.0.1", 9191))

    parts = shares(config)

    assert [part.pool_size for part in parts] == [7, 7, 6]
    assert [part.slots for part in parts] == [3, 3, 2]
    assert {(part.processes, part.http, part.budget) for part in parts} == {(1, None, 20)}


def test_without_slots_each_has_as_many_as_connections_for_jobs() -> None:
    config = Config(pool_size=9, processes=3)

    assert (config.job_slots, [part.job_slots for part in shares(config)]) == (6, [2, 2, 2])


def test_settings_come_through_the_link_as_they_were() -> None:
    config = Config(jobs=("a", "b"), queues=("mail",), http=Address(path="/run/x"), max_memory=2**30, grace=0.5)

    assert config_from({**config_told(config), "of_a_newer_version": 1}) == config


# The supervisor's own faults


class DrainingChild:
    """A child that ends a moment after it was asked to, and notes what it was told."""

    def __init__(self, number: int, config: Config) -> None:
        self.number, self.config = number, config
        self.told: list[str] = []
        self.works, self.is_stopping, self.trouble, self.stage = True, False, None, "running"
        self._looks = 0

    def stop(self, signum: int) -> None:
        self.told.append(signal.Signals(signum).name)

    def kill(self) -> None:
        if self.ended() is None:
            self.told.append("SIGKILL")

    def ended(self) -> int | None:
        self._looks += bool(self.told)
        return 0 if self._looks > 2 else None


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr("worker.processes.post.Child", DrainingChild)
    config = Config(processes=2, pool_size=4, grace=1.0)
    return Supervisor(config, SimpleQueue(), Reload(refusal="no"), lambda: config)


def told(supervisor: Supervisor) -> list[list[str]]:
    return [cast("DrainingChild", post.child).told for post in supervisor._posts]


def test_a_fault_of_the_supervisor_lets_its_processes_drain(supervisor: Supervisor) -> None:
    with mock.patch.object(supervisor, "_tell", side_effect=RuntimeError("a bug")), capture_logs() as logged:
        code = supervisor.run()
    supervisor.close()

    assert (code, told(supervisor)) == (70, [["SIGTERM"], ["SIGTERM"]])
    assert [each["event"] for each in logged if each["log_level"] == "critical"] == ["supervisor.failed"]


def test_requests_to_stop_reach_the_processes_also_after_a_fault(supervisor: Supervisor) -> None:
    supervisor._requests.put(signal.SIGUSR1)
    supervisor._requests.put(signal.SIGINT)
    with mock.patch.object(supervisor, "_tell", side_effect=RuntimeError("a bug")):
        supervisor.run()

    assert told(supervisor) == [["SIGTERM", "SIGINT"], ["SIGTERM", "SIGINT"]]


def test_a_fault_while_they_drain_shortens_nobodys_grace(supervisor: Supervisor) -> None:
    supervisor._fill()
    for post in supervisor._posts:
        cast("DrainingChild", post.child).is_stopping = True
        cast("DrainingChild", post.child).told.append("earlier")
    with mock.patch.object(supervisor, "_tell", side_effect=RuntimeError("a bug")):
        supervisor.run()

    assert told(supervisor) == [["earlier"], ["earlier"]]


def test_a_service_manager_hears_of_a_drain_after_a_fault_and_goes_on_waiting(supervisor: Supervisor) -> None:
    fault = mock.patch.object(supervisor, "_tell", side_effect=RuntimeError("a bug"))
    with fault, mock.patch.object(supervisor, "_manager") as manager:
        supervisor.run()

    assert manager.entered.call_args_list[0] == mock.call("draining", "draining after a fault: 2 processes left")
    assert manager.beaten.call_args_list[0] == mock.call(well=True)


def test_a_process_that_does_not_drain_after_a_fault_is_killed_in_the_end(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrainingChild, "ended", lambda self: None)
    monkeypatch.setattr("worker.processes.supervisor._LAST_MOMENT", -0.8)
    with mock.patch.object(supervisor, "_tell", side_effect=RuntimeError("a bug")):
        supervisor.run()
    supervisor.close()

    assert told(supervisor) == [["SIGTERM", "SIGKILL"], ["SIGTERM", "SIGKILL"]]


# Back-off


def test_one_that_dies_young_is_followed_ever_later_and_one_that_has_worked_at_once() -> None:
    backoff = Backoff()

    assert [backoff.after(0.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.after(31.0) == 0.0
    assert backoff.after(1.0) == 0.5


@pytest.mark.parametrize(("worked", "delay"), [(5.0, 0.0), (0.1, 0.5)])
def test_one_that_recycled_itself_is_followed_at_once_if_it_has_worked(worked: float, delay: float) -> None:
    child = cast("Child", SimpleNamespace(worked_for=worked))

    assert Post(1, Config()).vacate(child, as_asked=False, recycled=True) == delay


def test_a_sum_neither_shrinks_nor_doubles_when_a_process_ends_while_it_is_asked() -> None:
    jobs = [Family("worker_jobs_total", "counter", "Jobs.", [Sample({}, 100)])]
    answer: Future[Any] = Future()
    children: list[Any] = []
    pages = Pages(lambda: list(children), list)

    def ask(subject: str) -> Future[Any]:
        # It ends, and is buried, between the question and its answer.
        answer.set_result([each.telling() for each in jobs])
        children.remove(child)
        pages.ended(child, "crashed")
        return answer

    silent: Future[Any] = Future()
    silent.set_exception(ConnectionError("gone"))
    child: Any = mock.Mock(counted=jobs)
    child.ask = lambda subject: silent
    children.append(child)
    assert "worker_jobs_total 100" in pages.metrics().body

    child.ask = ask
    assert "worker_jobs_total 100" in pages.metrics().body
    assert "worker_jobs_total 100" in pages.metrics().body


@pytest.mark.parametrize(
    ("code", "told"), [(9, "exit code 9"), (-signal.SIGSEGV, "killed by SIGSEGV"), (-40, "killed by signal 40")]
)
def test_an_end_is_told_in_words(code: int, told: str) -> None:
    assert how_it_ended(code) == told


def test_where_the_system_gives_no_process_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    post = Post(1, Config())
    with capture_logs() as logged:
        post.fill()

    assert (post.child, post.is_due) == (None, False)
    assert [(each["event"], each["again_in"]) for each in logged] == [("process.not_started", 0.5)]


def test_new_code_that_cannot_be_tried_is_refused() -> None:
    reload = Reload(["/nowhere/python"])
    with capture_logs() as logged:
        reload.ask()

    assert not reload.is_approved()
    assert "/nowhere/python" in logged[-1]["reason"]


# Numbers


def test_counts_of_several_processes_add_up_and_ages_do_not() -> None:
    def process(done: int, age: float, took: float) -> list[Family]:
        jobs, durations = Counter("jobs", "Jobs.", "queue"), Histogram("took", "Seconds.", "queue", buckets=(1.0,))
        jobs.add("mail", amount=done)
        durations.observe(took, "mail")
        oldest = Family("oldest", "gauge", "Age.", [Sample({}, age)], together="max")
        return [jobs.family(), durations.family(), oldest]

    told = [Family.told(family.telling()) for family in process(3, 7.0, 2.0)]
    page = render(together([process(2, 5.0, 0.5), told]))

    assert 'jobs{queue="mail"} 5\n' in page
    assert 'took_bucket{queue="mail",le="1"} 1\n' in page
    assert 'took_bucket{queue="mail",le="+Inf"} 2\n' in page
    assert "oldest 7\n" in page
    assert [family.name for family in only_growing(told)] == ["jobs", "took"]


# The link


class Ends:
    """Both ends of a link in this process."""

    def __init__(self) -> None:
        one, other = socket.socketpair()
        self.heard: list[tuple[str, Fields]] = []
        self.gone: list[str] = []
        self.later: Future[Any] = Future()
        self.one = Link(one, "one", lambda *_: None, lambda: self.gone.append("other"))
        self.other = Link(other, "other", self._hear, lambda: self.gone.append("one"))
        self.one.start()
        self.other.start()

    def _hear(self, subject: str, told: Fields) -> Any:
        self.heard.append((subject, told))
        if subject == "later":
            return self.later
        if subject == "fail":
            raise LookupError("nothing")
        return told


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.one.close()
    ends.other.close()


def test_what_is_told_is_heard_in_order_however_long(ends: Ends) -> None:
    long = "x" * 1_000_000
    ends.one.tell("first", text=long)
    ends.one.tell("second")

    wait_until(lambda: len(ends.heard) == 2, WAIT, "both")
    assert ends.heard == [("first", {"text": long}), ("second", {})]


def test_a_question_is_answered_when_the_answer_is_there(ends: Ends) -> None:
    later = ends.one.ask("later")
    assert ends.one.ask("now", a=1).result(WAIT) == {"a": 1}
    assert not later.done()

    ends.later.set_result(7)
    assert later.result(WAIT) == 7


def test_a_question_that_cannot_be_answered_says_why(ends: Ends) -> None:
    with pytest.raises(ConnectionError, match="LookupError"):
        ends.one.ask("fail").result(WAIT)


def test_when_the_other_end_is_gone_questions_fail_and_it_is_told_once(ends: Ends) -> None:
    waiting = ends.one.ask("later")
    ends.other.close()

    with pytest.raises(ConnectionError):
        waiting.result(WAIT)
    with pytest.raises(ConnectionError):
        ends.one.ask("now").result(WAIT)
    wait_until(lambda: ends.gone == ["other"], WAIT, "the end to be noticed")


# Wear


def test_wear_stops_claims_at_the_last_job_and_once() -> None:
    calls: list[None] = []
    wear = Wear(3, None, full=lambda: calls.append(None))
    wear.begin()
    wear.begin()
    assert (wear.told, calls) == (None, [])

    wear.begin()
    wear.begin()
    assert (wear.told, len(calls)) == ({"jobs": 4, "max_jobs": 3}, 1)


def test_memory_is_what_the_system_says() -> None:
    size = resident()

    assert 10 * 2**20 < size < 10 * 2**30
    assert Wear(None, size * 2, full=list).told is None
    worn = Wear(None, size // 2, full=list).told
    assert worn is not None
    assert worn["memory"] > worn["max_memory"]
