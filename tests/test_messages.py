"""Every message of the settings and the command, said once, so that a person can read them in one place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from worker.cli import main
from worker.errors import ConfigError
from worker.settings import Settings


def said(folder: Path, arguments: str, **variables: str) -> str:
    """What `worker ARGUMENTS` says on stderr; `FOLDER` stands for a folder of the test's own."""
    words = [word.replace("FOLDER", str(folder)) for word in arguments.split()]
    env = {name: text.replace("FOLDER", str(folder)) for name, text in variables.items()}
    ended = CliRunner().invoke(main, words, env=env, prog_name="worker")
    assert ended.exit_code != 0, ended.output
    return ended.stderr.replace(str(folder), "FOLDER")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "typo.toml").write_text("\nsloths = 3\n")
    (tmp_path / "unlike.toml").write_text("colour = 'blue'\n")
    (tmp_path / "wrong.toml").write_text("slots = 'many'\n")
    (tmp_path / "broken.toml").write_text("slots = \n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "pyproject.toml").write_text("[tool]\nworker = 3\n")
    return tmp_path


SETTINGS: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"WORKER_SLOTS": "many"}, {},
     "WORKER_SLOTS='many': expected a whole number from 1 to 100000 (the variable WORKER_SLOTS)"),
    ({"WORKER_MAX_ARGS": "1M"}, {},
     "WORKER_MAX_ARGS='1M': expected a whole number of bytes from 1 to 100000000 (the variable WORKER_MAX_ARGS)"),
    ({}, {"pool_size": "1"},
     "--pool-size='1': expected a whole number from 2 to 10000, because the runtime keeps one connection for claims,"
     " heartbeats and schedules, and jobs need one more (the flag --pool-size)"),
    ({"WORKER_GRACE": "-1"}, {},
     "WORKER_GRACE='-1': expected a number of seconds, 0 or more (the variable WORKER_GRACE)"),
    ({"WORKER_LEASE": "0"}, {},
     "WORKER_LEASE='0': expected a number of seconds, more than 0 (the variable WORKER_LEASE)"),
    ({}, {"queues": ","},
     "--queues=',': expected names separated by commas (the flag --queues)"),
    ({}, {"schema": "No Name"},
     "--schema='No Name': expected a lower-case name of letters, digits and _ (at most 50 characters)"
     " (the flag --schema)"),
    ({"WORKER_HTTP": "9191"}, {},
     "WORKER_HTTP='9191': expected HOST:PORT such as 127.0.0.1:9191, or unix:/PATH (the variable WORKER_HTTP)"),
    ({"WORKER_PROCESSES": "0"}, {},
     "WORKER_PROCESSES='0': expected a whole number from 1 to 256 (the variable WORKER_PROCESSES)"),
    ({}, {"processes": "3", "pool_size": "5"},
     "pool_size=5: expected at least 6 for processes=3, which share it: each keeps one connection for claims,"
     " heartbeats and schedules, and its jobs need one more"),
    ({}, {"processes": "3", "slots": "2"},
     "slots=2: expected at least 3, one for each of processes=3"),
    ({}, {"max_jobs": "0"},
     "--max-jobs='0': expected a whole number from 1 to 1000000000 (the flag --max-jobs)"),
    ({}, {"max_memory": "512MB"},
     "--max-memory='512MB': expected a size such as 512MiB, 2GiB or a number of bytes, at least 64MiB"
     " (the flag --max-memory)"),
    ({"WORKER_MAX_MEMORY": "512"}, {},
     "WORKER_MAX_MEMORY='512': expected a size such as 512MiB, 2GiB or a number of bytes, at least 64MiB"
     " (the variable WORKER_MAX_MEMORY)"),
    ({"WORKER_HYGIENE": "on"}, {},
     "WORKER_HYGIENE='on': expected one of off, detect, discard (the variable WORKER_HYGIENE)"),
    ({"WORKER_ASYNC_MODE": "fast"}, {},
     "WORKER_ASYNC_MODE='fast': expected one of view, thread (the variable WORKER_ASYNC_MODE)"),
    ({"WORKER_HISTORY_DAYS": "0"}, {},
     "WORKER_HISTORY_DAYS='0': expected a whole number of days from 1 to 3650 (the variable WORKER_HISTORY_DAYS)"),
    ({"WORKER_TICK_DAYS": "1.5"}, {},
     "WORKER_TICK_DAYS='1.5': expected a whole number of days from 1 to 3650 (the variable WORKER_TICK_DAYS)"),
    ({"WORKER_LOG_FORMAT": "xml"}, {},
     "WORKER_LOG_FORMAT='xml': expected one of auto, console, json (the variable WORKER_LOG_FORMAT)"),
    ({"WORKER_LOG_LEVEL": "loud"}, {},
     "WORKER_LOG_LEVEL='loud': expected one of debug, info, warning, error (the variable WORKER_LOG_LEVEL)"),
    ({"WORKER_DATABASE_URL": "postgresql://u:s3/cret@h/d"}, {},
     "WORKER_DATABASE_URL: it cannot be read (in a password, write @ : / ? # % as %40 %3A %2F %3F %23 %25): expected a"
     " connection string such as postgresql://user@host/name (the variable WORKER_DATABASE_URL)"),
    ({"WORKER_DATABASE_URL": "host=h password=s3cret x"}, {},
     "WORKER_DATABASE_URL: it cannot be read: expected a connection string such as postgresql://user@host/name"
     " (the variable WORKER_DATABASE_URL)"),
    ({"WORKER_POOLSIZE": "3"}, {},
     "WORKER_POOLSIZE: there is no such variable, did you mean WORKER_POOL_SIZE?"),
    ({"WORKER_DATABASE_URL_FILE": "FOLDER/nothing"}, {},
     "WORKER_DATABASE_URL_FILE='FOLDER/nothing': the file cannot be read: No such file or directory"),
    ({"WORKER_DATABASE_URL_FILE": "FOLDER/empty"}, {},
     "WORKER_DATABASE_URL_FILE='FOLDER/empty': the file is empty: expected a connection string such as"
     " postgresql://user@host/name"),
    ({"WORKER_DATABASE_URL_FILE": "FOLDER/empty", "WORKER_DATABASE_URL": "postgresql://h/d"}, {},
     "WORKER_DATABASE_URL_FILE='FOLDER/empty': WORKER_DATABASE_URL is set as well: keep one of them"),
    ({}, {"config": "FOLDER/nothing.toml"},
     "settings file FOLDER/nothing.toml: it cannot be read: No such file or directory"),
    ({}, {"config": "FOLDER/broken.toml"},
     "settings file FOLDER/broken.toml: it is not TOML: Invalid value (at line 1, column 9)"),
    ({}, {"config": "FOLDER/pyproject.toml"},
     "settings file FOLDER/pyproject.toml: [tool.worker] is not a table"),
    ({}, {"config": "FOLDER/typo.toml"},
     "sloths: there is no such setting, did you mean 'slots'? (FOLDER/typo.toml line 2)"),
    ({}, {"config": "FOLDER/unlike.toml"},
     "colour: there is no such setting: there are database_url, direct_url, schema, jobs, queues, pool_size, slots,"
     " processes, grace, lease, stuck, max_jobs, max_memory, http, hygiene, async_mode, max_args, history_days,"
     " tick_days, log_format, log_level (FOLDER/unlike.toml line 1)"),
    ({}, {"config": "FOLDER/wrong.toml"},
     "slots='many': expected a whole number from 1 to 100000 (FOLDER/wrong.toml line 1)"),
    ({"WORKER_SLOTS": "0"}, {"grace": "soon"},
     "2 settings cannot work:\n"
     "  WORKER_SLOTS='0': expected a whole number from 1 to 100000 (the variable WORKER_SLOTS)\n"
     "  --grace='soon': expected a number of seconds, 0 or more (the flag --grace)"),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "flags", "message"), SETTINGS)
