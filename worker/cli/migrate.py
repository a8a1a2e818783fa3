"""`worker migrate`: bring the schema to this worker's version."""

from __future__ import annotations

from typing import Any

import click

from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name


@click.command("migrate")
@database_url
@schema_name
def command(**overrides: Any) -> None:
    """
    Create or upgrade the tables of the queue and the schedules.

    Run it before a worker of a new version starts; workers of the old one keep running. A second run finds nothing
    to do. Needs the right to create a schema in the database.
    """
    from worker.cli.database import migrate
    from worker.errors import ConfigError
    from worker.queue.schema import Schema

    config = configured(**overrides)
    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    schema = Schema(config.schema)
    applied = migrate(config.session_url, schema)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo(f"nothing to do: schema {schema.name!r} is up to date")
