"""Opening a pool: one connection is made at once, or the true reason why not is raised."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.factories import num_sessions, scalar
from tests.pool.conftest import OpenPool
from tests.waiting import wait_until
from worker.embedded import EmbeddedPostgres
from worker.errors import DatabaseUnavailable
from worker.pool import Pool, PoolOptions


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else can get meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def guarded(logged_server: EmbeddedPostgres) -> Iterator[str]:
    """URL, without its password, of a role that needs one: it is 'sesame'."""
    with psycopg.connect(logged_server.url, autocommit=True) as conn:
        conn.execute("CREATE ROLE guarded LOGIN PASSWORD 'sesame'")
        file = Path(scalar(conn, "SHOW hba_file"))
        rules = file.read_text()
        file.write_text(f"local all guarded scram-sha-256\n{rules}")
        conn.execute("SELECT pg_reload_conf()")
        wait_until(lambda: "guarded" in str(scalar(conn, "SELECT array_agg(user_name) FROM pg_hba_file_rules")), 5, "")
        yield re.sub(r"://[^@]*@", "://guarded@", logged_server.url)
        file.write_text(rules)
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("DROP ROLE guarded")


def test_a_pool_that_opened_has_one_session(open_pool: OpenPool, db: psycopg.Connection) -> None:
    open_pool(max_size=5)

    assert num_sessions(db) == 1


def test_an_unknown_database_is_named_by_the_error(database: str) -> None:
    options = PoolOptions(conninfo=re.sub(r"/worker_test_\w+", "/nosuchdb", database))

    with pytest.raises(DatabaseUnavailable, match='database "nosuchdb" does not exist'):
        Pool.connect(options)


def test_a_refused_port_is_named_by_the_error(closed_port: int) -> None:
    options = PoolOptions(conninfo=f"postgresql://someone@127.0.0.1:{closed_port}/shop")

    with pytest.raises(DatabaseUnavailable, match=rf"port={closed_port}.*Connection refused"):
        Pool.connect(options)


def test_a_wrong_password_is_told_in_the_servers_words(guarded: str) -> None:
    options = PoolOptions(conninfo=guarded.replace("guarded@", "guarded:open-barley@"))

    with pytest.raises(DatabaseUnavailable, match='password authentication failed for user "guarded"'):
        Pool.connect(options)


def test_a_wrong_password_is_not_repeated_by_the_error(guarded: str) -> None:
    options = PoolOptions(conninfo=guarded.replace("guarded@", "guarded:open-barley@"))

    with pytest.raises(DatabaseUnavailable) as caught:
        Pool.connect(options)

    assert "barley" not in f"{caught.value!r} {caught.value}"


def test_an_unreachable_server_is_told_without_the_password(closed_port: int) -> None:
    options = PoolOptions(conninfo=f"host=127.0.0.1 port={closed_port} user=someone password='open barley'")

    with pytest.raises(DatabaseUnavailable) as caught:
        Pool.connect(options)

    assert "barley" not in f"{caught.value!r} {caught.value}"


def test_a_pools_repr_has_no_password(guarded: str, open_pool: OpenPool) -> None:
    pool = open_pool(guarded.replace("guarded@", "guarded:sesame@"))

    assert "sesame" not in f"{pool!r} {pool.options!r}"


def test_a_pools_repr_says_how_it_is_used(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=7)

    with pool.connection():
        assert repr(pool).endswith("0 idle, 1 out of 7>")