def test_a_setting_that_cannot_work(
    folder: Path, variables: dict[str, str], flags: dict[str, Any], message: str
) -> None:
    env = {name: text.replace("FOLDER", str(folder)) for name, text in variables.items()}
    given = {name: text.replace("FOLDER", str(folder)) for name, text in flags.items()}

    with pytest.raises(ConfigError) as refused:
        Settings.read(env, given, folder=Path("/"))

    assert str(refused.value).replace(str(folder), "FOLDER") == message


COMMANDS: list[tuple[str, str]] = [
    ("run",
     "worker: no database: set WORKER_DATABASE_URL (postgresql://user@host/name), or use --embedded for a throw-away"
     " Postgres on this machine\n"),
    ("migrate",
     "worker: no database: set WORKER_DATABASE_URL or pass --database-url (postgresql://user@host/name)\n"),
    ("bench",
     "worker: no database: set WORKER_DATABASE_URL or pass --database-url (postgresql://user@host/name)\n"),
    ("doctor",
     "worker: no database: set WORKER_DATABASE_URL or pass --database-url (postgresql://user@host/name)\n"),
    ("status --probe live",
     "worker: no address to probe: set WORKER_HTTP as for the worker, or pass --http\n"),
    ("status --probe live --http unix:FOLDER/nobody",
     "no worker answers at unix:FOLDER/nobody: No such file or directory\n"),
    ("status --probe live --http 127.0.0.1:1",
     "no worker answers at 127.0.0.1:1: Connection refused\n"),
    ("run --embedded --database-url postgresql://h/d",
     "Usage: worker run [OPTIONS]\n"
     "Try 'worker run --help' for help.\n\n"
     "Error: --embedded brings its own database: leave out --database-url\n"),
    ("run --check",
     "worker: no database: set WORKER_DATABASE_URL (postgresql://user@host/name), or use --embedded for a throw-away"
     " Postgres on this machine\n"),
    ("run --sloths 3",
     "Usage: worker run [OPTIONS]\n"
     "Try 'worker run --help' for help.\n\n"
     "Error: No such option '--sloths'. Did you mean '--slots'?\n"),
    ("migrate postgresql://u:s3cret@h/d",
     "Usage: worker migrate [OPTIONS]\n"
     "Try 'worker migrate --help' for help.\n\n"
     "Error: Got unexpected extra argument (postgresql://u:***@h/d)\n"),
    ("migrate --database-url postgresql://u:s3cret@127.0.0.1:1/d",
     "worker: the database could not be reached: connection failed: connection to server at \"127.0.0.1\", port 1"
     " failed: Connection refused Is the server running on that host and accepting TCP/IP connections?\n"),
    ("run --database-url postgresql://u:s3cret@127.0.0.1:1/d --jobs jobz",
     "worker: jobs module 'jobz' was not found in HERE or the installed packages: name your own with --jobs or"
     " WORKER_JOBS\n"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), COMMANDS)
