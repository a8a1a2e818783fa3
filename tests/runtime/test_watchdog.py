"""The watchdog's own thread, without jobs or a database."""

from __future__ import annotations

from typing import Any

import pytest
from dramatiq.middleware import Interrupt, TimeLimitExceeded

from worker.runtime.watchdog import Watchdog


class SlowGuard:
    """A guard whose cancel waits for the network, and comes too late."""

    due_at, due_reason, delivery = 0.0, TimeLimitExceeded, None

    def __init__(self, happened: list[str]) -> None:
        self._happened = happened

    def fire(self, reason: type[Interrupt], pool: Any) -> bool:
        self._happened.append("cancelled")
        return False


def test_many_slow_cancels_are_not_taken_for_a_process_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(
        "worker.runtime.watchdog.faulthandler.dump_traceback_later", lambda *_, **__: happened.append("end put off")
    )
    watchdog = Watchdog(None)  # type: ignore[arg-type]  # of which no guard here asks anything
    watchdog._guards = {SlowGuard(happened) for _ in range(3)}  # type: ignore[misc]

    watchdog._run_once()

    assert happened == ["end put off", "cancelled"] * 3
