"""The event loop of `async def` jobs: it has one, on one thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.running import WAIT
from tests.waiting import wait_until
from worker.queue.claim import Claim
from worker.runtime.job_loop import JobLoop


@pytest.fixture
def ended() -> list[Claim]:
    return []


@pytest.fixture
def loop(ended: list[Claim]) -> Iterator[JobLoop]:
    """A loop whose jobs are over as soon as they begin."""
    execution: Any = SimpleNamespace(deliver=lambda claim: None)
    with JobLoop(execution, ended.append) as loop:
        yield loop


def claim(number: int) -> Claim:
    return Claim(UUID(int=number), 1, "default", "any", 1, None, "{}", None, None)  # type: ignore[arg-type]


def test_two_threads_that_bring_its_first_jobs_at_once_make_one_loop(
    loop: JobLoop, ended: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = asyncio.new_event_loop
    made: list[asyncio.AbstractEventLoop] = []
    another = threading.Thread(target=loop.start, args=[claim(2)])

    def make_while_another_comes() -> asyncio.AbstractEventLoop:
        if another.ident is None:
            another.start()
            another.join(0.1)  # it comes here, too, or waits
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", make_while_another_comes)
    loop.start(claim(1))
    another.join(WAIT)

    wait_until(lambda: len(ended) == 2, WAIT, "both jobs")
    assert len(made) == 1


def test_a_loop_that_is_about_to_start_is_not_taken_for_one_that_has_ended(
    loop: JobLoop, ended: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, said = threading.Thread.start, []

    def start_after_a_look(thread: threading.Thread) -> None:
        said.append(loop.is_alive)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_after_a_look)
    loop.start(claim(1))

    wait_until(lambda: ended, WAIT, "the job")
    assert (said, loop.is_alive) == ([True], True)
