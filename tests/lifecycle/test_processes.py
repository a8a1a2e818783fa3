"""`--processes`: several workers under one supervisor, which replaces them, stops them, and answers for all."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.factories import column, scalar
from tests.lifecycle.conftest import (
    WAIT,
    StartWorker,
    WorkerProcess,
    busy_in_sql,
    done,
    row,
    running_in,
    send,
)
from tests.waiting import wait_until
from worker.config import Address
from worker.observe.http import ask

# Three processes share it.
POOL = 9


@pytest.fixture
def start(start_worker: StartWorker, database: str) -> Any:
    def start(*arguments: str, processes: int = 3, **variables: str) -> WorkerProcess:
        sizes = ("--processes", str(processes), "--pool-size", str(POOL))
        return start_worker(database, *sizes, *arguments, **variables)

    return start


def all_work(worker: WorkerProcess, number: int = 3) -> WorkerProcess:
    """Return *worker* once all of its processes take jobs."""

    def work() -> bool:
        assert worker.process.poll() is None, worker.said
        last = [each for each in worker.events if each["event"] == "supervisor.stage"]
        return bool(last) and (last[-1]["stage"], last[-1]["working"]) == ("running", number)

    wait_until(work, 2 * WAIT, f"{number} processes to work:\n{worker.said[-3000:]}")
    return worker


def events(worker: WorkerProcess, name: str, **fields: Any) -> list[dict[str, Any]]:
    return [each for each in worker.events if each["event"] == name and fields.items() <= each.items()]


def pids(worker: WorkerProcess) -> dict[int, int]:
    """By number, the process that was started last."""
    return {each["process"]: each["pid"] for each in events(worker, "process.started")}


def lives(pid: int) -> bool:
    # One that has ended and that nobody has waited for is a zombie: init may take its time.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def process_of(worker: WorkerProcess, worker_id: object) -> int:
    """The number of the process that is the worker of this id."""
    [found] = [each for each in events(worker, "worker.running") if each["worker"] == str(worker_id)]
    return int(found["process"])


SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name LIKE 'carpool %%' AND datname = current_database()"""


@contextmanager
def counting(database: str) -> Iterator[list[int]]:
    """How many sessions the server sees, all the time."""
    counts: list[int] = []
    over = threading.Event()

    def count() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            while not over.is_set():
                counts.append(int(scalar(conn, SESSIONS)))
                time.sleep(0.005)

    thread = threading.Thread(target=count, name="counting")
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join(WAIT)


# Stopping


def test_they_share_the_budget_and_stop_together(start: Any, db: psycopg.Connection) -> None:
    worker = all_work(start("--slots", "7"))

    # They say that they run before their rows are written.
    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.worker") == 3, WAIT, "their rows")
    assert sorted(db.execute("SELECT pool_size, slots FROM worker.worker")) == [(3, 2), (3, 2), (3, 3)]
    children = pids(worker).values()
    assert worker.end() == 0
    assert not any(map(lives, children))
    assert column(db, "SELECT id FROM worker.worker") == []
    assert scalar(db, SESSIONS) == 0
    assert "Traceback" not in worker.said


def test_those_that_end_in_order_leave_no_thread(start: Any) -> None:
    worker = all_work(start())

    assert worker.end() == 0
    assert events(worker, "worker.threads_left") == []


def test_ctrl_c_stops_them_too(start: Any) -> None:
    assert all_work(start()).end(signal.SIGINT) == 0


def test_running_jobs_are_let_finish(start: Any, noted: psycopg.Connection) -> None:
    worker = all_work(start())
    jobs = [send(noted, "work", word=str(number), seconds=1) for number in range(4)]
    busy_in_sql(noted)
    claimed = column(noted, "SELECT id FROM worker.job WHERE state = 'running'")

    assert worker.end() == 0
    assert {job_id for job_id in jobs if row(noted, job_id) is None} >= set(claimed)
    assert column(noted, "SELECT DISTINCT outcome FROM worker.job_history") == ["done"]


def test_a_second_signal_shortens_the_grace_of_all(start: Any, noted: psycopg.Connection) -> None:
    worker = all_work(start("--grace", "600"))
    jobs = [send(noted, "work", word=str(number), seconds=600) for number in range(4)]
    for job_id in jobs:
        running_in(noted, job_id)
    worker.send(signal.SIGTERM)
    wait_until(lambda: len(events(worker, "worker.draining")) == 3, WAIT, "all to drain")

    assert worker.end() == 0
    assert [row(noted, job_id) for job_id in jobs] == [("available", 0)] * 4


