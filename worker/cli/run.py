"""`worker run`: the service."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from worker.cli.settings import configured, database_url, schema_name, setting, several

if TYPE_CHECKING:
    from worker.config import Config
    from worker.runtime import Reload

_LAST_MOMENT = 5.0


@click.command("run")
@setting(
    "--jobs", "Module that declares jobs; a package with its modules. Repeat for more.", multiple=True, callback=several
)
@setting("--queues", "Queues to serve, separated by commas; all by default.", metavar="A,B")
@setting("--slots", "How many jobs run at once; one per connection for jobs by default.", metavar="N")
@setting("--pool-size", "The most connections ever held, by all processes together.", metavar="N")
@setting("--processes", "How many processes share this budget, under a supervisor; 1 by default.", metavar="N")
@setting("--grace", "Seconds that running jobs get when asked to stop.", metavar="SECONDS")
@setting("--max-jobs", "End a process in order when it has begun so many jobs, to be replaced.", metavar="N")
@setting("--max-memory", "The same when it has grown larger, such as 512MiB.", metavar="SIZE")
@setting("--http", "Serve health and metrics at HOST:PORT or unix:/PATH; off by default.", metavar="ADDRESS")
@database_url
@schema_name
@click.option("--embedded", is_flag=True, help="Use a throw-away Postgres on this machine; gone with this process.")
@click.option("--until-empty", is_flag=True, help="Stop when no job is left to run.")
@click.option("--check", is_flag=True, help="Only look whether the settings and the jobs modules would work.")
@click.pass_context
def command(ctx: click.Context, /, embedded: bool, until_empty: bool, check: bool, **flags: Any) -> None:
    """
    Run jobs and schedules until asked to stop.

    SIGTERM or Ctrl-C: take no new work, let running jobs finish within the grace, give back the rest, close.
    SIGHUP: if new code and settings pass --check, drain and go over to them.
    Each flag replaces the variable named behind it, and that the same setting of the settings file.
    """
    if embedded and flags["database_url"]:
        raise click.UsageError("--embedded brings its own database: leave out --database-url")
    config = configured(until_empty=until_empty or None, **flags)
    if check:
        _check(config, embedded)
        return
    with _embedded(config) if embedded else nullcontext(config) as config:
        code = _run(config, _reload(embedded), lambda: configured(until_empty=until_empty or None, **flags))
    leave(code)
    ctx.exit(code)


def leave(code: int) -> None:
    """End the process, soon, although a job has left a thread: for an executor's the interpreter waits at its end."""
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if left:
        from worker import log

        log.get_logger(__name__).warning("worker.threads_left", threads=[thread.name for thread in left])
        end = threading.Timer(_LAST_MOMENT, os._exit, [code])
        end.daemon = True
        end.start()


@contextmanager
def _embedded(config: Config) -> Iterator[Config]:
    from worker.cli.database import migrate
    from worker.embedded import start
    from worker.queue.schema import Schema

    with start() as server:
        migrate(server.url, Schema(config.schema))
        click.echo(f"embedded Postgres, gone with this process: {server.url}", err=True)
        yield replace(config, database_url=server.url)


def _check(config: Config, embedded: bool) -> None:
    from worker.config import NO_DATABASE
    from worker.errors import ConfigError
    from worker.runtime import rehearse

    if not (config.database_url or embedded):
        raise ConfigError(NO_DATABASE)
    broker = rehearse(config)
    queues = ", ".join(config.queues or sorted(broker.get_declared_queues()))
    click.echo(f"settings and jobs modules are well: {len(broker.actors)} jobs, queues {queues}")


def _reload(embedded: bool) -> Reload:
    from worker.runtime import Reload, command_line

    if embedded:
        return Reload(refusal="a worker with --embedded would lose its database: start it again")
    return Reload(command_line())


def _run(config: Config, reload: Reload, settings: Callable[[], Config]) -> int:
    from worker.config import NO_DATABASE
    from worker.errors import ConfigError

    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    from worker.processes import supervise
    from worker.runtime import run

    several = config.processes > 1
    code = supervise(config, reload=reload, settings=settings) if several else run(config, reload=reload)
    # What is left is Python's own exit, which a late signal could only spoil.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    return code
