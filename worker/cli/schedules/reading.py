"""`worker schedules list` and `why`: what the database knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from worker.cli.schedules.options import Instant, as_json, print_json, print_table
from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name

if TYPE_CHECKING:
    from worker.config import Config
    from worker.schedule.schedules import Listed, Schedules


@click.command("list")
@as_json
@database_url
@schema_name
def list_command(as_json: bool, **overrides: Any) -> None:
    """Every schedule in the database: when it ticks next, and what became of its last tick."""
    with opened(configured(**overrides)) as schedules:
        rows = [_row(listed) for listed in schedules.list()]
    if as_json:
        print_json(rows)
    else:
        columns = (
            "schedule",
            "state",
            "spec",
            "tz",
            "job",
            "local",
            "utc",
            "note",
            "warning",
            "last_tick",
            "last_outcome",
            "source",
        )
        print_table(rows, columns, "no schedule is in the database: the first boot of a worker puts them there")


@click.command("why")
@click.argument("name")
@click.option("--at", type=Instant(), metavar="TIME", help="The tick at this time (UTC); the newest by default.")
@as_json
@database_url
@schema_name
def why_command(name: str, at: datetime | None, as_json: bool, **overrides: Any) -> None:
    """Why schedule NAME did or did not fire, in one sentence, from the ledger."""
    with opened(configured(**overrides)) as schedules:
        answer = schedules.why(name, at)
    if as_json:
        entry = asdict(answer.entry) if answer.entry is not None else {}
        print_json([{"schedule": name, "sentence": answer.sentence, **entry}])
    else:
        click.echo(answer.sentence)


@contextmanager
def opened(config: Config, *, name: str = "worker schedules") -> Iterator[Schedules]:
    """
    The schedules of the database, in one transaction.

    Raises:
        ConfigError: No database was named.
        DatabaseUnavailable: It could not be reached.
        SchemaError: It is not one that this worker serves.
    """
    from dramatiq import get_broker

    from worker.cli.database import connect
    from worker.errors import ConfigError
    from worker.queue.broker import PostgresBroker
    from worker.queue.schema import Schema
    from worker.schedule.schedules import Schedules

    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    schema, broker = Schema(config.schema), get_broker()
    with connect(config.session_url, name=name) as conn:
        schema.check(conn)
        if isinstance(broker, PostgresBroker):
            # What is sent goes through our connection, into the schema that was asked for.
            broker._schema = schema
        with conn.transaction():
            yield Schedules(conn, schema)


def stored(config: Config) -> list[Listed]:
    """The schedules in the database, those that still tick."""
    with opened(config) as schedules:
        return [listed for listed in schedules.list() if listed.disabled_at is None]


def _row(listed: Listed) -> dict[str, Any]:
    from worker.schedule.trigger import NEVER, Cron
    from worker.schedule.warning import gap_warning
    from worker.schedule.zone import zone

    trigger = listed.trigger
    tick = NEVER if listed.disabled_at else trigger.after(listed.now)
    state = "disabled" if listed.disabled_at else "paused" if listed.paused_at else "active"
    outcome = (
        listed.newest_outcome if listed.newest_reason is None else f"{listed.newest_outcome}: {listed.newest_reason}"
    )
    return {
        "schedule": listed.name,
        "state": state,
        "spec": listed.spec,
        "tz": listed.tz,
        "job": listed.actor,
        "args": listed.args,
        "missed": listed.missed,
        "overlap": listed.overlap,
        "grace": listed.grace,
        "jitter": listed.jitter,
        "source": listed.source,
        "module": listed.module,
        "utc": None if tick == NEVER else tick,
        "local": None if tick == NEVER else tick.astimezone(zone(listed.tz)).isoformat(),
        "note": trigger.note(tick) if isinstance(trigger, Cron) and tick != NEVER else "",
        "warning": gap_warning(trigger, listed.now),
        "last_tick": listed.newest_tick,
        "last_outcome": outcome,
        "paused_at": listed.paused_at,
        "disabled_at": listed.disabled_at,
        "confirmed_at": listed.confirmed_at,
    }
