"""A mistake gets one line and a code of its own, and no password is ever printed."""

from __future__ import annotations

import psycopg
import pytest

from tests.cli.conftest import Worker
from worker import errors
from worker.cli import exits

NOBODY_LISTENS = "postgresql://someone:s3cret@127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.WorkerError("x"), 1),
        (psycopg.errors.InsufficientPrivilege("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.SignatureError("x"), 2),
        (errors.DatabaseUnavailable("x"), 3),
        (errors.EmbeddedError("x"), 3),
        (psycopg.OperationalError("x"), 3),
        (errors.SchemaError("x"), 4),
        (ZeroDivisionError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exits.report(error) == code


def test_every_exit_code_has_a_sentence() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}

    assert set(exits.MEANINGS) == codes


def test_only_an_error_of_this_program_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    exits.report(errors.DatabaseUnavailable("no route\n\tto host"))
    assert capsys.readouterr().err == "worker: no route to host\n"

    exits.report(ZeroDivisionError("division by zero"))
    assert capsys.readouterr().err == "worker: internal error\nZeroDivisionError: division by zero\n\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:s3cret@h/d is wrong", "postgresql://u:***@h/d is wrong"),
        ("postgres:/u:s3cret@h", "postgres:/u:***@h"),
        ("host=h password=s3cret dbname=d", "host=h password=*** dbname=d"),
        (r"password = 's3c\'r e t' host=h", "password = *** host=h"),
        ("postgresql://h/d?password=s3cret&user=u", "postgresql://h/d?password=***&user=u"),
        ("postgresql://u@h/d at 10:30", "postgresql://u@h/d at 10:30"),
    ],
)
def test_passwords_are_blotted_out(text: str, shown: str) -> None:
    assert exits.without_passwords(text) == shown


def test_run_without_a_database_names_the_variable_and_the_way_without_one(worker: Worker) -> None:
    ended = worker("run")

    assert ended.exit_code == 2
    assert "WORKER_DATABASE_URL" in ended.stderr
    assert "--embedded" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_migrate_without_a_database_names_the_variable(worker: Worker) -> None:
    ended = worker("migrate")

    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "WORKER_DATABASE_URL" in ended.stderr


@pytest.mark.parametrize("verb", ["run", "migrate"])
@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_database_out_of_reach_is_one_line_without_the_password(worker: Worker, verb: str, how: str) -> None:
    if how == "flag":
        ended = worker(verb, "--database-url", NOBODY_LISTENS)
    else:
        ended = worker(verb, WORKER_DATABASE_URL=NOBODY_LISTENS)

    assert ended.exit_code == 3
    assert "refused" in ended.stderr
    assert "s3cret" not in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("url", ["postgres:/u:s3cret@h", "postgresql://u:s3cret@[h/d", "host=h password=s3cret x"])
def test_a_connection_string_that_cannot_be_read_is_a_wrong_setting(worker: Worker, url: str) -> None:
    ended = worker("migrate", WORKER_DATABASE_URL=url)

    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "s3cret" not in ended.output


def test_every_setting_that_cannot_work_is_named_at_once(worker: Worker) -> None:
    ended = worker("run", WORKER_SLOTS="many", WORKER_POOL_SIZE="-3")

    assert ended.exit_code == 2
    assert "WORKER_SLOTS='many'" in ended.stderr
    assert "WORKER_POOL_SIZE='-3'" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--slots", "many"], "--slots"),
        (["run", "--pool-size", "1"], "--pool-size='1': expected a whole number from 2"),
        (["run", "--grace", "-1"], "--grace"),
        (["run", "--queues", ","], "names separated by commas"),
        (["run", "--embedded", "--database-url", "postgresql://h/d"], "leave out --database-url"),
        (["run", "--sloths", "3"], "--slots"),
        (["rum"], "No such command"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(worker: Worker, arguments: list[str], said: str) -> None:
    ended = worker(*arguments)

    assert ended.exit_code == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.output


def test_run_refuses_a_database_without_the_schema_and_names_the_command(worker: Worker, server: str) -> None:
    ended = worker("run", "--schema", "nowhere", "--jobs", "jobs", "--database-url", server)

    assert ended.exit_code == 4
    assert "run 'worker migrate'" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.output


def test_run_names_a_module_of_jobs_that_is_not_there(worker: Worker, database: str) -> None:
    ended = worker("run", "--jobs", "jobz", "--database-url", database)

    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "jobz" in ended.stderr
