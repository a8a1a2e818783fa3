"""How the command ends: which error gives which exit code, and what is said about it."""

from __future__ import annotations

import sys
import traceback

import click

from worker.exits import (
    DATABASE,
    FAILED,
    INTERNAL,
    INTERRUPTED,
    MEANINGS,
    NOT_FOUND,
    OK,
    RECYCLED,
    REFUSED,
    SCHEMA,
    USAGE,
)
from worker.secrecy import without_passwords

__all__ = [
    "DATABASE",
    "FAILED",
    "INTERNAL",
    "INTERRUPTED",
    "MEANINGS",
    "NOT_FOUND",
    "OK",
    "RECYCLED",
    "REFUSED",
    "SCHEMA",
    "USAGE",
    "report",
    "without_passwords",
]


def report(error: BaseException) -> int:
    """Say *error* on stderr, in one line what a person or a database did wrong; returns the exit code."""
    code = _code_of(error)
    if code == INTERRUPTED:
        text = "stopped"
    elif code == INTERNAL:
        text = "internal error\n" + "".join(traceback.format_exception(error))
    elif code == FAILED:
        text = str(error)
    elif code == USAGE:
        # Several wrong settings have a line each.
        text = "\n".join(" ".join(line.split()) if not line.startswith("  ") else line for line in _lines(error))
    else:
        text = " ".join(str(error).split())
    click.echo(f"worker: {without_passwords(text)}", file=sys.stderr)
    return code


def _lines(error: BaseException) -> list[str]:
    lines = str(error).splitlines()
    return lines if all(line.startswith("  ") for line in lines[1:]) else [" ".join(lines)]


def _code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    # Not at the top: help and usage errors are told without loading the database driver.
    import psycopg

    from worker import errors

    codes: dict[type[BaseException], int] = {
        errors.SchemaError: SCHEMA,
        errors.DatabaseUnavailable: DATABASE,
        errors.EmbeddedError: DATABASE,
        errors.ConfigError: USAGE,
        errors.SignatureError: USAGE,
        errors.NotFound: NOT_FOUND,
        errors.Refused: REFUSED,
        errors.WorkerError: FAILED,
        psycopg.OperationalError: DATABASE,
        psycopg.Error: FAILED,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), INTERNAL)
