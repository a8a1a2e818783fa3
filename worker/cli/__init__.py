"""The `worker` command. Every verb is a module of its own, and imports what is heavy only when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from worker.cli import exits

_VERBS = {
    "bench": "worker.cli.bench",
    "config": "worker.cli.config",
    "connections": "worker.cli.connections",
    "demo": "worker.cli.demo",
    "doctor": "worker.cli.doctor",
    "enqueue": "worker.cli.enqueue",
    "jobs": "worker.cli.jobs",
    "migrate": "worker.cli.migrate",
    "queues": "worker.cli.queues",
    "run": "worker.cli.run",
    "schedules": "worker.cli.schedules",
    "status": "worker.cli.status",
}


class Verbs(click.Group):
    """Finds a verb when it is asked for, and turns every error into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        verb: click.Command = importlib.import_module(_VERBS[cmd_name]).command
        return verb

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _usage_without_passwords():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _usage_without_passwords():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own, and it knows their exit codes
        except (Exception, KeyboardInterrupt) as exc:
            ctx.exit(exits.report(exc))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), sentence) for code, sentence in exits.MEANINGS.items()])


@contextmanager
def _usage_without_passwords() -> Iterator[None]:
    """What click says about a command line, which it quotes."""
    try:
        yield
    except click.ClickException as exc:
        from worker.secrecy import without_passwords

        exc.message = without_passwords(exc.message)  # type: ignore[misc]  # quoted from the command line as it is
        raise


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="carpool", prog_name="worker", message="%(prog)s %(version)s (%(package)s)")
def main() -> None:
    """Background jobs and cron for Python applications that already have Postgres: one worker, one pool."""
