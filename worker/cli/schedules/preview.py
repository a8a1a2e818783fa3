"""`worker schedules next` and `check`: what is to come, from the text alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from worker.cli import exits
from worker.cli.schedules.options import Instant, as_json, declared, jobs, print_json, print_table
from worker.cli.settings import configured, database_url, schema_name

if TYPE_CHECKING:
    from worker.config import Config
    from worker.schedule.trigger import Trigger


class Timetable(NamedTuple):
    """What a preview needs of a schedule."""

    name: str | None
    trigger: Trigger
    tz: str


@click.command("next")
@click.argument("name", required=False)
@click.option("--cron", "text", metavar="TEXT", help="A crontab instead of a schedule by name: needs no database.")
@click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="The zone of --cron.")
@click.option("--gap", metavar="run|skip", help="Of --cron: a time that the clock skips.")
@click.option("--repeat", metavar="first|both", help="Of --cron: a time that the clock shows twice.")
@click.option("--seconds", is_flag=True, help="Of --cron: six fields, the first is the second.")
@click.option("--from", "start", type=Instant(), metavar="TIME", help="Ticks strictly after this; now by default.")
@click.option("--count", default=5, show_default=True, type=click.IntRange(1, 100_000))
@as_json
@jobs
@database_url
@schema_name
def next_command(
    name: str | None,
    text: str | None,
    tz: str,
    gap: str | None,
    repeat: str | None,
    seconds: bool,
    start: datetime | None,
    count: int,
    as_json: bool,
    jobs: tuple[str, ...],
    **overrides: Any,
) -> None:
    """
    The next ticks of schedule NAME, of a crontab, or of all schedules.

    Looks into the jobs modules first, then into the database. TIME is UTC unless it says otherwise.
    """
    from worker import clock
    from worker.schedule import spec

    if text is not None:
        if name is not None:
            raise click.UsageError("give a NAME or --cron, not both")
        tables = [Timetable(None, spec.crontab(text, tz, gap=gap, repeat=repeat, seconds=seconds), tz)]
    else:
        tables = _timetables(configured(jobs=jobs or None, **overrides), name)
    rows = list(islice(_coming(tables, start or clock.now()), count))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("schedule", "local", "utc", "note"), "no tick is to come")


@click.command("check")
@as_json
@jobs
@click.pass_context
def check_command(ctx: click.Context, as_json: bool, jobs: tuple[str, ...]) -> None:
    """
    All schedules of the jobs modules, without a database: when each ticks next, and what is wrong.

    Ends with 1 if anything is wrong; a time that some clock change skips is only a warning.
    """
    from worker.errors import WorkerError

    rows: list[dict[str, Any]] = []
    for module in configured(jobs=jobs or None).jobs:
        try:
            declared([module])
        except WorkerError as exc:
            rows.append({"schedule": None, "module": module, "problem": str(exc)})
    rows += [_checked(schedule) for schedule in declared([])]
    if as_json:
        print_json(rows)
    else:
        columns = ("schedule", "spec", "tz", "local", "utc", "note", "warning", "place", "problem")
        print_table(rows, columns, "the jobs modules declare no schedules")
    if any(row.get("problem") for row in rows):
        ctx.exit(exits.FAILED)


def _checked(schedule: Any) -> dict[str, Any]:
    from worker import clock
    from worker.schedule.trigger import NEVER
    from worker.schedule.warning import gap_warning

    now = clock.now()
    tick = schedule.trigger.after(now)
    row = {"schedule": schedule.name, "spec": schedule.spec, "tz": schedule.tz, "job": schedule.actor.actor_name}
    coming = _row(Timetable(schedule.name, schedule.trigger, schedule.tz), tick) if tick != NEVER else {"note": "over"}
    return row | coming | {"warning": gap_warning(schedule.trigger, now), "place": schedule.place, "problem": None}


def _timetables(config: Config, name: str | None) -> list[Timetable]:
    from worker.errors import NotFound

    tables = [Timetable(schedule.name, schedule.trigger, schedule.tz) for schedule in declared(config.jobs)]
    if config.database_url:
        tables += _in_database(config, {table.name for table in tables})
    if name is None:
        return tables
    found = [table for table in tables if table.name == name]
    if not found:
        where = "nor in the database" if config.database_url else "and no database was named (WORKER_DATABASE_URL)"
        raise NotFound(f"schedule {name!r} is not declared in {', '.join(config.jobs)}, {where}")
    return found


def _in_database(config: Config, known: set[str | None]) -> list[Timetable]:
    from worker.cli.schedules.reading import stored

    return [Timetable(row.name, row.trigger, row.tz) for row in stored(config) if row.name not in known]


def _coming(tables: Sequence[Timetable], start: datetime) -> Iterator[dict[str, Any]]:
    """The ticks of all *tables* in their order."""
    from worker.schedule.trigger import NEVER

    heap = [(table.trigger.after(start), number) for number, table in enumerate(tables)]
    heapq.heapify(heap)
    while heap and heap[0][0] != NEVER:
        tick, number = heap[0]
        yield _row(tables[number], tick)
        heapq.heapreplace(heap, (tables[number].trigger.after(tick), number))


def _row(table: Timetable, tick: datetime) -> dict[str, Any]:
    from worker.schedule.spec import utc_text
    from worker.schedule.trigger import Cron
    from worker.schedule.zone import zone

    return {
        "schedule": table.name,
        "utc": utc_text(tick),
        "local": tick.astimezone(zone(table.tz)).isoformat(),
        "note": table.trigger.note(tick) if isinstance(table.trigger, Cron) else "",
    }
