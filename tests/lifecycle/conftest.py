"""Workers as an operator runs them: processes, against servers whose logs can be read or that can be restarted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.embedded.processes import require_binaries
from tests.factories import column, own_database, own_server, scalar
from tests.waiting import wait_until
from worker.config import Address
from worker.embedded import EmbeddedPostgres, binaries, shelter
from worker.embedded.account import server_account
from worker.embedded.places import Places
from worker.embedded.postgres import Postgres
from worker.observe import Page
from worker.observe.http import ask
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema

ROOT = Path(__file__).parents[2]
# Generous: it is only waited for in full when the test fails anyway.
WAIT = 30.0
SAMPLE_JOBS = "tests.lifecycle.sample_jobs"


class WorkerProcess:
    """A running `worker run`; its log so far is in a file."""

    def __init__(self, *arguments: str, log: Path, **variables: str) -> None:
        self._log = log
        environment = {**os.environ, "WORKER_LOG_FORMAT": "json", **variables}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", *arguments], cwd=ROOT, stderr=stderr, env=environment
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.said.splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def event(self, name: str) -> dict[str, Any]:
        """The first event *name*, once it is in the log."""

        def found() -> list[dict[str, Any]]:
            assert self.process.poll() is None or name in self.said, f"it ended before {name}:\n{self.said}"
            return [event for event in self.events if event["event"] == name]

        return wait_until(found, WAIT, f"{name} in the worker's log")[0]

    def running(self) -> WorkerProcess:
        """Return self once it takes jobs."""
        self.event("worker.running")
        self.event("dispatcher.connected")
        return self

    @property
    def id(self) -> UUID:
        return UUID(self.event("worker.running")["worker"])

    def send(self, how: signal.Signals) -> None:
        self.process.send_signal(how)

    def wait(self, timeout: float = WAIT) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout:g} s:\n{self.said}") from None

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.send(how)
        return self.wait()


StartWorker = Callable[..., WorkerProcess]
Ask = Callable[[str], Page]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts `worker run` with the sample jobs on a database; what the test leaves alive is killed."""
    with ExitStack() as stack:
        started: list[WorkerProcess] = []

        def start(url: str, *arguments: str, jobs: str = SAMPLE_JOBS, **variables: str) -> WorkerProcess:
            log = tmp_path / f"worker-{len(started)}.log"
            named = {"WORKER_DATABASE_URL": url, **variables}
            process = WorkerProcess("--jobs", jobs, *arguments, log=log, **named)
            started.append(process)
            stack.callback(process.process.wait, WAIT)
            stack.callback(process.process.kill)
            return process

        yield start


@pytest.fixture
def address(tmp_path: Path) -> Address:
    """For `--http`."""
    return Address(path=str(tmp_path / "http"))


@pytest.fixture
def page(address: Address) -> Ask:
    return lambda path: ask(address, path, timeout=WAIT)


class Gate:
    """A pipe that jobs wait at in C, each at one of its own."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)

    def open(self) -> None:
        with suppress(OSError):  # nobody waits there
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def noted(db: psycopg.Connection) -> psycopg.Connection:
    """`db` with the table that the sample jobs write to."""
    db.execute("CREATE TABLE note (word text)")
    return db


@pytest.fixture(scope="session")
def logged_server() -> Iterator[EmbeddedPostgres]:
    """A server of our own, because only its log is ours to read."""
    require_binaries()
    with own_server() as postgres:
        yield postgres


@pytest.fixture
def logged_database(logged_server: EmbeddedPostgres) -> Iterator[str]:
    with own_database(logged_server.url) as url:
        yield url


class RestartableServer:
    """A server that a test may stop and start."""

    def __init__(self, folder: Path) -> None:
        account = server_account()
        self._places = Places.of(folder, account)
        self._places.make(account)
        self._log = self._places.log.open("ab")
        self._server = Postgres(shelter.readable(binaries.find(), account), self._places, account, fast=True)
        self.url = self._places.url

    def start(self) -> None:
        self._server.start(self._log)

    def stop(self) -> None:
        self._server.stop()

    def remove(self) -> None:
        self.stop()
        self._log.close()
        self._places.remove()


@pytest.fixture
def restartable() -> Iterator[RestartableServer]:
    require_binaries()
    with tempfile.TemporaryDirectory(prefix="carpool-restart-") as parent:
        Path(parent).chmod(0o755)
        server = RestartableServer(Path(parent, "pg"))
        try:
            server.start()
            yield server
        finally:
            server.remove()


def send(
    db: psycopg.Connection,
    actor: str,
    queue: str = "default",
    delay: float = 0.0,
    options: dict[str, Any] | None = None,
    **args: Any,
) -> UUID:
    """Enqueue a sample job from outside, as any client with SQL could; returns its id."""
    new = NewJob(uuid7(), queue, actor, 0, delay, time.time(), json.dumps(args), json.dumps(options or {}), None)
    insert(db, Schema(), [new])
    return new.id


def running_in(db: psycopg.Connection, job_id: UUID) -> UUID:
    """The worker that runs the job, once one does."""
    query = "SELECT claimed_by FROM worker.job WHERE id = %s AND state = 'running'"
    return UUID(str(wait_until(lambda: column(db, query, job_id), WAIT, "the job to run")[0]))


def busy_in_sql(db: psycopg.Connection) -> None:
    """Return when a job's query has begun on the server."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep%%'"""
    wait_until(lambda: scalar(db, query), WAIT, "the job's query to begin")


def done(db: psycopg.Connection, job_id: UUID) -> str:
    """The outcome of the job, once it is over."""
    query = "SELECT outcome FROM worker.job_history WHERE id = %s"
    return str(wait_until(lambda: column(db, query, job_id), WAIT, "the job to end")[0])


def row(db: psycopg.Connection, job_id: UUID) -> tuple[Any, ...] | None:
    """State and attempt of a job that is still in the table."""
    return db.execute("SELECT state, attempt FROM worker.job WHERE id = %s", [job_id]).fetchone()


@pytest.fixture
def manager_socket(tmp_path: Path) -> Path:
    """Where `heard` listens."""
    return tmp_path / "notify"


@pytest.fixture
def heard(manager_socket: Path) -> Iterator[list[str]]:
    """What the service manager has been told so far."""
    said: list[str] = []
    over = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(manager_socket))
        manager.settimeout(0.1)

        def listen() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    said.append(manager.recv(4096).decode())

        thread = threading.Thread(target=listen, name="manager")
        thread.start()
        try:
            yield said
        finally:
            over.set()
            thread.join(WAIT)
