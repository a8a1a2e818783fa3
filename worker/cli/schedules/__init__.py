"""`worker schedules`: what ticks when, what became of it and why; and changing it."""

from __future__ import annotations

import importlib

import click

_VERBS = {
    "list": "reading",
    "next": "preview",
    "check": "preview",
    "why": "reading",
    "add": "changing",
    "change": "changing",
    "remove": "changing",
    "pause": "changing",
    "resume": "changing",
    "run": "changing",
}


class Verbs(click.Group):
    """Imports the module of a verb when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"{__name__}.{_VERBS[cmd_name]}")
        verb: click.Command = getattr(module, f"{cmd_name}_command")
        return verb


@click.group("schedules", cls=Verbs)
def command() -> None:
    """Schedules: list, look ahead, ask why, add, pause, run now."""
