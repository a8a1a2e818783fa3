"""The process's pool: opened once, by whoever comes first."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.factories import InThread, num_sessions, opened_pool
from tests.pool.conftest import Events
from tests.waiting import wait_until
from worker.errors import ConfigError, DatabaseUnavailable
from worker.pool import Pool, PoolOptions, bind_pool, get_pool, get_pool_async
from worker.pool import shared as shared_module


@pytest.fixture
def named_database(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """WORKER_DATABASE_URL is set; the pool that the test opened is closed after it."""
    monkeypatch.setenv("WORKER_DATABASE_URL", database)
    yield
    monkeypatch.setenv("WORKER_DATABASE_URL", database)
    get_pool().close()


@pytest.mark.usefixtures("named_database")
def test_sixteen_racing_callers_share_one_pool(db: psycopg.Connection) -> None:
    start = threading.Barrier(16, timeout=10)

    def race() -> Pool:
        start.wait()
        return get_pool()

    pools = {caller.result() for caller in [InThread(race) for _ in range(16)]}

    assert len(pools) == 1
    assert num_sessions(db, "carpool") == 1


def test_a_failed_attempt_is_not_kept(database: str, monkeypatch: pytest.MonkeyPatch, named_database: None) -> None:
    monkeypatch.setenv("WORKER_DATABASE_URL", re.sub(r"/worker_test_\w+", "/nosuchdb", database))
    with pytest.raises(DatabaseUnavailable):
        get_pool()
    monkeypatch.setenv("WORKER_DATABASE_URL", database)

    with get_pool().connection() as conn:
        conn.execute("SELECT 1")


@pytest.mark.usefixtures("named_database")
def test_a_closed_pool_is_followed_by_a_new_one() -> None:
    first = get_pool()
    first.close()

    assert get_pool() is not first


@pytest.mark.usefixtures("named_database")
def test_a_second_pool_is_refused_while_the_first_is_open(database: str) -> None:
    get_pool()

    with (
        opened_pool(database) as second,
        pytest.raises(ConfigError, match=r"this process has a pool already.*get_pool\(\)"),
        bind_pool(second),
    ):
        pass


def test_a_bound_pool_is_the_processs_pool(database: str) -> None:
    with opened_pool(database) as pool, bind_pool(pool):
        assert get_pool() is pool


def test_without_a_database_the_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="WORKER_DATABASE_URL"):
        get_pool()


class SlowOpening:
    """Holds every attempt to open until `go`, counts them, and makes them fail if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failing: bool = False) -> None:
        self.attempts = 0
        self.go = threading.Event()
        self._failing = failing
        self._connect = Pool.connect
        monkeypatch.setattr(Pool, "connect", self._opened)

    def _opened(self, options: PoolOptions) -> Pool:
        self.attempts += 1
        assert self.go.wait(10)
        if self._failing:
            raise DatabaseUnavailable("out of order")
        return self._connect(options)


class Crowd:
    """Sixteen threads and sixteen coroutines of one loop, all of them in `get_pool` when this returns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._joined = 0
        join = shared_module._join

        def counted() -> object:
            attempt = join()
            self._joined += 1
            return attempt

        monkeypatch.setattr(shared_module, "_join", counted)
        self._threads = [InThread(get_pool) for _ in range(16)]
        self._loop = InThread(lambda: asyncio.run(self._gather()))
        wait_until(lambda: self._joined == 32, 10, "32 callers to wait for the pool")

    async def _gather(self) -> list[object]:
        return await asyncio.gather(*[get_pool_async() for _ in range(16)], return_exceptions=True)

    def outcomes(self) -> list[object]:
        return [*map(_outcome, self._threads), *self._loop.result()]


def _outcome(caller: InThread) -> object:
    try:
        return caller.result()
    except Exception as exc:
        return exc


@pytest.mark.usefixtures("named_database")
def test_sixteen_threads_and_sixteen_coroutines_wait_for_the_same_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = SlowOpening(monkeypatch)
    crowd = Crowd(monkeypatch)

    opening.go.set()

    assert len(set(crowd.outcomes())) == 1
    assert opening.attempts == 1


@pytest.mark.usefixtures("named_database")
def test_a_failed_attempt_is_shared_by_all_who_waited_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        opening = SlowOpening(patched, failing=True)
        crowd = Crowd(patched)

        opening.go.set()

        assert {str(error) for error in crowd.outcomes()} == {"out of order"}
        assert opening.attempts == 1


@pytest.mark.usefixtures("named_database")
def test_a_coroutine_that_gives_up_does_not_end_the_attempt_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = SlowOpening(monkeypatch)

    async def give_up() -> None:
        impatient = asyncio.ensure_future(get_pool_async())
        await asyncio.sleep(0)  # it is the one that began the attempt
        other = asyncio.ensure_future(get_pool_async())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait({impatient})
        opening.go.set()
        assert await other is get_pool()

    asyncio.run(give_up())


@pytest.mark.usefixtures("named_database")
def test_the_loop_goes_on_while_the_pool_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = SlowOpening(monkeypatch)

    async def go_on() -> Pool:
        pool = asyncio.ensure_future(get_pool_async())
        await asyncio.sleep(0)
        opening.go.set()  # a blocked loop would never come here
        return await pool

    assert asyncio.run(go_on()) is get_pool()


@pytest.mark.usefixtures("named_database")
def test_the_opening_is_logged_once(events: Events) -> None:
    for _ in range(3):
        get_pool()

    assert [event["event"] for event in events].count("pool.opened") == 1


@pytest.mark.usefixtures("named_database")
def test_the_log_of_the_opening_names_the_database_without_its_password(
    events: Events, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_DATABASE_URL", f"{database}{'&' if '?' in database else '?'}password=barley")

    get_pool()

    opened = next(event for event in events if event["event"] == "pool.opened")
    assert "worker_test" in opened["database"]
    assert "barley" not in str(opened)


@pytest.mark.usefixtures("named_database")
def test_an_application_hands_in_its_own_options(database: str) -> None:
    options = PoolOptions(conninfo=database, max_size=2, application_name="shop")

    assert get_pool(options).options is options


@pytest.mark.usefixtures("named_database")
def test_opening_another_pool_beside_the_processs_is_refused_naming_the_first(database: str) -> None:
    first = get_pool()

    with pytest.raises(ConfigError, match="has a pool already") as caught:
        Pool.connect(PoolOptions(conninfo=database))

    assert repr(first) in str(caught.value)


def test_coroutines_are_told_that_no_database_is_named() -> None:
    with pytest.raises(ConfigError, match="WORKER_DATABASE_URL"):
        asyncio.run(get_pool_async())


def test_what_an_application_needs_of_the_pool_is_imported_from_worker() -> None:
    import worker

    for name in ("get_pool", "get_pool_async", "bind_pool", "Pool", "PoolOptions", "HygieneMode", "PoolDeadlock"):
        assert name in worker.__all__
        assert hasattr(worker, name)


@pytest.mark.usefixtures("named_database")
def test_a_hook_that_asks_for_the_pool_it_helps_to_open_is_told_so(database: str) -> None:
    options = PoolOptions(conninfo=database, after_connect=lambda _: get_pool())

    with pytest.raises(ConfigError, match="by what opens the pool, such as its after_connect hook"):
        get_pool(options)
