"""A password that is anywhere in a connection string is in no message, no log line, no traceback and no repr."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from worker import log, secrecy
from worker.cli import exits, main
from worker.config import Config
from worker.errors import ConfigError
from worker.secrecy import keep_secret, redacted, without_passwords

# As people and generators make them, with everything that URLs, quotes and escapes are about.
_REST = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
passwords = st.builds(lambda rest: f"Zq7{rest}x9K", _REST)


def url(password: str) -> str:
    return f"postgresql://someone:{quote(password, safe='')}@127.0.0.1:1/shop?connect_timeout=2"


def raw_url(password: str) -> str:
    return f"postgresql://someone:{password}@127.0.0.1:1/shop"


def query_url(password: str) -> str:
    return f"postgresql://someone@127.0.0.1:1/shop?password={quote(password)}"


def words(password: str) -> str:
    return make_conninfo("", user="someone", password=password, host="127.0.0.1", port=1, dbname="shop")


def sloppy_words(password: str) -> str:
    return f"host=127.0.0.1 port=1 password={password} user=someone"


Spelling = Callable[[str], str]
spellings = st.sampled_from([url, raw_url, query_url, words, sloppy_words])


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrecy, "_kept", {})


def leaks(said: str, password: str) -> bool:
    """Whether a piece of *password* that nobody could have guessed is in *said*."""
    return any(piece in said for piece in (password, quote(password, safe=""), "Zq7", "x9K"))


many = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@many
@given(password=passwords, spelling=spellings)
def test_no_repr_and_no_mistake_holds_a_password(password: str, spelling: Spelling) -> None:
    conninfo = spelling(password)
    try:
        said = repr(Config(database_url=conninfo)) + redacted(conninfo)
    except ConfigError as exc:
        said = str(exc)

    assert not leaks(said, password)


@many
@given(password=passwords, spelling=spellings, form=st.sampled_from(["json", "console"]))
def test_no_log_line_and_no_traceback_holds_a_password(password: str, spelling: Spelling, form: str) -> None:
    conninfo = spelling(password)
    keep_secret(conninfo)
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    log.configure(form, stream=stream)
    try:
        logger = log.get_logger("worker.test")
        logger.info("event", text=conninfo, nested={"list": [conninfo]}, thing=ValueError(conninfo))
        logging.getLogger("others").warning("cannot connect to %s", conninfo)
        try:
            raise ConnectionError(f"cannot connect to {conninfo!r}")
        except ConnectionError:
            logger.exception("failed")
    finally:
        logging.getLogger().handlers[:] = before

    assert stream.getvalue().count("cannot connect") >= 2
    assert not leaks(stream.getvalue(), password)


@settings(many, max_examples=20)
@given(
    password=passwords,
    spelling=spellings,
    verb=st.sampled_from(
        [
            ("migrate",),
            ("config", "show"),
            ("config", "show", "--json"),
            ("connections",),
            ("doctor",),
            ("doctor", "--json"),
            ("status",),
        ]
    ),
    how=st.sampled_from(["flag", "variable", "wrong place", "argument"]),
)
def test_no_verb_prints_a_password(password: str, spelling: Spelling, verb: tuple[str, ...], how: str) -> None:
    conninfo = spelling(password)
    variables, arguments = {}, list(verb)
    if how == "flag":
        arguments += ["--database-url", conninfo]
    elif how == "variable":
        variables = {"WORKER_DATABASE_URL": conninfo}
    elif how == "wrong place":
        variables = {"WORKER_SLOTS": conninfo}
        keep_secret(conninfo)
    else:
        arguments += [conninfo]
        keep_secret(conninfo)

    ended = CliRunner().invoke(main, arguments, env=variables, prog_name="worker")

    assert not leaks(ended.output, password)


def test_a_password_that_is_also_the_users_name_is_found_by_its_place() -> None:
    """Blotting the word out wherever it occurs would leave no message readable."""
    keep_secret("postgresql://postgres:postgres@h/d")

    assert without_passwords("postgresql://postgres:postgres@h/d, user postgres") == (
        "postgresql://postgres:***@h/d, user postgres"
    )


def test_an_internal_error_is_told_without_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    keep_secret("host=h password='open sesame'")

    exits.report(ZeroDivisionError("given 'open sesame'"))

    assert "ZeroDivisionError: given '***'" in capsys.readouterr().err


def test_a_thread_that_dies_is_told_without_passwords() -> None:
    keep_secret("host=h password='open sesame'")
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    log.configure("json", stream=stream)
    try:
        with log.uncaught_in_threads():
            dying = threading.Thread(target=lambda: int("open sesame"), name="unlucky")
            dying.start()
            dying.join()
    finally:
        logging.getLogger().handlers[:] = before

    event = json.loads(stream.getvalue())
    assert (event["event"], event["thread"]) == ("thread.died", "unlucky")
    assert "ValueError: invalid literal for int() with base 10: '***'" in event["exception"]


def test_a_console_traceback_shows_no_local_variables() -> None:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    log.configure("console", stream=stream)
    try:
        argument = "".join(["some", "body's data"])
        try:
            raise ZeroDivisionError(len(argument))
        except ZeroDivisionError:
            log.get_logger("worker.test").exception("failed")
    finally:
        logging.getLogger().handlers[:] = before

    assert "ZeroDivisionError" in stream.getvalue()
    assert "somebody's data" not in stream.getvalue()