def test_a_third_signal_makes_all_leave_at_once(start: Any, db: psycopg.Connection) -> None:
    worker = all_work(start("--grace", "600"))
    for job_id in [send(db, "hang", seconds=600) for _ in range(6)]:
        running_in(db, job_id)
    children = pids(worker).values()
    worker.send(signal.SIGTERM)
    wait_until(lambda: len(events(worker, "worker.draining")) == 3, WAIT, "all to drain")
    worker.send(signal.SIGTERM)
    wait_until(lambda: len(events(worker, "worker.cutting")) == 3, WAIT, "all to be cut")

    assert worker.end() == 128 + signal.SIGTERM
    assert not any(map(lives, children))


def test_when_the_supervisor_is_killed_all_end_within_two_seconds(start: Any, db: psycopg.Connection) -> None:
    worker = all_work(start())
    children = pids(worker).values()
    worker.end(signal.SIGKILL)

    # Of a machine that is not busy; the rest is patience.
    wait_until(lambda: not any(map(lives, children)), WAIT, "all to end")
    stopped = events(worker, "worker.stopped")
    assert [each["code"] for each in stopped] == [0, 0, 0]
    assert min(each["seconds"] for each in stopped) < 2
    assert column(db, "SELECT id FROM worker.worker") == []


def test_when_the_supervisor_is_killed_running_jobs_are_let_finish(start: Any, noted: psycopg.Connection) -> None:
    worker = all_work(start())
    job_id = send(noted, "work", word="hello", seconds=2)
    busy_in_sql(noted)
    children = pids(worker).values()
    worker.end(signal.SIGKILL)

    assert done(noted, job_id) == "done"
    wait_until(lambda: not any(map(lives, children)), WAIT, "all to end")


def test_until_empty_ends_when_nothing_is_left(start: Any, noted: psycopg.Connection) -> None:
    jobs = [send(noted, "note", word=str(number)) for number in range(200)]

    assert start("--until-empty").wait(60) == 0
    assert sorted(column(noted, "SELECT word::int FROM note")) == list(range(len(jobs)))


# Replacing


def test_a_killed_process_is_replaced_and_its_jobs_run_again(start: Any, noted: psycopg.Connection) -> None:
    worker = all_work(start())
    job_id = send(noted, "think", word="hello", seconds=600)
    first = running_in(noted, job_id)
    number = process_of(worker, first)

    os.kill(pids(worker)[number], signal.SIGKILL)

    wait_until(lambda: running_in(noted, job_id) != first, WAIT, "another to run it")
    [ended] = events(worker, "process.ended")
    assert (ended["process"], ended["how"], ended["level"]) == (number, "killed by SIGKILL", "error")
    all_work(worker)
    wait_until(lambda: len(events(worker, "process.started", process=number)) == 2, WAIT, "its successor")
    [error] = scalar(noted, "SELECT options -> 'errors' FROM worker.job WHERE id = %s", job_id)
    assert error["attempt"] == 1
    assert error["error"].startswith("its worker died: killed by SIGKILL; ")
    worker.send(signal.SIGTERM)
    assert worker.end() == 0


def test_a_job_that_kills_its_third_process_is_quarantined_with_how(start: Any, noted: psycopg.Connection) -> None:
    worker = all_work(start())
    job_id = send(noted, "crash")

    assert done(noted, job_id) == "dead"
    memory = r"; \d+ MB in memory at its heartbeat of 20[0-9TZ:.-]+"
    said = scalar(noted, "SELECT error FROM worker.job_dead")
    how = rf"quarantined: 3 workers died while they ran it; the last one: exit code 9{memory}"
    assert re.fullmatch(how, said), said
    errors = [each["error"] for each in scalar(noted, "SELECT options -> 'errors' FROM worker.job_dead")]
    assert len(errors) == 2
    assert all(re.fullmatch(rf"its worker died: exit code 9{memory}", each) for each in errors), errors
    all_work(worker)
    assert worker.end() == 0


