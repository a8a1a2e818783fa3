"""`worker status`: the queues and workers at a glance; or a probe of the worker of this machine."""

from __future__ import annotations

import json
from typing import Any, LiteralString

import click

from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name, setting

READ_STATUS: LiteralString = """
    SELECT
        (SELECT coalesce(jsonb_agg(to_jsonb(depth) ORDER BY queue), '[]') FROM {schema}.queue_depth AS depth),
        (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'id', id, 'name', name, 'queues', queues, 'slots', slots, 'pool_size', pool_size,
                'started_at', to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                'heartbeat_age', extract(epoch FROM now() - heartbeat_at)
            ) ORDER BY started_at), '[]')
            FROM {schema}.worker
            WHERE lost_at IS NULL AND heartbeat_at > now() - make_interval(secs => lease)
        ),
        (SELECT count(*) FROM {schema}.job_dead)"""


@click.command("status")
@database_url
@schema_name
@setting("--http", "Where the worker serves its health: HOST:PORT or unix:/PATH.", metavar="ADDRESS")
@click.option(
    "--probe", type=click.Choice(["live", "ready"]), help="Ask the worker at --http instead; exit code 1 if it is not."
)
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.pass_context
def command(ctx: click.Context, /, probe: str | None, as_json: bool, **flags: Any) -> None:
    """
    What waits, what runs, and who is alive; a probe asks one worker about itself.

    Probes are for images without a tool that speaks HTTP: `live` needs no database, `ready` is off while draining.
    """
    from worker.errors import ConfigError

    config = configured(**flags)
    if probe is not None:
        if config.http is None:
            raise ConfigError("no address to probe: set WORKER_HTTP as for the worker, or pass --http")
        ctx.exit(_probe(config.http, probe))
    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    status = _read(config.session_url, config.schema)
    if as_json:
        click.echo(json.dumps(status, indent=2))
    else:
        _print(status)


def _probe(address: Any, probe: str) -> int:
    from worker.cli import exits
    from worker.observe.http import ask

    try:
        page = ask(address, f"/{probe}z")
    except OSError as exc:
        click.echo(f"no worker answers at {address}: {exc.strerror or exc}", err=True)
        return exits.FAILED
    click.echo(page.body, nl=False)
    return exits.OK if page.status == 200 else exits.FAILED


def _read(url: str, schema_name: str) -> dict[str, Any]:
    from worker.cli.database import connect
    from worker.queue.schema import Schema

    schema = Schema(schema_name)
    with connect(url, name="worker status") as conn:
        schema.check(conn)
        queues, workers, dead = conn.execute(schema.render(READ_STATUS).encode()).fetchone() or ([], [], 0)
    return {"queues": queues, "workers": workers, "dead": dead}


def _print(status: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    queues = Table("queue", "available", "scheduled", "running", "oldest")
    for queue in status["queues"]:
        numbers = [str(queue[name]) for name in ("available", "scheduled", "running")]
        queues.add_row(queue["queue"], *numbers, f"{queue['oldest_seconds']:.0f} s")
    workers = Table("worker", Column("id", no_wrap=True), "queues", "slots", "pool", "heartbeat")
    for worker in status["workers"]:
        served, sizes = ", ".join(worker["queues"] or ["all"]), (str(worker["slots"]), str(worker["pool_size"]))
        workers.add_row(worker["name"], worker["id"], served, *sizes, f"{worker['heartbeat_age']:.1f} s ago")
    for table, none in ((queues, "no job waits or runs"), (workers, "no worker is alive")):
        console.print(table if table.row_count else none, markup=False)
    if status["dead"]:
        console.print(f"{status['dead']} dead jobs", markup=False)
