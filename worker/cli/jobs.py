"""`worker jobs`: find jobs, look at one, cancel some, bring dead ones back."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from worker.cli import exits
from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from uuid import UUID

    from worker.queue.jobs import FoundJob, FoundStep, JobFilter, Jobs

_AGE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MANY = 1_000_000_000
_WIDE = 240
_OVER = ("done", "dead")


def age(ctx: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    """Callback of an option that takes a length of time, such as 90m."""
    if value is None:
        return None
    match = _AGE.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r}: expected a number and s, m, h, d or w, such as 90m")
    return timedelta(**{_UNITS[match["unit"]]: float(match["number"])})


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which jobs are chosen, the same for every verb."""
    options = [
        click.option("--queue", "queues", multiple=True, help="Only of this queue; repeat for more."),
        click.option("--actor", "actors", multiple=True, help="Only of this actor; repeat for more."),
        click.option("--tag", "tags", multiple=True, help="Only with this tag; repeat for all of several."),
        click.option("--since", metavar="AGE", callback=age, help="Only those enqueued within, such as 90m or 2d."),
        schema_name,
        database_url,
    ]
    for option in options:
        command = option(command)
    return command


@click.group("jobs", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Find jobs, look at one, cancel some, bring dead ones back."""


@command.command("list")
@_filters
@click.option(
    "--state",
    "states",
    multiple=True,
    help="scheduled, held, throttled, available, running, done or dead; repeat for more.",
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, arguments included.")
def list_(states: tuple[str, ...], limit: int, as_json: bool, **chosen: Any) -> None:
    """The newest jobs; live ones and dead ones by default."""
    from worker.queue.jobs import LIVE

    which = _which(chosen, limit, states or (*LIVE, "dead"))
    with _jobs(chosen) as jobs:
        found = jobs.find(which)
    if as_json:
        click.echo(json.dumps([_object(job) for job in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("id", no_wrap=True), "state", "actor", "queue", "attempt", "enqueued", "progress", "error", box=None
    )
    for job in found:
        error = (job.error or "").strip().splitlines()[-1:] or [""]
        table.add_row(
            str(job.id), job.state, job.actor, job.queue, str(job.attempt), _instant(job.enqueued_at),
            _progress(job)[:80], error[0][:80],
        )  # fmt: skip
    # As wide as it likes where no person looks at it.
    width = None if sys.stdout.isatty() else _WIDE
    Console(width=width, highlight=False, markup=False).print(table)


@command.command()
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@schema_name
@database_url
@click.pass_context
def show(ctx: click.Context, /, job_id: str, as_json: bool, **chosen: Any) -> None:
    """All that is known of one job; the beginning of its ID is enough if no other begins like it."""
    with _jobs(chosen) as jobs:
        found = jobs.find(_which(chosen, 2, job_id=job_id))
        obstacles = [jobs.obstacle(job) for job in found]
        steps = [jobs.steps(job.id) for job in found]
    if len(found) != 1:
        problem = "is not there" if not found else "is the beginning of several"
        click.echo(f"worker: job {job_id} {problem}", err=True)
        ctx.exit(exits.NOT_FOUND)
    known = _object(found[0]) | {"obstacle": obstacles[0], "steps": [_object(step) for step in steps[0]]}
    if as_json:
        click.echo(json.dumps(known, indent=2))
        return
    for name, value in known.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        click.echo(f"{name:16} {text if value is not None else ''}".rstrip())


@command.command()
@click.argument("job_ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--state", "states", multiple=True, help="scheduled, available or running; repeat for more.")
@click.option("--all", "everything", is_flag=True, help="Every job that waits or runs.")
@click.option("--limit", type=click.IntRange(min=1), help="The oldest so many.")
@click.option("--dry-run", is_flag=True, help="Say which, and change nothing.")
@click.pass_context
def cancel(
    ctx: click.Context,
    /,
    job_ids: tuple[str, ...],
    states: tuple[str, ...],
    everything: bool,
    limit: int | None,
    dry_run: bool,
    **chosen: Any,
) -> None:
    """
    End jobs: those that wait are dead at once, those that run are interrupted within a second.

    Each is printed. Exit code 5 if one of the IDs is not there, not unambiguous, over, or being cancelled already.
    """
    filters = (states, chosen["queues"], chosen["actors"], chosen["tags"], chosen["since"])
    if not (job_ids or everything or any(filters)):
        raise click.UsageError("say which: some IDs, a filter such as --actor NAME, or --all")
    from worker.queue.jobs import LIVE

    if unknown := [state for state in states if state not in LIVE]:
        raise click.UsageError(f"--state {unknown[0]}: expected one of {', '.join(LIVE)}")
    count, code = 0, exits.OK
    with _jobs(chosen) as jobs:
        for job_id in job_ids or (None,):
            which = _which(chosen, limit or _MANY, states or LIVE, job_id)
            if job_id is not None and (problem := _uncancellable(jobs, job_id)):
                click.echo(f"worker: job {job_id} {problem}", err=True)
                code = exits.NOT_FOUND
                continue
            ids = _cancellable(jobs, which) if dry_run else jobs.cancel(which)
            if job_id is not None and not ids:
                problem = _uncancellable(jobs, job_id) or "does not match the filter"
                click.echo(f"worker: job {job_id} {problem}", err=True)
                code = exits.NOT_FOUND
            for found in ids:
                click.echo(found)
            count += len(ids)
    click.echo(f"{'would cancel' if dry_run else 'cancelled'}: {count}", err=True)
    ctx.exit(code)


def _cancellable(jobs: Jobs, which: JobFilter) -> list[UUID]:
    return [job.id for job in reversed(jobs.find(which)) if job.cancelled_at is None]


def _uncancellable(jobs: Jobs, job_id: str) -> str | None:
    """Why *job_id* cannot be cancelled; None when it can."""
    found = jobs.find(_which({}, 4, job_id=job_id))
    if len({job.id for job in found}) != 1:
        return "is the beginning of several" if found else "is not there"
    # One id can be both, a dead letter and a job that was sent anew: then the latter is meant.
    job = min(found, key=lambda job: job.state in _OVER)
    if job.state in _OVER:
        return f"is {job.state} already"
    return None if job.cancelled_at is None else "is being cancelled already"


@command.command()
@click.argument("job_ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="Every dead job.")
@click.option("--limit", type=click.IntRange(min=1), help="The oldest so many.")
@click.option("--dry-run", is_flag=True, help="Say which, and change nothing.")
@click.pass_context
def redrive(
    ctx: click.Context, /, job_ids: tuple[str, ...], everything: bool, limit: int | None, dry_run: bool, **chosen: Any
) -> None:
    """
    Make dead jobs available again, as if they had been sent now.

    They do not repeat the steps that they have recorded (ctx.step; see `worker jobs show ID`): they go on where they
    failed.
    """
    if not (job_ids or everything or chosen["queues"] or chosen["actors"] or chosen["tags"] or chosen["since"]):
        raise click.UsageError("say which: some IDs, a filter such as --actor NAME, or --all")
    count = 0
    with _jobs(chosen) as jobs:
        for job_id in job_ids or (None,):
            which = _which(chosen, limit or _MANY, ("dead",), job_id)
            ids = [job.id for job in jobs.find(which)] if dry_run else jobs.redrive(which)
            if job_id is not None and not ids:
                click.echo(f"worker: job {job_id} is not dead, or not there", err=True)
                ctx.exit(exits.NOT_FOUND)
            for found in ids:
                click.echo(found)
            count += len(ids)
    click.echo(f"{'would redrive' if dry_run else 'redriven'}: {count}", err=True)


def _jobs(chosen: dict[str, Any]) -> AbstractContextManager[Jobs]:
    from contextlib import contextmanager

    from worker.cli.database import connect
    from worker.errors import ConfigError
    from worker.queue.jobs import Jobs
    from worker.queue.schema import Schema

    config = configured(database_url=chosen["database_url"], schema=chosen["schema"])
    if not config.database_url:
        raise ConfigError(NO_DATABASE)

    @contextmanager
    def opened() -> Any:
        schema = Schema(config.schema)
        with connect(config.session_url, name="worker jobs") as conn:
            schema.check(conn)
            yield Jobs(conn, schema)

    return opened()


def _which(
    chosen: dict[str, Any], limit: int, states: tuple[str, ...] | None = None, job_id: str | None = None
) -> JobFilter:
    from worker import clock
    from worker.queue.jobs import STATES, JobFilter

    since = chosen.get("since")
    return JobFilter(
        id=job_id,
        states=states or STATES,
        queues=chosen.get("queues") or None,
        actors=chosen.get("actors") or None,
        tags=chosen.get("tags") or None,
        since=None if since is None else clock.now() - since,
        limit=limit,
    )


def _progress(job: FoundJob) -> str:
    """Such as `40% parsing`."""
    fraction = [] if job.progress is None else [f"{job.progress:.0%}"]
    return " ".join([*fraction, job.progress_note or ""]).strip()


def _object(found: FoundJob | FoundStep) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: _plain(value) for name, value in asdict(found).items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | dict | list):
        return value
    return _instant(value) if hasattr(value, "isoformat") else str(value)


def _instant(value: Any) -> str:
    from datetime import UTC

    return str(value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))
