"""The settings that verbs share: each flag, the variable that stands for it, and one line of help."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from worker.config import Config
    from worker.settings import Settings

# Of verbs that cannot start a database themselves.
NO_DATABASE = "no database: set WORKER_DATABASE_URL or pass --database-url (postgresql://user@host/name)"


def setting(flag: str, help_text: str, **attributes: Any) -> Callable[[Any], Any]:
    """
    An option of `worker.config.Config`, as a text.

    Its variable, its place in the settings file and what it allows are looked after by `worker.settings`, not by click,
    so that all that is wrong can be told at once.
    """
    variable = f"WORKER_{flag.removeprefix('--').replace('-', '_').upper()}"
    return click.option(flag, help=f"{help_text}  [{variable}]", **attributes)


_config_file = click.option(
    "--config",
    metavar="FILE",
    help="Settings file; else worker.toml, or [tool.worker] of pyproject.toml, here or above.  [WORKER_CONFIG]",
)
_url = setting("--database-url", "Connection string, such as postgresql://user@host/name.", metavar="URL")


def database_url(command: Any) -> Any:
    """The options with which every verb finds its database: the URL, or a settings file that has it."""
    return _url(_config_file(command))


schema_name = setting("--schema", "Schema that holds the tables; 'worker' by default.", metavar="NAME")


def configured(**flags: Any) -> Config:
    """
    The settings from the flags that were given, the environment and the settings file.

    Raises:
        ConfigError: Some of them cannot work; every one is named.
    """
    return settled(**flags).config


def settled(**flags: Any) -> Settings:
    """The same, with the origin of each."""
    from worker.settings import Settings

    return Settings.read(os.environ, flags)


def several(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> str | None:
    """Callback of an option that may be repeated."""
    return ",".join(value) or None
