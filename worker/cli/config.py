"""`worker config`: what the settings are, and where each comes from."""

from __future__ import annotations

import json
from typing import Any

import click

from worker.cli.settings import database_url, schema_name, settled


@click.group("config")
def command() -> None:
    """Look at the settings."""


@command.command("show")
@database_url
@schema_name
@click.option("--json", "as_json", is_flag=True, help="One object per setting.")
def show(as_json: bool, **flags: Any) -> None:
    """
    Every setting with its value and its origin: a flag, a variable, a line of the settings file, or the default.

    Passwords are left out. Exit code 2 if a setting cannot work; every mistake is named.
    """
    rows = settled(**flags).shown()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    widths = [max(len(_cell(row[name])) for row in rows) for name in ("setting", "value")]
    for row in rows:
        click.echo(f"{row['setting']:<{widths[0]}}  {_cell(row['value']):<{widths[1]}}  {row['origin']}")


def _cell(value: Any) -> str:
    from worker.config import as_text

    return "-" if value is None else as_text(value)
