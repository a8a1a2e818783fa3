"""A worker that cannot run says why in one line, and its exit code says of what kind that is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest

from tests.lifecycle.conftest import ROOT, SAMPLE_JOBS, WAIT

USAGE, DATABASE, SCHEMA = 2, 3, 4


class Refusal(NamedTuple):
    code: int
    said: str


def refused(*arguments: str, jobs: str = SAMPLE_JOBS, **variables: str) -> Refusal:
    """How `worker run` ends that cannot even start."""
    command = [sys.executable, "-m", "worker", "run", "--jobs", jobs, *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=WAIT, check=False
    )
    return Refusal(ended.returncode, ended.stderr)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else can get meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_without_a_database_both_ways_to_name_one_are_told() -> None:
    refusal = refused()

    assert refusal.code == USAGE
    assert "WORKER_DATABASE_URL" in refusal.said
    assert "--embedded" in refusal.said


def test_a_database_out_of_reach_is_told_in_one_line(closed_port: int) -> None:
    refusal = refused(WORKER_DATABASE_URL=f"postgresql://someone:sesame@127.0.0.1:{closed_port}/shop")

    assert refusal.code == DATABASE
    assert "Connection refused" in refusal.said
    assert "sesame" not in refusal.said
    assert "Traceback" not in refusal.said


def test_a_missing_schema_is_told_with_the_command(database: str) -> None:
    refusal = refused("--schema", "another", WORKER_DATABASE_URL=database)

    assert refusal.code == SCHEMA
    assert "run 'worker migrate'" in refusal.said


def test_a_schema_that_is_too_new_is_told_with_the_versions(database: str, db: psycopg.Connection) -> None:
    db.execute("INSERT INTO worker.migration (version, name, serves) VALUES (99, 'future', 98)")

    refusal = refused(WORKER_DATABASE_URL=database)

    assert refusal.code == SCHEMA
    assert re.search(r"version 99 .* from version 98 on", refusal.said)


def test_a_pool_of_one_is_told_why_it_cannot_work(database: str) -> None:
    refusal = refused("--pool-size", "1", WORKER_DATABASE_URL=database)

    assert refusal.code == USAGE
    assert (
        "--pool-size='1': expected a whole number from 2 to 10000, because the runtime keeps one connection"
        in refusal.said
    )


def test_an_unknown_jobs_module_is_told_by_its_name(database: str) -> None:
    refusal = refused(jobs="nowhere.jobs", WORKER_DATABASE_URL=database)

    assert refusal.code == USAGE
    assert "'nowhere.jobs' was not found" in refusal.said


def test_a_jobs_module_that_fails_is_told_with_the_line(database: str) -> None:
    refusal = refused(jobs="tests.lifecycle.broken_jobs", WORKER_DATABASE_URL=database)

    assert refusal.code == USAGE
    assert re.search(r"ZeroDivisionError: as an example.*broken_jobs\.py line 3", refusal.said)


def test_an_unknown_queue_is_told_with_the_nearest(database: str) -> None:
    refusal = refused("--queues", "mial", WORKER_DATABASE_URL=database)

    assert refusal.code == USAGE
    assert "did you mean 'mail'?" in refusal.said
