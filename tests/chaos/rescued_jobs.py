"""Jobs for `tests.chaos.rescues`."""

from __future__ import annotations

import time

from worker import job


@job(max_retries=0)
def hold() -> None:
    """Runs until it is cancelled, or its worker killed."""
    while True:
        time.sleep(0.01)


@job
def brief() -> None:
    time.sleep(0.05)
