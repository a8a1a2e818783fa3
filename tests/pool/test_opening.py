"""Opening a pool: one connection is made at once, or the true reason why not is raised."""

from __future__ import annotations

import gc
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.factories import APPLICATION, InThread, num_sessions, scalar
from tests.pool.conftest import OpenPool
from tests.pool.proxy import black_hole
from tests.waiting import wait_until
from worker import clock
from worker.embedded import EmbeddedPostgres
from worker.errors import ConfigError, DatabaseUnavailable
from worker.pool import ConnectOptions, Pool, PoolOptions


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


@pytest.fixture
def lazy(database: str) -> Iterator[Pool]:
    pool = Pool.connect_lazy(
        PoolOptions(conninfo=database, max_size=3, min_size=2, application_name=APPLICATION, alone=False)
    )
    yield pool
    pool.close(1)


def test_a_lazy_pool_opens_no_session(lazy: Pool, db: psycopg.Connection) -> None:
    assert num_sessions(db) == 0


def test_a_lazy_pool_connects_when_somebody_asks(lazy: Pool) -> None:
    with lazy.connection() as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_a_lazy_pool_keeps_its_minimum_once_it_has_connected(lazy: Pool, db: psycopg.Connection) -> None:
    with lazy.connection():
        pass

    wait_until(lambda: num_sessions(db) == 2, 5, "the minimum")


def test_a_lazy_pool_with_no_server_tells_the_reason_to_who_asks(closed_port: int) -> None:
    pool = Pool.connect_lazy(PoolOptions(conninfo=f"host=127.0.0.1 port={closed_port} user=someone", alone=False))

    with pytest.raises(psycopg.OperationalError, match=r"the server is away .*Connection refused"):
        pool.acquire(timeout=0.5)

    pool.close()


def test_the_minimum_is_made_up_front(open_pool: OpenPool, db: psycopg.Connection) -> None:
    open_pool(max_size=5, min_size=3)

    wait_until(lambda: num_sessions(db) == 3, 5, "three sessions")


def test_a_server_that_takes_connections_and_never_answers_is_given_up_in_time() -> None:
    started = clock.monotonic()

    with black_hole() as nowhere, pytest.raises(DatabaseUnavailable, match="timeout"):
        Pool.connect(PoolOptions(conninfo=nowhere, connect_timeout=2, alone=False))

    assert clock.monotonic() - started < 5


@pytest.mark.parametrize("num_addresses", [1, 2])
def test_an_attempt_that_is_given_up_is_over_at_once_and_not_when_garbage_is_collected(num_addresses: int) -> None:
    """The server may take it up later: what it finds open then is a session that no seat is counted for."""
    with ExitStack() as stack:
        stack.callback(gc.enable)
        gc.disable()
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num_addresses)]
        ports = ",".join(str(one.getsockname()[1]) for one in servers)
        hosts = ",".join("127.0.0.1" for _ in servers)

        with pytest.raises(DatabaseUnavailable, match="timeout"):
            Pool.connect(PoolOptions(conninfo=f"host={hosts} port={ports} sslmode=disable", connect_timeout=2))

        for server in servers:
            client = stack.enter_context(server.accept()[0])
            client.settimeout(1)
            assert client.recv(4096)  # its name and what it wants
            assert client.recv(4096) == b""


def test_a_pool_that_could_not_be_opened_leaves_room_for_the_next(closed_port: int, database: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        Pool.connect(PoolOptions(conninfo=f"host=127.0.0.1 port={closed_port}"))

    Pool.connect(PoolOptions(conninfo=database)).close()


def test_a_second_pool_in_a_process_is_refused_naming_the_first(database: str) -> None:
    first = Pool.connect(PoolOptions(conninfo=database, application_name=APPLICATION))

    with pytest.raises(ConfigError, match=r"this process has a pool already.*use worker\.get_pool\(\)") as caught:
        Pool.connect_lazy(PoolOptions(conninfo=database))

    assert repr(first) in str(caught.value)
    first.close()


def test_after_the_first_is_closed_a_second_pool_may_open(database: str) -> None:
    Pool.connect(PoolOptions(conninfo=database)).close()

    Pool.connect(PoolOptions(conninfo=database)).close()


def test_the_defaults_are_those_of_the_documentation() -> None:
    options = PoolOptions(conninfo="")

    sizes = options.max_size, options.min_size
    times = options.idle_timeout, options.max_lifetime, options.acquire_timeout
    assert (sizes, times) == ((20, 1), (120, 600, 5))
    assert options.connect_options().parameters["connect_timeout"] == 5


def test_each_new_connection_is_set_up_by_the_hook(open_pool: OpenPool) -> None:
    pool = open_pool(after_connect=lambda conn: conn.execute("SET statement_timeout = '17s'"))

    with pool.connection() as conn:
        assert scalar(conn, "SHOW statement_timeout") == "17s"


def test_a_hook_that_fails_on_the_first_connection_fails_the_opening(database: str, db: psycopg.Connection) -> None:
    def refuse(conn: psycopg.Connection) -> None:
        raise ZeroDivisionError

    options = PoolOptions(conninfo=database, after_connect=refuse, application_name=APPLICATION, alone=False)
    with pytest.raises(ZeroDivisionError):
        Pool.connect(options)

    assert num_sessions(db) == 0


def test_a_connection_that_the_hook_failed_on_is_closed_and_the_next_is_tried(open_pool: OpenPool) -> None:
    made: list[psycopg.Connection] = []

    def fail_for_the_second(conn: psycopg.Connection) -> None:
        made.append(conn)
        if len(made) == 2:
            raise ZeroDivisionError

    pool = open_pool(max_size=2, after_connect=fail_for_the_second)

    with pool.connection(), pool.connection():
        assert [conn.closed for conn in made] == [False, True, False]


def test_connect_options_hold_for_future_connections_only(open_pool: OpenPool, database: str) -> None:
    pool = open_pool(max_size=2)

    parameters = {**pool.connect_options.parameters, "options": "-c statement_timeout=17s"}
    pool.connect_options = ConnectOptions(database, parameters)

    with pool.connection() as old, pool.connection() as new:
        assert [scalar(conn, "SHOW statement_timeout") for conn in (old, new)] == ["0", "17s"]


def test_connections_may_be_in_autocommit_from_the_start(open_pool: OpenPool, database: str) -> None:
    pool = open_pool()
    pool.connect_options = ConnectOptions(database, {**pool.connect_options.parameters, "autocommit": True})

    with pool.connection(), pool.connection() as second:
        assert second.autocommit


def test_connect_options_show_no_password() -> None:
    options = ConnectOptions("host=somewhere password=barley", {"password": "oats"})

    assert "barley" not in repr(options)
    assert "oats" not in repr(options)


def test_a_pool_opened_as_psycopgs_are_is_swept_too(database: str) -> None:
    with Pool(PoolOptions(conninfo=database, max_size=1, alone=False)) as pool:
        InThread(pool.acquire).result()

        with pool.connection(timeout=3) as conn:
            assert scalar(conn, "SELECT 1") == 1
