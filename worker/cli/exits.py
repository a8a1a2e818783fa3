"""How the command ends: its exit codes, and which error gives which."""

from __future__ import annotations

import re
import sys
import traceback

import click

OK = 0
FAILED = 1
USAGE = 2
DATABASE = 3
SCHEMA = 4
NOT_FOUND = 5
REFUSED = 6
INTERNAL = 70
INTERRUPTED = 130

MEANINGS = {
    OK: "Done, or stopped as asked.",
    FAILED: "What was asked for failed; the message says what.",
    USAGE: "The command line, a setting or a job module is wrong: nothing was started.",
    DATABASE: "The database could not be reached or started.",
    SCHEMA: "The schema is missing or of a version this worker cannot serve: see 'worker migrate'.",
    NOT_FOUND: "There is nothing by that name.",
    REFUSED: "It could not be done as things are now; the message says what is in the way.",
    INTERNAL: "An error in this program; the message holds where.",
    INTERRUPTED: "Stopped by Ctrl-C before the end.",
}

_PASSWORD_IN_URL = re.compile(r"(://?[^\s:@/]*):[^\s@]*@")
_PASSWORD_IN_WORDS = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE)


def report(error: BaseException) -> int:
    """Say *error* on stderr, in one line what a person or a database did wrong; returns the exit code."""
    code = _code_of(error)
    if code == INTERRUPTED:
        text = "stopped"
    elif code == INTERNAL:
        text = "internal error\n" + "".join(traceback.format_exception(error))
    elif code == FAILED:
        text = str(error)
    else:
        text = " ".join(str(error).split())
    click.echo(f"worker: {without_passwords(text)}", file=sys.stderr)
    return code


def without_passwords(text: str) -> str:
    """*text* with the passwords of connection strings blotted out."""
    return _PASSWORD_IN_WORDS.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1:***@", text))


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
