"""`worker schedules add`, `change`, `remove`, `pause`, `resume` and `run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from worker.cli.schedules.options import Instant, declared, jobs
from worker.cli.schedules.reading import opened
from worker.cli.settings import configured, database_url, schema_name


class Arguments(click.ParamType[Any]):
    """A JSON object or array."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = json.loads(value)
        except ValueError as exc:
            self.fail(f"{value!r} is no JSON: {exc}", param, ctx)
        if not isinstance(found, dict | list):
            self.fail(f"{value!r}: expected an object by name such as '{{\"report\": 7}}', or an array", param, ctx)
        return found


_TERMS = (
    click.option("--cron", metavar="TEXT", help="A crontab."),
    click.option("--every", type=float, metavar="SECONDS", help="An interval."),
    click.option("--at", type=Instant(), metavar="TIME", help="Once."),
    click.option("--tz", metavar="ZONE", help="The zone of --cron; UTC by default."),
    click.option("--gap", metavar="run|skip", help="Of --cron: a time that the clock skips."),
    click.option("--repeat", metavar="first|both", help="Of --cron: a time that the clock shows twice."),
    click.option("--seconds", is_flag=True, help="Of --cron: six fields, the first is the second."),
    click.option("--args", type=Arguments(), metavar="JSON", help="The job's arguments, by name or in order."),
    click.option("--missed", metavar="skip|last|all", help="Ticks that nobody fired in time."),
    click.option("--overlap", metavar="allow|skip|queue_one", help="While the job of an earlier tick lives."),
    click.option("--grace", type=float, metavar="SECONDS", help="How long a missed tick is worth firing."),
    click.option("--jitter", type=float, metavar="SECONDS", help="The job waits up to so long."),
    jobs,
    database_url,
    schema_name,
)


def _terms(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_TERMS):
        command = option(command)
    return command


@click.command("add")
@click.argument("name")
@click.option("--job", required=True, metavar="JOB", help="The job to send.")
@_terms
def add_command(name: str, job: str, **options: Any) -> None:
    """Add schedule NAME to the database; running workers notice within two seconds."""
    terms, config = _split(options)
    declared(config.jobs)
    with opened(config) as schedules:
        schedule = schedules.add(name, job, **terms)
    click.echo(f"added {name}: {_next(schedule)}")


@click.command("change")
@click.argument("name")
@click.option("--job", metavar="JOB", help="The job to send.")
@_terms
def change_command(name: str, job: str | None, **options: Any) -> None:
    """Change what is given of schedule NAME, which 'add' made."""
    terms, config = _split(options)
    declared(config.jobs)
    with opened(config) as schedules:
        schedule = schedules.change(name, job=job, **terms)
    click.echo(f"changed {name}: {_next(schedule)}")


@click.command("remove")
@click.argument("name")
@database_url
@schema_name
def remove_command(name: str, **overrides: Any) -> None:
    """Remove schedule NAME, which 'add' made; what became of its ticks stays in the ledger."""
    with opened(configured(**overrides)) as schedules:
        schedules.remove(name)
    click.echo(f"removed {name}")


@click.command("pause")
@click.argument("name")
@database_url
@schema_name
def pause_command(name: str, **overrides: Any) -> None:
    """Stop schedule NAME from firing; its ticks are recorded as skipped."""
    with opened(configured(**overrides)) as schedules:
        schedules.pause(name)
    click.echo(f"paused {name}")


@click.command("resume")
@click.argument("name")
@database_url
@schema_name
def resume_command(name: str, **overrides: Any) -> None:
    """Let schedule NAME fire again from its next tick on."""
    with opened(configured(**overrides)) as schedules:
        resumed = schedules.resume(name)
    click.echo(f"resumed {name}" if resumed else f"{name} was not paused")


@click.command("run")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also while the job of an earlier tick lives.")
@jobs
@database_url
@schema_name
def run_command(name: str, force: bool, jobs: tuple[str, ...], **overrides: Any) -> None:
    """Send the job of schedule NAME now, also while it is paused."""
    config = configured(jobs=jobs or None, **overrides)
    declared(config.jobs)
    with opened(config) as schedules:
        entry = schedules.run(name, force=force)
    click.echo(f"sent job {entry.job_id}")


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What was given of a schedule's terms, and the settings."""
    settings = {name: options.pop(name) for name in ("database_url", "schema")}
    jobs = options.pop("jobs")
    return {name: value for name, value in options.items() if value not in (None, False)}, configured(
        jobs=jobs or None, **settings
    )


def _next(schedule: Any) -> str:
    from worker import clock
    from worker.schedule.spec import utc_text
    from worker.schedule.trigger import NEVER
    from worker.schedule.warning import gap_warning

    tick = schedule.trigger.after(clock.now())
    if warning := gap_warning(schedule.trigger, clock.now()):
        click.echo(f"warning: {warning}", err=True)
    return "it has no tick to come" if tick == NEVER else f"next at {utc_text(tick)}"
