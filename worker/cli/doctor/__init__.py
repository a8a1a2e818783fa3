"""`worker doctor`: what could keep jobs from running here, one line each, the remedy beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from worker.cli.settings import NO_DATABASE, database_url, schema_name, setting, settled, several

if TYPE_CHECKING:
    from worker.cli.doctor.checks import Finding


@click.command("doctor")
@setting("--jobs", "Module that declares jobs. Repeat for more.", multiple=True, callback=several)
@setting("--pool-size", "The most connections that one worker holds.", metavar="N")
@database_url
@schema_name
@click.option("--json", "as_json", is_flag=True, help="One object per check.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **flags: Any) -> None:
    """
    Look at the settings, the database and the queue as a worker started here would find them.

    Changes nothing. Exit code 1 if a check fails; a warning is none.
    """
    from worker.cli import exits
    from worker.cli.doctor.checks import examine
    from worker.errors import ConfigError
    from worker.secrecy import without_passwords

    settings = settled(**flags)
    if not settings.config.database_url:
        raise ConfigError(NO_DATABASE)
    findings = list(examine(settings))
    if as_json:
        click.echo(without_passwords(json.dumps([finding._asdict() for finding in findings], indent=2)))
    else:
        for finding in findings:
            click.echo(without_passwords(_line(finding)))
    ctx.exit(exits.FAILED if any(finding.state == "fail" for finding in findings) else exits.OK)


def _line(finding: Finding) -> str:
    remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
    return f"{finding.state:<4}  {finding.check:<10}  {finding.says}{remedy}"
