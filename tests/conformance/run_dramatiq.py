"""
Dramatiq's own tests, run against our broker: `python -m tests.conformance.run_dramatiq CHECKOUT [pytest arguments]`.

CHECKOUT is a copy of Dramatiq's repository at the version that is installed. Its tests run unchanged, with our broker
under the name of Dramatiq's StubBroker and with Dramatiq's own Worker; on a fresh database of the server that
WORKER_TEST_DATABASE_URL names, else of an embedded one. Needs `pip install pika redis`; a Redis server is used when
one answers. A few tests allow 0.2 s for a worker's start and ten retries, which takes half of that on an idle machine
and more than all of it on a busy one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conformance import stand_in
from worker import embedded
from worker.queue.schema import Schema

# Every file of theirs that needs a broker, or what runs on one. The others are about other brokers (redis, rabbitmq,
# benchmarks) or about none (canteen, cli, common, pidfile, types, watch).
FILES = (
    "test_actors.py",
    "test_barrier.py",
    "test_broker.py",
    "test_bucket_rate_limiter.py",
    "test_callbacks.py",
    "test_composition.py",
    "test_concurrent_rate_limiter.py",
    "test_encoders.py",
    "test_generic_actors.py",
    "test_messages.py",
    "test_results.py",
    "test_stub_broker.py",
    "test_window_rate_limiter.py",
    "test_worker.py",
    "middleware",
)

_NO_BROKER = "no broker takes part"
_RABBITMQ = "its subject is Dramatiq's RabbitMQ broker"
_POLLED = "wants waiters to wake within 10 ms of each other; ours look every 50 ms, and hold no connection meanwhile"
_OUTERMOST = "expects AgeLimit first of all middleware; ours begins with the job's transaction"

# What does not run, and why. Nothing else is left out.
DESELECTED = {
    "test_barrier.py::test_barriers_can_block[postgres]": _POLLED,
    "middleware/test_asyncio.py::test_event_loop_thread_run_coroutine_interrupted": (
        f"{_NO_BROKER}; its exception hits pytest itself when the machine is busy"
    ),
    "middleware/test_prometheus.py::test_prometheus_middleware_exposes_metrics": (
        f"{_NO_BROKER}; needs prometheus_client and a fixed port"
    ),
    "middleware/test_shutdown.py::test_shutdown_notifications_are_received": (
        "expects a job that a shutdown has cut to be dead; ours is given back with its attempt restored"
    ),
    "middleware/test_shutdown.py::test_shutdown_notifications_dont_notify_completed_threads": (
        "the same: it would wait for ever for the job that was given back"
    ),
    "test_actors.py::test_messages_belonging_to_missing_actors_are_rejected": (
        "a job whose actor nobody knows stays in the queue, for the worker of the next deployment"
    ),
    "test_actors.py::test_worker_handles_non_numeric_eta_and_logs_warning": (
        "Dramatiq's worker warns about an eta that it meets; ours is taken off when the job is stored"
    ),
    "test_broker.py::test_broker_middleware_can_be_added_after_other_middleware": _OUTERMOST,
    "test_broker.py::test_broker_middleware_can_be_added_before_other_middleware": _OUTERMOST,
    "test_broker.py::test_broker_uses_rabbitmq_if_not_set": _RABBITMQ,
    "test_broker.py::test_can_instantiate_brokers_without_middleware": _RABBITMQ,
    "test_worker.py::test_workers_process_messages_in_order": (
        "looks for five jobs in the worker's memory 1 ms after the last send; a claim takes a round trip"
    ),
}

# Not `tests`, which is our own package.
_PACKAGE = "dramatiq_tests"


class Report:
    """A pytest plugin that leaves out what is listed, and counts."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self.deselected: set[str] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        out = [item for item in items if _name(item.nodeid) in DESELECTED]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)
        self.deselected = {_name(item.nodeid) for item in out}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test counts once: by its body, or by what kept the body from running or failed after it.
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[_name(report.nodeid)] = report.longrepr[2]

    def __str__(self) -> str:
        counts = ", ".join(f"{self.outcomes[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        lines = [f"{counts}, {len(self.deselected)} deselected"]
        lines += [f"  skipped by the suite itself: {name}: {reason}" for name, reason in sorted(self.skipped.items())]
        lines += [f"  deselected: {name}: {DESELECTED[name]}" for name in sorted(self.deselected)]
        return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the tests of the checkout named first, with the rest given to pytest; returns pytest's exit code."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    report = Report()
    with tempfile.TemporaryDirectory() as folder, fresh_database() as stand_in.database_url:
        tests = copy_tests(Path(arguments[0]), Path(folder))
        files = [str(tests / name) for name in FILES]
        ours = ["--rootdir", folder, "-c", str(Path(folder, "pytest.ini")), "-p", "tests.conformance.fixtures"]
        # Their tests share what they do not clean up, and were never meant to run in another order.
        ours += ["-p", "no:randomly", "-p", "no:cacheprovider"]
        code = pytest.main([*ours, *arguments[1:], *files], plugins=[report])
    print(report)
    return int(code)


def copy_tests(checkout: Path, folder: Path) -> Path:
    """The tests of *checkout* in *folder*, without their conftest, which is about services of Dramatiq's."""
    copied = folder / _PACKAGE
    shutil.copytree(checkout / "tests", copied, ignore=shutil.ignore_patterns("conftest.py", "__pycache__"))
    Path(folder, "pytest.ini").write_text("[pytest]\ntimeout = 120\n", encoding="utf-8")
    return copied


@contextmanager
def fresh_database() -> Iterator[str]:
    """A migrated database, dropped at the end whoever is still connected."""
    if given := os.environ.get("WORKER_TEST_DATABASE_URL"):
        with _created_on(given) as url:
            yield url
    else:
        with embedded.start(fast=True) as postgres, _created_on(postgres.url) as url:
            yield url


@contextmanager
def _created_on(server: str) -> Iterator[str]:
    name = f"worker_conformance_{secrets.token_hex(4)}"
    url = make_conninfo(server, dbname=name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                Schema().migrate(conn)
            yield url
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _name(nodeid: str) -> str:
    """A test as it is listed: file within their tests, then its name, with its parameters if they are listed too."""
    name = nodeid.removeprefix(f"{_PACKAGE}/")
    return name if name in DESELECTED else name.partition("[")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