def test_a_command_that_cannot_work(folder: Path, arguments: str, message: str) -> None:
    assert said(folder, arguments) == message.replace("HERE", str(Path.cwd()))


REFUSALS: list[tuple[str, str]] = [
    ("run --jobs tests.lifecycle.sample_jobs --queues mial",
     "worker: queue 'mial': no job of tests.lifecycle.sample_jobs is on it, did you mean 'mail'?"
     " (declared: DECLARED)\n"),
    ("run --jobs tests.lifecycle.sample_jobs --http unix:/nowhere/http",
     "worker: http=unix:/nowhere/http: nothing can be served there: No such file or directory\n"),
    ("run --jobs tests.lifecycle.sample_jobs --pool-size 9999",
     "worker: pool size 9999: the server gives GIVEN sessions (max_connections less reserved ones); make the pool"
     " smaller, or the server's limit larger\n"),
    ("run --jobs tests.lifecycle.broken_jobs",
     "worker: jobs module 'tests.lifecycle.broken_jobs' cannot be imported: ZeroDivisionError: as an example, in"
     " HERE/tests/lifecycle/broken_jobs.py line 3\n"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_a_worker_that_cannot_start(database: str, arguments: str, message: str) -> None:
    """In a process of its own, as it takes over logs and signals."""
    env = {**os.environ, "WORKER_DATABASE_URL": database, "WORKER_LOG_LEVEL": "error"}
    command = [sys.executable, "-m", "worker", *arguments.split()]

    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    heard = [line for line in ended.stderr.splitlines(keepends=True) if line.startswith("worker: ")]
    said = re.sub(r"declared: [^)]+", "declared: DECLARED", "".join(heard))
    assert re.sub(r"gives \d+", "gives GIVEN", said) == message.replace("HERE", str(Path.cwd()))
    assert ended.returncode == 2


def future(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO worker.migration (version, name, serves) VALUES (99, 'future', 98)")


def past(db: psycopg.Connection) -> None:
    db.execute("DELETE FROM worker.migration WHERE version > 1")


SCHEMAS: list[tuple[Callable[[psycopg.Connection], None] | None, str, str]] = [
    (None, "--schema other",
     "worker: schema 'other' is not there yet: run 'worker migrate' against this database\n"),
    (past, "",
     "worker: schema 'worker' has version 1, this worker needs MINE: run 'worker migrate'\n"),
    (future, "",
     "worker: schema 'worker' has version 99 and serves workers from version 98 on, this worker was written for MINE:"
     " deploy a newer worker\n"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "flags", "message"), SCHEMAS)
def test_a_schema_that_cannot_be_served(
    folder: Path,
    database: str,
    db: psycopg.Connection,
    change: Callable[[psycopg.Connection], None] | None,
    flags: str,
    message: str,
) -> None:
    if change is not None:
        change(db)

    heard = said(folder, f"connections {flags}", WORKER_DATABASE_URL=database)

    assert re.sub(r"(needs|written for) \d+", r"\1 MINE", heard) == message
