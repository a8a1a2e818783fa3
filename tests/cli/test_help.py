"""Help is quick and tells everything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import Worker

# What importing `worker` itself brings is not among them: it has to set Dramatiq's broker.
HEAVY = ("rich.progress", "rich.live", "worker.cli.demo.story", "worker.embedded.client", "worker.runtime.run")

IMPORTED_BY_HELP = """
import json, sys
from worker.cli import main
main(sys.argv[1:], standalone_mode=False)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["migrate", "--help"], ["demo", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_BY_HELP, *arguments], capture_output=True, text=True, timeout=30, check=True
    )

    assert not set(HEAVY) & set(json.loads(done.stderr))


def test_help_lists_the_verbs_and_the_exit_codes(worker: Worker) -> None:
    said = worker("--help").stdout

    for expected in ("run ", "migrate ", "demo ", "Exit codes:", "3    The database could not be reached or started."):
        assert expected in said


@pytest.mark.parametrize("name", ["JOBS", "QUEUES", "SLOTS", "POOL_SIZE", "GRACE", "DATABASE_URL", "SCHEMA"])
def test_the_help_of_run_names_the_variable_of_each_setting(worker: Worker, name: str) -> None:
    assert f"[WORKER_{name}]" in worker("run", "--help").stdout


def test_the_version_is_told(worker: Worker) -> None:
    said = worker("--version")

    assert said.exit_code == 0
    assert said.stdout.startswith("worker ")
    assert "carpool" in said.stdout
