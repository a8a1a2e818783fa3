"""`worker enqueue`: send a job by hand."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from worker.cli.jobs import age
from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name, setting, several

if TYPE_CHECKING:
    from dramatiq import Actor, Message

    from worker.config import Config
    from worker.queue.broker import PostgresBroker


def _instant(ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected an instant such as 2030-01-31T09:00:00+01:00") from None
    if at.tzinfo is None:
        raise click.BadParameter(f"{value!r}: expected a time zone, such as {value}+01:00 or {value}Z")
    return at


def _objects(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        given = json.loads(value)
    except ValueError as exc:
        raise click.BadParameter(f"not JSON: {exc}") from None
    if not isinstance(given, dict):
        raise click.BadParameter('expected an object by name, such as {"invoice_id": 42}')
    return given


@click.command("enqueue")
@click.argument("actor")
@click.argument("arguments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--args", "objects", metavar="JSON", callback=_objects, help='Arguments as JSON: {"invoice_id": 42}.')
@click.option("--queue", help="Instead of the job's own.")
@click.option("--delay", metavar="AGE", callback=age, help="When it is due, from now: 90s, 5m, 2h, 1d.")
@click.option("--at", metavar="ISO", callback=_instant, help="When it is due: 2030-01-31T09:00:00+01:00.")
@click.option("--priority", type=int, help="Lower runs sooner.")
@click.option("--unique-key", help="Do nothing if a job with this key waits already.")
@click.option("--tag", "tags", multiple=True, help="A word that finds the job; repeat for more.")
@click.option("--dry-run", is_flag=True, help="Check it, print it, and enqueue nothing.")
@setting(
    "--jobs", "Module that declares jobs; a package with its modules. Repeat for more.", multiple=True, callback=several
)
@schema_name
@database_url
def command(
    actor: str, arguments: tuple[str, ...], objects: dict[str, Any], jobs: str | None, database_url: str | None,
    schema: str | None, config: str | None, dry_run: bool, **options: Any,
) -> None:  # fmt: skip
    """
    Send a job by hand, checked against its signature; prints its id.

    ACTOR is the job's name, NAME=VALUE its arguments: 'worker enqueue charge invoice_id=42 note="by hand"'.
    """
    from worker.errors import ArgumentError, NotFound
    from worker.queue.broker import postgres_broker
    from worker.runtime.modules import load

    settings = configured(jobs=jobs, database_url=database_url, schema=schema, config=config)
    load(settings.jobs)
    broker = postgres_broker()
    declared = broker.actors.get(actor)
    if declared is None:
        raise NotFound(f"job {actor!r} is not there{_nearest(actor, broker.actors)}")
    try:
        message, delay = _message(declared, {**objects, **_texts(declared, arguments)}, broker, options)
        checked = _row(broker, message, delay)
        if dry_run:
            click.echo(json.dumps(checked, indent=2))
            return
        sent = _send(broker, settings, message, delay)
    except ArgumentError as exc:
        raise click.UsageError(str(exc)) from exc
    click.echo(sent.message_id)
    if not getattr(sent, "is_new", True):
        click.echo("worker: nothing was enqueued: this job has the key already", err=True)


def _texts(actor: Actor[..., Any], arguments: tuple[str, ...]) -> dict[str, Any]:
    from worker.queue.actor import Job

    texts = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name:
            raise click.UsageError(f"argument {argument!r}: expected NAME=VALUE, such as invoice_id=42")
        texts[name] = text
    if isinstance(actor, Job):
        return actor.signature.parse(texts)
    return {name: _json_or_text(text) for name, text in texts.items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _message(
    actor: Actor[..., Any], kwargs: dict[str, Any], broker: PostgresBroker, options: dict[str, Any]
) -> tuple[Message[Any], int | None]:
    from worker.queue.actor import Job
    from worker.queue.send_options import milliseconds

    delay: timedelta | None = options.pop("delay")
    queue: str | None = options.pop("queue")
    if delay is not None and options["at"] is not None:
        raise click.UsageError("give --delay or --at, not both")
    if queue is not None and queue not in broker.queues:
        raise click.UsageError(f"queue {queue!r} is not declared by any job{_nearest(queue, broker.queues)}")
    options["unique"] = options.pop("unique_key")
    chosen = {name: value for name, value in options.items() if value not in (None, ())}
    if isinstance(actor, Job):
        kwargs = actor.signature.from_json(kwargs)
    elif "at" in chosen:
        chosen["eta"] = int(chosen.pop("at").timestamp() * 1000)
    message = actor.message_with_options(kwargs=kwargs, **chosen)
    return message if queue is None else message.copy(queue_name=queue), milliseconds(delay)


def _row(broker: PostgresBroker, message: Message[Any], delay: int | None) -> dict[str, Any]:
    new = broker.encode(message, delay)
    return {
        "actor": new.actor,
        "queue": new.queue,
        "priority": new.priority,
        "due_in": round(new.delay, 3),
        "args": message.kwargs if new.args is None else json.loads(new.args),
        "tags": list(new.tags),
        "unique_key": new.key.key if new.key else None,
    }


def _send(broker: PostgresBroker, config: Config, message: Message[Any], delay: int | None) -> Message[Any]:
    from worker.cli.database import connect
    from worker.errors import ConfigError
    from worker.queue.binding import bind
    from worker.queue.schema import Schema

    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    schema = Schema(config.schema)
    with connect(config.session_url, name="worker enqueue") as conn, bind(conn), broker.on(None, schema):
        schema.check(conn)
        return broker.enqueue(message, delay=delay)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names)) or 'none'}"
