"""The settings that verbs share: each flag, the variable that stands for it, and one line of help."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from worker.config import Config

# Of verbs that cannot start a database themselves.
NO_DATABASE = "no database: set WORKER_DATABASE_URL or pass --database-url (postgresql://user@host/name)"


def setting(flag: str, help_text: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option of `worker.config.Config`; the variable in its help is read there, not by click."""
    variable = f"WORKER_{flag.removeprefix('--').replace('-', '_').upper()}"
    return click.option(flag, help=f"{help_text}  [{variable}]", **attributes)


database_url = setting("--database-url", "Connection string, such as postgresql://user@host/name.", metavar="URL")
schema_name = setting("--schema", "Schema that holds the tables; 'worker' by default.", metavar="NAME")


def configured(**overrides: Any) -> Config:
    """
    The settings from the environment and the flags that were given.

    Raises:
        ConfigError: Some of them cannot work; every one is named.
    """
    from worker.config import Config

    return Config.from_env(os.environ, **overrides)


def names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Callback of an option that takes names separated by commas."""
    if value is None:
        return None
    found = tuple(name.strip() for name in value.split(",") if name.strip())
    if not found:
        raise click.BadParameter("expected names separated by commas")
    return found
