"""`worker queues`: look at them, pause and resume them, limit them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.queue.queue_limit import QueueLimit
    from worker.queue.queues import FoundQueue, Queues

_WIDE = 240

_name = click.argument("name", required=False)
_actor = click.option("--actor", metavar="NAME", help="An actor, in every queue, instead of a queue.")


@click.group("queues", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look at queues, pause and resume them, limit them."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one for each queue.")
@schema_name
@database_url
def list_(as_json: bool, **overrides: Any) -> None:
    """Every queue: what waits, runs, is for later or dead; and why it does not move."""
    with _queues(overrides) as queues:
        found, actors = queues.list(), queues.paused_actors()
    if as_json:
        import json

        click.echo(json.dumps([_object(queue, actors) for queue in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    numbers = [Column(name, justify="right") for name in ("waiting", "running", "scheduled", "dead", "oldest")]
    table = Table(Column("queue", no_wrap=True), *numbers, Column("note"), box=None)
    for queue in found:
        counts = (queue.waiting, queue.running, queue.scheduled, queue.dead)
        oldest = "" if queue.oldest is None else f"{queue.oldest:.0f} s"
        table.add_row(queue.name, *map(str, counts), oldest, "; ".join(_notes(queue)))
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(width=width, highlight=False, markup=False)
    console.print(table)
    for actor, paused_at in actors.items():
        console.print(f"actor {actor} is paused since {_instant(paused_at)}")


@command.command()
@_name
@_actor
@click.option("--force", is_flag=True, help="Also a name that nobody uses yet.")
@schema_name
@database_url
def pause(name: str | None, actor: str | None, force: bool, **overrides: Any) -> None:
    """Start no more jobs of queue NAME on any worker; running ones finish, and sends still work."""
    _check_one(name, actor)
    with _queues(overrides) as queues:
        paused = queues.pause(name, actor=actor, force=force)
    click.echo(f"paused {_named(name, actor)}" if paused else f"{_named(name, actor)} was paused already")


@command.command()
@_name
@_actor
@schema_name
@database_url
def resume(name: str | None, actor: str | None, **overrides: Any) -> None:
    """Start the jobs of queue NAME again."""
    _check_one(name, actor)
    with _queues(overrides) as queues:
        resumed = queues.resume(name, actor=actor)
    click.echo(f"resumed {_named(name, actor)}" if resumed else f"{_named(name, actor)} was not paused")


@command.command()
@click.argument("name")
@click.option("--running", type=int, metavar="N", help="At most so many of its jobs run at once.")
@click.option("--starts", type=int, metavar="N", help="At most so many of its jobs start ...")
@click.option("--per", type=float, metavar="SECONDS", help="... within any so many seconds.")
@click.option("--off", is_flag=True, help="Lift the limit.")
@click.option("--force", is_flag=True, help="Also a name that nobody uses yet.")
@schema_name
@database_url
def limit(
    name: str,
    running: int | None,
    starts: int | None,
    per: float | None,
    off: bool,
    force: bool,
    **overrides: Any,
) -> None:
    """
    Let at most so many jobs of queue NAME run at once, or start within some seconds, on all workers together.

    Each call states the whole limit: what is not named is not limited any more.
    """
    given = (running, starts, per)
    if off and given != (None, None, None):
        raise click.UsageError("--off lifts the whole limit: say it alone")
    if not off and given == (None, None, None):
        raise click.UsageError("say which limit: --running N, --starts N --per SECONDS, or --off")
    from worker.queue.queue_limit import QueueLimit

    now = None if off else QueueLimit.of(name, running, starts, per)
    with _queues(overrides) as queues:
        if now is None:
            before = queues.unlimit(name)
        else:
            before = queues.limit(name, running=running, starts=starts, per=per, force=force)
    click.echo(_told(name, now, before))


def _told(name: str, now: QueueLimit | None, before: QueueLimit | None) -> str:
    if now is None:
        return (
            f"queue {name} was not limited" if before is None else f"queue {name} is limited no more (before: {before})"
        )
    return f"limited queue {name} to {now}" + ("" if before is None else f" (before: {before})")


@contextmanager
def _queues(overrides: dict[str, Any]) -> Iterator[Queues]:
    from worker.cli.database import connect
    from worker.errors import ConfigError
    from worker.queue.queues import Queues
    from worker.queue.schema import Schema

    config = configured(**overrides)
    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    schema = Schema(config.schema)
    with connect(config.session_url, name="worker queues") as conn:
        schema.check(conn)
        yield Queues(conn, schema)


def _check_one(name: str | None, actor: str | None) -> None:
    if (name is None) == (actor is None):
        raise click.UsageError("say which: the NAME of a queue, or --actor NAME")


def _named(name: str | None, actor: str | None) -> str:
    return f"queue {name}" if actor is None else f"actor {actor}"


def _notes(queue: FoundQueue) -> Iterator[str]:
    if queue.paused_at is not None:
        yield f"paused since {_instant(queue.paused_at)}"
    if queue.limit is not None:
        yield f"limited to {queue.limit}"
    if not queue.workers and queue.waiting:
        yield "no live worker serves it"
    for actor, jobs in sorted(queue.unknown.items()):
        yield f"{jobs} of actor {actor}, which no live worker knows"


def _object(queue: FoundQueue, paused_actors: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    paused = {name: _instant(paused_at) for name, paused_at in paused_actors.items()}
    return asdict(queue) | {"paused_at": _instant(queue.paused_at), "paused_actors": paused}


def _instant(value: Any) -> str | None:
    from datetime import UTC

    if value is None:
        return None
    return str(value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))
