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
from worker.pool import ConnectOptions, PoolOptions
from worker.secrecy import keep_secret, parsed, redacted, without_passwords

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
@given(password=passwords, spelling=spellings)
def test_no_repr_and_no_mistake_of_a_pool_holds_a_password(password: str, spelling: Spelling) -> None:
    said = redacted(spelling(password))
    for make in (ConnectOptions, lambda conninfo: PoolOptions(conninfo=conninfo)):
        try:
            said += repr(make(spelling(password)))
        except ConfigError as exc:
            said += f"{exc} {exc.__cause__!r}"

    assert not leaks(said, password)


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=h password=se cret",
        "host=h password='cret",
        "postgresql://u:se%cret@h/d",
        "postgresql://u:se%ffcret@h/d",
        "postgresql://u:sec@cret@h/d",
        "postgresql://u:sec/cret@h/d",
        "postgresql://u:12/cret@h/d",
        "postgresql://u:sec@h?user=cret@h/d",
        "postgresql://u:sec@h:1?application_name=cret@h/d",
        "host=h\x00 password=cret",
        "host=h password=\ud800cret",
    ],
)
def test_what_cannot_be_read_is_neither_shown_nor_quoted(conninfo: str) -> None:
    assert redacted(conninfo) == "<unreadable connection string>"
    with pytest.raises(ValueError, match=r"^it cannot be read") as caught:
        parsed(conninfo)
    assert caught.value.__cause__ is None
    assert "cret" not in str(caught.value)
    keep_secret(conninfo)


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://u:p%40ss@h1:1,h2:2/d?application_name=a%40b",
        "postgresql:///d?host=/tmp&user=me@realm",
        "postgresql://u@h:5/d?application_name=a@b",
        "postgresql://u:@h/d",
        "user=me@realm dbname=d",
        "",
    ],
)
def test_what_can_be_read_is_shown(conninfo: str) -> None:
    assert "unreadable" not in redacted(conninfo)


def test_keys_that_stand_for_a_password_are_not_shown() -> None:
    assert redacted("host=h scram_client_key=open scram_server_key=sesame") == "host=h"


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


@pytest.mark.parametrize("password", ["Zq7'x9K", "Zq7\\x9K", "Zq7'\"x9K", 'Zq7"x9K'])
def test_a_connection_string_that_python_or_json_quotes_is_blotted_too(password: str) -> None:
    conninfo = words(password)
    keep_secret(conninfo)

    for said in (repr(conninfo), repr(f'it\'s "{conninfo}"'), json.dumps(conninfo)):
        assert not leaks(without_passwords(said), password)


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
