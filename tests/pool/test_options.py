"""The options: what cannot work is refused before anything is opened, all of it at once."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.factories import scalar
from tests.pool.conftest import OpenPool
from worker.errors import ConfigError
from worker.pool import AsyncMode, ConnectOptions, HygieneMode, Pool, PoolOptions

URL = "postgresql://someone@somewhere/shop"

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_size": 0}, "max_size=0: expected a whole number, 1 or more"),
    ({"max_size": -1}, "max_size=-1: expected a whole number, 1 or more"),
    ({"max_size": 2.0}, "max_size=2.0: expected a whole number, 1 or more"),
    ({"max_size": True}, "max_size=True: expected a whole number, 1 or more"),
    ({"max_size": "3"}, "max_size='3': expected a whole number, 1 or more"),
    ({"max_size": None}, "max_size=None: expected a whole number, 1 or more"),
    ({"min_size": -1}, "min_size=-1: expected a whole number, 0 or more"),
    ({"min_size": 3, "max_size": 2}, "min_size=3: expected at most max_size, which is 2"),
    ({"idle_timeout": 0}, "idle_timeout=0: expected a number of seconds, more than 0"),
    ({"max_lifetime": -1.0}, "max_lifetime=-1.0: expected a number of seconds, more than 0"),
    ({"max_lifetime": float("inf")}, "max_lifetime=inf: expected a number of seconds, more than 0"),
    ({"acquire_timeout": float("nan")}, "acquire_timeout=nan: expected a number of seconds, 0 or more"),
    ({"acquire_timeout": None}, "acquire_timeout=None: expected a number of seconds, 0 or more"),
    ({"warn_after": "60"}, "warn_after='60': expected a number of seconds, 0 or more"),
    ({"connect_timeout": 0}, "connect_timeout=0: expected a number of seconds, more than 0, or None for the connection"
     " string's"),
    ({"application_name": 7}, "application_name=7: expected a text, or None for the connection string's"),
    ({"hygiene": "clean"}, "hygiene='clean': expected one of off, detect, discard"),
    ({"async_mode": None}, "async_mode=None: expected one of view, thread"),
    ({"after_connect": "SET"}, "after_connect='SET': expected a function that takes a connection, or None"),
    ({"before_acquire": 1}, "before_acquire=1: expected a function that takes a connection, or None"),
    ({"after_release": []}, "after_release=[]: expected a function that takes a connection, or None"),
    ({"alone": "no"}, "alone='no': expected True or False"),
    ({"conninfo": None}, "conninfo of type NoneType: expected a connection string such as"
     " postgresql://user@host/name"),
    ({"conninfo": "password=se cret"}, "conninfo: it cannot be read: expected a connection string such as"
     " postgresql://user@host/name"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_an_option_that_cannot_work_is_refused_with_its_name_and_value(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PoolOptions(**{"conninfo": URL, **options})

    assert str(caught.value) == text


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^3 settings cannot work:\n  max_size=0.*\n  idle_timeout=.*\n  alone=1"):
        PoolOptions(conninfo=URL, max_size=0, idle_timeout=-1, alone=1)  # type: ignore[arg-type]  # that is the mistake


def test_modes_may_be_given_as_text() -> None:
    options = PoolOptions(conninfo=URL, hygiene="detect", async_mode="thread")  # type: ignore[arg-type]  # as variables say it

    assert options.hygiene is HygieneMode.DETECT
    assert options.async_mode is AsyncMode.THREAD


@pytest.mark.parametrize(
    ("conninfo", "parameters", "text"),
    [
        (None, {}, r"^conninfo of type NoneType: expected a connection string"),
        ("password=se cret", {}, r"^conninfo: it cannot be read: expected"),
        (URL, {"colour": "blue"}, r"^parameters: 'colour' is unknown: expected keyword arguments of psycopg\.connect$"),
        (URL, ["autocommit"], r"^parameters of type list: expected a dict"),
    ],
)
def test_connect_options_that_cannot_work_are_refused(conninfo: Any, parameters: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ConnectOptions(conninfo, parameters)


def test_connect_options_show_what_libpq_gets() -> None:
    options = ConnectOptions("host=a password=barley", {"host": "b", "autocommit": True})

    assert repr(options) == "ConnectOptions('host=b')"


def test_what_the_connection_string_says_wins_over_the_defaults() -> None:
    said = "connect_timeout=9&application_name=shop&keepalives_idle=7&keepalives_count=8&tcp_user_timeout=5000"

    parameters = PoolOptions(conninfo=f"{URL}?{said}").connect_options().parameters

    assert parameters == {"keepalives_interval": 10}


def test_what_the_options_say_wins_over_the_connection_string() -> None:
    options = PoolOptions(
        conninfo=f"{URL}?connect_timeout=9&application_name=shop", application_name="carpool 7", connect_timeout=3
    )

    parameters = options.connect_options().parameters

    assert (parameters["application_name"], parameters["connect_timeout"]) == ("carpool 7", 3)


def test_a_session_is_called_carpool_unless_somebody_says_otherwise(open_pool: OpenPool, database: str) -> None:
    plain = open_pool(application_name=None)
    named = open_pool(psycopg.conninfo.make_conninfo(database, application_name="shop"), application_name=None)

    with plain.connection() as first, named.connection() as second:
        assert scalar(first, "SHOW application_name") == "carpool"
        assert scalar(second, "SHOW application_name") == "shop"


def test_connect_options_can_be_set_to_a_connection_string(open_pool: OpenPool, database: str) -> None:
    pool = open_pool(max_size=2, application_name="carpool 7")

    pool.connect_options = psycopg.conninfo.make_conninfo(database, options="-c statement_timeout=17s")

    with pool.connection(), pool.connection() as new:
        assert scalar(new, "SHOW statement_timeout") == "17s"
        assert scalar(new, "SHOW application_name") == "carpool 7"


@pytest.mark.parametrize("wrong", ["password=se cret", None, 7, {"host": "somewhere"}])
def test_connect_options_that_cannot_work_leave_the_pool_as_it_was(pool: Pool, wrong: Any) -> None:
    before = pool.connect_options, pool.conninfo, pool.kwargs

    with pytest.raises(ConfigError, match="conninfo"):
        pool.connect_options = wrong

    assert (pool.connect_options, pool.conninfo, pool.kwargs) == before
