"""`worker connections`: what every live worker's connections are used for, as told by the workers themselves."""

from __future__ import annotations

import json
import sys
from typing import Any, LiteralString

import click

from worker.cli.settings import NO_DATABASE, configured, database_url, schema_name

# Who lives, and what they have answered since they were asked; joined to what the server knows of each session.
READ_ANSWERS: LiteralString = """
    SELECT
        worker.id::text,
        worker.name,
        worker.pool_size,
        coalesce(worker.answered_at > %(asked_at)s, false) AS answered,
        (
            SELECT coalesce(jsonb_agg(checkout || jsonb_build_object('state', activity.state) ORDER BY place), '[]')
            FROM jsonb_array_elements(worker.checkouts) WITH ORDINALITY AS told (checkout, place)
            LEFT JOIN pg_stat_activity AS activity ON activity.pid = (checkout->>'server_pid')::int
        ) AS checkouts
    FROM {schema}.worker
    WHERE lost_at IS NULL AND heartbeat_at > now() - make_interval(secs => lease)
    ORDER BY worker.started_at"""

NOW: LiteralString = "SELECT clock_timestamp()"

# Asked again as often as this: a notification can be lost with the connection that listens.
_ASK_AGAIN = 1.0
_LOOK = 0.05
_WIDE = 240


@click.command("connections")
@database_url
@schema_name
@click.option("--timeout", default=5.0, show_default=True, help="Seconds that workers get to answer.")
@click.option("--json", "as_json", is_flag=True, help="One object per worker.")
@click.pass_context
def command(ctx: click.Context, /, timeout: float, as_json: bool, **overrides: Any) -> None:
    """
    Who has which connection, since when, from which place in the code.

    Each live worker answers for itself. Exit code 1 if one of them did not.
    """
    from worker.errors import ConfigError

    config = configured(**overrides)
    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    answers = _ask(config.session_url, config.schema, timeout)
    if as_json:
        click.echo(json.dumps(answers, indent=2))
    else:
        _print(answers)
    ctx.exit(0 if all(answer["answered"] for answer in answers) else 1)


def _ask(url: str, schema_name: str, timeout: float) -> list[dict[str, Any]]:
    from psycopg import sql
    from psycopg.rows import dict_row

    from worker import clock
    from worker.cli.database import connect
    from worker.queue.schema import Schema

    schema = Schema(schema_name)
    with connect(url, name="worker connections") as conn:
        schema.check(conn)
        (asked_at,) = conn.execute(NOW).fetchone() or (None,)
        deadline = clock.monotonic() + timeout
        ask_at = 0.0
        rows = conn.cursor(row_factory=dict_row)
        while True:
            if clock.monotonic() >= ask_at:
                conn.execute(sql.SQL("NOTIFY {}").format(sql.Identifier(schema.channels["ask"])))
                ask_at = clock.monotonic() + _ASK_AGAIN
            answers = rows.execute(schema.render(READ_ANSWERS).encode(), {"asked_at": asked_at}).fetchall()
            if all(answer["answered"] for answer in answers) or clock.monotonic() >= deadline:
                return [answer if answer["answered"] else {**answer, "checkouts": []} for answer in answers]
            conn.execute("SELECT pg_sleep(%s)", [_LOOK])


def _print(answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    # As wide as it likes where no person looks at it.
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    if not answers:
        console.print("no worker is alive")
    for answer in answers:
        out = answer["checkouts"]
        told = f"{len(out)} of {answer['pool_size']} out" if answer["answered"] else "did not answer"
        console.print(f"{answer['name']}  {answer['id']}  {told}", highlight=False, markup=False)
        if not out:
            continue
        table = Table("held by", "seconds", "session", "state", "last statement", "taken at")
        for checkout in out:
            place = checkout["taken_at"].split(" < ")[0]
            seconds, pid = f"{checkout['seconds']:.1f}", str(checkout["server_pid"])
            statement = checkout["statement"] or ""
            table.add_row(checkout["holder"], seconds, pid, checkout["state"] or "", statement, place)
        console.print(table, markup=False)
