"""`worker demo`: the whole product on a real folder, checked at the end."""

from __future__ import annotations

import os
import sysconfig

import click


@click.command("demo")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, resolve_path=True))
@click.pass_context
def command(ctx: click.Context, folder: str | None) -> None:
    """
    Take an inventory of FOLDER (Python's standard library by default) and check it.

    Starts a throw-away Postgres and a real worker, sends the jobs from another process, shows the progress, stops
    the worker, and compares the table with a plain walk of the folder. Exit code 0: they are equal. Nothing that it
    started is left, however it ends.
    """
    from worker.cli.demo.story import tell

    ctx.exit(tell(os.fsencode(folder or sysconfig.get_path("stdlib"))))
