"""`worker run`: the service."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from worker.cli.settings import configured, database_url, schema_name, setting, several

if TYPE_CHECKING:
    from worker.config import Config


@click.command("run")
@setting(
    "--jobs", "Module that declares jobs; a package with its modules. Repeat for more.", multiple=True, callback=several
)
@setting("--queues", "Queues to serve, separated by commas; all by default.", metavar="A,B")
@setting("--slots", "How many jobs run at once; one per connection for jobs by default.", metavar="N")
@setting("--pool-size", "The most connections this process ever holds.", metavar="N")
@setting("--grace", "Seconds that running jobs get when asked to stop.", metavar="SECONDS")
@setting("--http", "Serve health and metrics at HOST:PORT or unix:/PATH; off by default.", metavar="ADDRESS")
@database_url
@schema_name
@click.option("--embedded", is_flag=True, help="Use a throw-away Postgres on this machine; gone with this process.")
@click.option("--until-empty", is_flag=True, help="Stop when no job is left to run.")
@click.pass_context
def command(ctx: click.Context, /, embedded: bool, until_empty: bool, **flags: Any) -> None:
    """
    Run jobs and schedules until asked to stop.

    SIGTERM or Ctrl-C: take no new work, let running jobs finish within the grace, give back the rest, close.
    Each flag replaces the variable named behind it, and that the same setting of the settings file.
    """
    if embedded and flags["database_url"]:
        raise click.UsageError("--embedded brings its own database: leave out --database-url")
    config = configured(until_empty=until_empty or None, **flags)
    with _embedded(config) if embedded else nullcontext(config) as config:
        ctx.exit(_run(config))


@contextmanager
def _embedded(config: Config) -> Iterator[Config]:
    from worker.cli.database import migrate
    from worker.embedded import start
    from worker.queue.schema import Schema

    with start() as server:
        migrate(server.url, Schema(config.schema))
        click.echo(f"embedded Postgres, gone with this process: {server.url}", err=True)
        yield replace(config, database_url=server.url)


def _run(config: Config) -> int:
    from worker.config import NO_DATABASE
    from worker.errors import ConfigError

    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    from worker.runtime import run

    code = run(config)
    # What is left is Python's own exit, which a late signal could only spoil.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    return code