def test_a_successor_waits_until_the_server_has_ended_the_sessions_of_the_dead(
    start_worker: StartWorker, logged_database: str
) -> None:
    """As many as are allowed are open, and those of the dead process stand still on the server for a while."""
    sizes = ("--processes", "3", "--pool-size", str(POOL), "--grace", "0.2")
    with psycopg.connect(logged_database, autocommit=True) as db, counting(logged_database) as counts:
        db.execute("CREATE TABLE note (word text)")
        worker = all_work(start_worker(logged_database, *sizes))
        jobs = [send(db, "work", word=str(number), seconds=600) for number in range(6)]
        wait_until(lambda: scalar(db, SESSIONS) == POOL, WAIT, "every session to be open")
        victim = running_in(db, jobs[0])
        number = process_of(worker, victim)
        left = column(db, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s", f"carpool {victim}%")
        for pid in left:
            os.kill(pid, signal.SIGSTOP)
        try:
            os.kill(pids(worker)[number], signal.SIGKILL)
            worker.event("process.ended")
            # Four times as long as its back-off.
            time.sleep(2)
            assert len(events(worker, "process.started", process=number)) == 1
        finally:
            for pid in left:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: len(events(worker, "process.started", process=number)) == 2, WAIT, "its successor")
        all_work(worker)
        assert worker.end() == 0

    assert (len(left), max(counts)) == (3, POOL)


def test_never_more_sessions_than_the_budget_while_processes_die(
    start: Any, database: str, noted: psycopg.Connection
) -> None:
    """Counted on the server; each dies in the middle of queries, whose sessions outlive it for a moment."""
    worker = all_work(start())
    with counting(database) as counts:
        for _ in range(3):
            for number in range(12):
                send(noted, "work", word=str(number), seconds=0.5)
            victim = running_in(noted, send(noted, "work", word="x", seconds=0.5))
            with suppress(ProcessLookupError):
                os.kill(pids(worker)[process_of(worker, victim)], signal.SIGKILL)
            wait_until(lambda: scalar(noted, "SELECT count(*) FROM worker.job") == 0, 60, "the end of all jobs")
            all_work(worker)

    assert len(events(worker, "process.ended")) == 3
    assert len(counts) > 100
    assert 3 <= max(counts) <= POOL
    assert worker.end() == 0


def test_one_that_dies_at_boot_again_and_again_is_started_ever_later(
    start_worker: StartWorker, database: str, tmp_path: Path
) -> None:
    (tmp_path / "fatal_jobs.py").write_text("import os\nos._exit(9)\n")
    worker = start_worker(database, "--processes", "2", "--pool-size", "4", jobs="fatal_jobs", PYTHONPATH=str(tmp_path))

    def deaths() -> list[dict[str, Any]]:
        return events(worker, "process.ended", process=1)

    wait_until(lambda: len(deaths()) >= 3, 2 * WAIT, "the third death")
    ended = deaths()
    assert [each["again_in"] for each in ended[:3]] == [0.5, 1.0, 2.0]
    assert {each["how"] for each in ended} == {"exit code 9"}
    # Each state is told once: one line for each start, and one for each end.
    assert len(events(worker, "process.started", process=1)) - len(deaths()) in (0, 1)
    assert len(events(worker, "supervisor.stage")) == 1
    assert worker.end() == 0


def test_a_mistake_that_no_start_mends_ends_all(start: Any) -> None:
    worker = start("--queues", "nail")

    assert worker.wait() == 2
    assert "queue 'nail': no job of tests.lifecycle.sample_jobs is on it" in worker.said


def test_a_worn_process_is_replaced(start: Any, noted: psycopg.Connection) -> None:
    worker = all_work(start("--max-jobs", "20"))
    for number in range(200):
        send(noted, "note", word=str(number))

    wait_until(lambda: scalar(noted, "SELECT count(*) FROM note") == 200, 60, "all jobs to be done")
    assert sorted(column(noted, "SELECT word::int FROM note")) == list(range(200))
    assert {each["how"] for each in events(worker, "process.ended")} == {"exit code 75"}
    assert worker.end() == 0


# New code

GOOD = """
from psycopg import Connection
from worker import job

@job
def say(conn: Connection) -> None:
    conn.execute("INSERT INTO note VALUES (%s)", ["{word}"])
    conn.execute("SELECT pg_sleep(0.02)")
"""


