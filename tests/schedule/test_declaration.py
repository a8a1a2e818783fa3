"""Declaring a schedule: what it registers, and what is refused while the module is imported."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.schedule.standins import actor, plain
from worker.errors import ConfigError
from worker.schedule import cron, every, registered
from worker.schedule import declaration as module

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_registry", {})


def test_a_schedule_takes_its_actors_name_and_says_where_it_is() -> None:
    cron("0  3 * * *", tz="Europe/Berlin")(actor("purge"))

    (schedule,) = registered()
    assert (schedule.name, schedule.spec, schedule.tz) == ("purge", "0 3 * * *", "Europe/Berlin")
    assert schedule.place.startswith("tests/schedule/test_declaration.py line ")


def test_the_actor_comes_back_unchanged() -> None:
    purge = actor()

    assert every(minutes=5)(purge) is purge


def test_policies_default_to_one_run_for_what_was_missed_and_no_overlap() -> None:
    every(minutes=5)(actor())

    (schedule,) = registered()
    assert (schedule.missed, schedule.overlap, schedule.grace) == ("last", "skip", 3600.0)


def test_a_job_may_have_two_schedules_by_different_names() -> None:
    job = actor("purge")

    cron("0 3 * * *")(cron("0 15 * * *", name="purge at noon")(job))

    assert [schedule.name for schedule in registered()] == ["purge", "purge at noon"]


def test_an_interval_is_the_sum_of_its_parts() -> None:
    every(hours=1, minutes=0.5, seconds=2)(actor())

    (schedule,) = registered()
    assert schedule.spec == "every 3632 seconds"
    assert schedule.trigger.after(NEW_YEAR).timestamp() % 3632 == 0


def test_cron_with_seconds_ticks_every_two_seconds() -> None:
    cron("*/2 * * * * *", seconds=True)(actor())

    assert registered()[0].trigger.after(NEW_YEAR) == NEW_YEAR.replace(second=2)


def test_the_zone_decides_when_it_ticks() -> None:
    cron("0 3 * * *", tz="Europe/Berlin")(actor())

    assert registered()[0].trigger.after(NEW_YEAR) == NEW_YEAR.replace(hour=2)


def test_an_async_job_without_parameters_can_be_scheduled() -> None:
    async def body() -> None:
        await asyncio.sleep(0)

    every(minutes=5)(plain(body))

    assert registered()[0].actor.actor_name == "body"


def test_the_same_name_twice_is_refused_with_both_places() -> None:
    every(minutes=5)(actor("purge"))
    line = _line()

    with pytest.raises(ConfigError) as refusal:
        every(minutes=6, name="purge")(actor("other"))

    place = "tests/schedule/test_declaration.py line"
    assert f"'purge' is declared twice, in {place} {line - 1} and in {place} {line + 3}" in str(refusal.value)
    assert "pass a different name=" in str(refusal.value)


def test_a_plain_function_is_told_to_put_job_below() -> None:
    def purge() -> None: ...

    with pytest.raises(ConfigError, match=r"@cron above 'purge' found no job: put @job directly below it, in .* line"):
        cron("0 3 * * *")(purge)  # type: ignore[type-var]  # what the test is about


def test_a_job_that_says_it_needs_an_argument_is_refused_by_name() -> None:
    charge = actor("charge")
    charge.required_arguments = ("invoice_id",)  # type: ignore[attr-defined]  # as our own Actor class offers it

    with pytest.raises(ConfigError, match=r"schedule 'nightly': job 'charge' needs the argument 'invoice_id'"):
        cron("0 3 * * *", name="nightly")(charge)


def test_a_job_whose_parameters_are_all_injected_is_welcome() -> None:
    def body(conn: Any) -> None: ...

    purge = plain(body)
    purge.required_arguments = ()  # type: ignore[attr-defined]  # as our own Actor class offers it

    every(minutes=5)(purge)

    assert len(registered()) == 1


def test_a_plain_actor_that_needs_an_argument_is_refused_by_name() -> None:
    def charge(invoice_id: int, note: str = "") -> None: ...

    with pytest.raises(ConfigError, match="job 'charge' needs the argument 'invoice_id'"):
        every(minutes=5)(plain(charge))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tz": "Europe/Berln"}, "tz 'Europe/Berln' is not a known time zone, .* did you mean 'Europe/Berlin'?"),
        ({"tz": "Europe"}, "tz 'Europe' is not a known time zone"),
        ({"tz": "../etc/passwd"}, "is not a known time zone"),
        ({"tz": 1}, "tz 1 is not a known time zone"),
        ({"missed": "none"}, "missed='none' is unknown, expected one of skip, last, all"),
        ({"overlap": "queue"}, "overlap='queue' is unknown, expected one of allow, skip, queue_one"),
        ({"grace": -1}, r"grace -1 is out of range, expected 0 to 3.1536e\+08 seconds"),
        ({"grace": float("inf")}, "grace inf is out of range"),
        ({"grace": "1h"}, "grace='1h', expected a number"),
        ({"name": ""}, "the name cannot be read"),
        ({"name": "a\0b"}, "the name cannot be read, expected a printable text"),
        ({"text": "0 25 * * *"}, r"cron '0 25 \* \* \*', field 2 \(hour\), '25': 25 is out of range"),
    ],
)
def test_a_cron_schedule_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    options = {"text": "0 3 * * *", **options}

    with pytest.raises(ConfigError, match=f"^schedule .*{said}.*, in tests/schedule/test_declaration.py line"):
        cron(**options)(actor())

    assert registered() == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "an interval of 0 s, expected 1 second to 366 days"),
        ({"seconds": 0.5}, "an interval of 0.5 s"),
        ({"minutes": -5}, "an interval of -300 s"),
        ({"hours": 1e9}, "expected 1 second to 366 days"),
        ({"seconds": float("nan")}, "an interval of nan s"),
        ({"seconds": "2"}, "seconds='2', expected a number"),
        ({"seconds": True}, "seconds=True, expected a number"),
    ],
)
def test_an_interval_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^schedule 'purge': .*{said}.*, in tests/schedule/test_declaration.py line"):
        every(**options)(actor())


def _line() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno
