"""The command, called in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from worker.cli import main

Worker = Callable[..., Result]


@pytest.fixture
def worker() -> Worker:
    """Runs `worker ARGUMENT ...` with the given variables."""

    def run(*arguments: str, **variables: str) -> Result:
        return CliRunner().invoke(main, arguments, env=variables, prog_name="worker")

    return run
