"""What the verbs of `worker schedules` share: options, instants in and out, and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from worker.cli.settings import setting

if TYPE_CHECKING:
    from worker.schedule import Schedule

jobs = setting("--jobs", "Module that declares jobs; a package with its modules. Repeat for more.", multiple=True)
as_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")


class Instant(click.ParamType[datetime]):
    """A time in ISO 8601, in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time, expected such as 2026-03-08T05:00:00Z or 2026-03-08 (UTC)", param, ctx)


def declared(modules: Sequence[str]) -> tuple[Schedule, ...]:
    """
    The schedules of the jobs *modules*, which are imported.

    Raises:
        WorkerError: As a module or a declaration in it raised it.
    """
    from worker.runtime.modules import load
    from worker.schedule import registered

    load(modules)
    return registered()


def print_json(rows: Sequence[dict[str, Any]]) -> None:
    """Print an array of objects."""
    click.echo(json.dumps(list(rows), indent=2, ensure_ascii=False, default=_plain))


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], nothing: str) -> None:
    """Print *columns* of *rows* under their names; those that are empty in every row are left out."""
    if not rows:
        click.echo(nothing, err=True)
        return
    shown = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
    cells = [[name.upper() for name in shown]] + [[_text(row.get(name)) for name in shown] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return ""
    plain = _plain(value) if not isinstance(value, str | int | float | dict | list) else value
    return plain if isinstance(plain, str) else json.dumps(plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        from worker.schedule.spec import utc_text

        return utc_text(value)
    return str(value)