def test_new_code_comes_one_process_at_a_time_within_the_budget(
    start_worker: StartWorker, database: str, noted: psycopg.Connection, tmp_path: Path
) -> None:
    code, settings = tmp_path / "changing_jobs.py", tmp_path / "settings.toml"
    code.write_text(GOOD.replace("{word}", "old"))
    settings.write_text("processes = 3\npool_size = 9\n")
    worker = all_work(start_worker(
        database, "--config", str(settings), jobs="changing_jobs", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
    ))  # fmt: skip

    with counting(database) as counts:
        code.write_text("nonsense")
        worker.send(signal.SIGHUP)
        assert "NameError" in worker.event("reload.refused")["reason"]
        assert len(events(worker, "process.ended")) == 0

        code.write_text(GOOD.replace("{word}", "new"))
        settings.write_text("processes = 2\npool_size = 8\n")
        worker.send(signal.SIGHUP)
        jobs = [send(noted, "say") for _ in range(300)]
        worker.event("reload.rolling")
        wait_until(lambda: events(worker, "reload.done"), 60, "the new code everywhere")
        for job_id in jobs:
            assert done(noted, job_id) == "done"

    assert max(counts) <= POOL
    assert scalar(noted, "SELECT count(*) FROM note") == 300
    assert column(noted, "SELECT pool_size FROM worker.worker") == [4, 4]
    assert {each["how"] for each in events(worker, "process.ended")} == {"exit code 0"}
    noted.execute("TRUNCATE note")
    for job_id in [send(noted, "say") for _ in range(30)]:
        done(noted, job_id)
    assert column(noted, "SELECT DISTINCT word FROM note") == ["new"]
    assert worker.end() == 0


# What is told


def test_one_address_answers_for_all(start: Any, noted: psycopg.Connection, tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "http"))
    worker = all_work(start("--http", str(address)))

    def page(path: str) -> tuple[int, Any]:
        found = ask(address, path, timeout=WAIT)
        return found.status, json.loads(found.body) if path != "/metrics" else found.body

    def counted() -> float:
        found = re.search(r'worker_jobs_total\{.*actor="note",outcome="done"} (\d+)', page("/metrics")[1])
        return float(found[1]) if found else 0.0

    wait_until(lambda: page("/readyz")[0] == 200, WAIT, "readiness")
    ready = page("/readyz")[1]
    assert [each["process"] for each in ready["processes"]] == [1, 2, 3]
    assert page("/livez")[0] == 200
    for job_id in [send(noted, "note", word=str(number)) for number in range(60)]:
        done(noted, job_id)
    wait_until(lambda: counted() == 60, WAIT, "the sum of what all have done")
    assert "worker_pool_max_connections 9\n" in page("/metrics")[1]
    assert "worker_processes 3\n" in page("/metrics")[1]

    os.kill(pids(worker)[2], signal.SIGKILL)
    worker.event("process.ended")

    # Neither does the sum shrink, nor is the whole taken for dead.
    assert counted() == 60
    assert page("/livez")[0] == 200
    all_work(worker)
    wait_until(lambda: page("/readyz")[0] == 200, WAIT, "readiness again")
    assert worker.end() == 0


def test_the_service_manager_hears_of_the_whole(start: Any, manager_socket: Path, heard: list[str]) -> None:
    worker = all_work(start(NOTIFY_SOCKET=str(manager_socket), WATCHDOG_USEC="1000000"))

    wait_until(lambda: any("WATCHDOG=1" in each for each in heard), WAIT, "the watchdog to be fed")
    ready = [each for each in heard if "READY=1" in each]
    assert ready == ["STATUS=running: 3 of 3 processes work\nREADY=1"]
    assert worker.end() == 0
    assert [each for each in heard if "STOPPING=1" in each]


def test_the_watchdog_starves_while_a_process_stands_still(start: Any, manager_socket: Path, heard: list[str]) -> None:
    """It says nothing any more; half a minute is what booting may take."""
    worker = all_work(start(NOTIFY_SOCKET=str(manager_socket), WATCHDOG_USEC="1000000"))
    child = pids(worker)[2]
    os.kill(child, signal.SIGSTOP)

    def starving() -> bool:
        heard.clear()
        time.sleep(2)
        return not heard

    wait_until(starving, 90, "the watchdog to starve")
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: any("WATCHDOG=1" in each for each in heard), WAIT, "the watchdog to be fed again")
    assert worker.end() == 0
