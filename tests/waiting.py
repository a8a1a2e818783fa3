"""Wait for something that another thread or process does: by looking again, never by sleeping for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL = 0.01


def wait_until(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """
    Call *predicate* until it returns something true, and return that.

    Args:
        timeout: Seconds; generous, as it is only waited for in full when the test fails anyway.
        what: The end of the sentence "waited 10 s for ...".

    Raises:
        AssertionError: It was still false at the end; says *what* and what it returned last.
    """
    deadline = time.monotonic() + timeout
    while not (found := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}; the last look gave {found!r}")
        time.sleep(POLL)
    return found
