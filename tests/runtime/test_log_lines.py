"""What a job's lines in the log carry, whoever writes them, and what they never show."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import structlog

from tests.running import RunningWorker, outcome
from worker import PostgresBroker, job, log

BOUND = ("job_id", "actor", "queue", "attempt")


@pytest.fixture
def lines() -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """The lines of an event, as a worker writes them."""
    stream = io.StringIO()
    before, config = logging.getLogger().handlers[:], structlog.get_config()
    log.configure("json", stream=stream)
    told = lambda event: [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == event]  # noqa: E731
    yield told
    logging.getLogger().handlers[:] = before
    structlog.configure(**config)


def say() -> None:
    structlog.get_logger("shop").info("said", by="structlog", amount=3)
    logging.getLogger("shop").info("said")


def test_lines_of_a_job_name_it_from_whatever_logger_thread_or_coroutine(
    lines: Callable[[str], list[dict[str, Any]]], broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, queue="billing")
    def plain() -> None:
        say()

    @job(broker=broker, queue="billing")
    async def coroutine() -> None:
        say()
        await asyncio.to_thread(say)
        await asyncio.gather(asyncio.to_thread(say))

    for actor, count in ((plain, 2), (coroutine, 6)):
        sent = actor.send()
        assert outcome(db, sent) == "done"
        mine = [line for line in lines("said") if line.get("job_id") == sent.message_id]
        assert [[line[name] for name in BOUND] for line in mine] == [
            [sent.message_id, actor.actor_name, "billing", 1]
        ] * count


def test_what_a_job_has_bound_is_gone_when_the_next_one_runs(
    lines: Callable[[str], list[dict[str, Any]]], broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def first() -> None:
        structlog.contextvars.bind_contextvars(customer=42)
        say()

    @job(broker=broker)
    def second() -> None:
        say()

    for actor in (first, second, second, second):
        outcome(db, actor.send())

    by_actor = [(line["actor"], line.get("customer")) for line in lines("said")]
    assert set(by_actor) == {("first", 42), ("second", None)}


def test_a_line_outside_of_a_job_names_none(
    lines: Callable[[str], list[dict[str, Any]]], broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def quiet() -> None: ...

    outcome(db, quiet.send())
    say()

    assert [line.keys() & BOUND for line in lines("said")] == [set(), set()]


def test_fields_that_say_that_they_are_secret_are_hidden(lines: Callable[[str], list[dict[str, Any]]]) -> None:
    structlog.get_logger("shop").info(
        "login",
        user="ann",
        password="open sesame",  # noqa: S106  # none of ours
        api_key="k-1",
        headers={"Authorization": "Bearer x"},
        tokens_used=512,
    )

    [line] = lines("login")
    assert (line["user"], line["password"], line["api_key"], line["headers"], line["tokens_used"]) == (
        "ann", "***", "***", {"Authorization": "***"}, 512,
    )  # fmt: skip
