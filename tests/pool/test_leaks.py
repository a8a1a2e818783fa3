"""Leaks: what nobody can return any more is found, named, ended on the server and replaced; and nobody is robbed."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import PoolTimeout

from tests.factories import InThread, backend_pid, is_there, num_sessions, opened_pool, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.loops import running_loop
from tests.waiting import wait_until
from worker import clock
from worker.embedded import EmbeddedPostgres
from worker.pool import Connection, Pool, holder

FOUND_WITHIN = 2.0


@pytest.fixture
def single(open_pool: OpenPool) -> Pool:
    """A pool of one."""
    return open_pool(max_size=1)


def as_job(name: str, call: Any) -> Any:
    def run() -> Any:
        holder.set(name)
        return call()

    return contextvars.copy_context().run(run)


def leaked(events: Events) -> dict[str, Any]:
    """The one leak that was logged."""
    found = [event for event in events if event["event"] == "pool.leaked"]
    assert len(found) == 1
    return dict(found[0])


def take_and_use(pool: Pool) -> Connection:
    conn = pool.acquire()
    conn.execute("SELECT 'the last statement'")
    return conn


class Broken(sql.SQL):
    """A statement that psycopg cannot make out, nor anybody else."""

    def as_string(self, context: object = None) -> str:
        raise psycopg.ProgrammingError("it cannot be rendered")

    as_bytes = as_string  # type: ignore[assignment]


def leak_in_a_thread(pool: Pool) -> Connection:
    """Taken in a thread that has ended by now; somebody still has the object."""
    conn: Connection = InThread(lambda: take_and_use(pool)).result()
    return conn


def leak_by_dropping(pool: Pool) -> int:
    return backend_pid(take_and_use(pool))


def test_what_a_dead_thread_had_is_ended_and_replaced(single: Pool, db: psycopg.Connection) -> None:
    pid = backend_pid(leak_in_a_thread(single))

    with single.connection(timeout=FOUND_WITHIN) as conn:
        assert backend_pid(conn) != pid
    assert not is_there(db, pid)


def test_the_log_names_thread_place_and_statement_of_what_a_dead_thread_had(single: Pool, events: Events) -> None:
    kept = leak_in_a_thread(single)

    wait_until(lambda: single.num_out == 0, FOUND_WITHIN, "the leak to be found")

    leak = leaked(events)
    assert leak["why"] == "its thread is dead"
    assert "taken at test_leaks.py" in leak["checkout"]
    assert "take_and_use < test_leaks.py" in leak["checkout"]
    assert leak["checkout"].startswith("thread Thread-")
    assert leak["statement"] == "SELECT 'the last statement'"
    assert leak["log_level"] == "error"
    assert kept.revoked


def test_locks_of_a_dead_thread_are_released(single: Pool, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int)")

    def lock_and_die() -> Connection:
        conn = single.acquire()
        conn.execute("LOCK TABLE note")
        return conn

    kept = InThread(lock_and_die).result()
    db.execute("SET lock_timeout = '2s'")

    db.execute("DROP TABLE note")

    assert kept.closed


def test_what_a_finished_job_kept_is_ended_at_once_and_named(
    single: Pool, db: psycopg.Connection, events: Events
) -> None:
    kept = as_job("job charge 42", lambda: take_and_use(single))

    single.reclaim("job charge 42")

    assert kept.closed
    assert num_sessions(db) == 0
    assert leaked(events)["checkout"].startswith("job charge 42 for")


def test_a_job_that_is_over_and_runs_on_gets_an_error(single: Pool) -> None:
    kept = as_job("job charge 42", lambda: take_and_use(single))
    single.reclaim("job charge 42")

    with pytest.raises(psycopg.OperationalError):
        kept.execute("SELECT 1")
    single.release(kept)  # late, and harmless

    assert single.num_idle == 0


def test_a_job_that_is_over_in_the_middle_of_a_statement_is_ended_too(single: Pool, db: psycopg.Connection) -> None:
    def sleep() -> None:
        holder.set("job charge 42")
        with single.connection() as conn:
            conn.execute("SELECT pg_sleep(600)")

    sleeping = InThread(sleep)
    wait_until(lambda: scalar(db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), 5, "the sleep")

    single.reclaim("job charge 42")

    assert num_sessions(db) == 0
    with pytest.raises(psycopg.OperationalError):
        sleeping.result()


def test_a_dropped_connection_is_found_while_its_thread_lives(
    single: Pool, db: psycopg.Connection, events: Events
) -> None:
    pid = leak_by_dropping(single)

    with single.connection(timeout=FOUND_WITHIN):
        assert not is_there(db, pid)
    assert leaked(events)["why"] == "its connection was dropped without being returned"
    assert leaked(events)["statement"] == "SELECT 'the last statement'"


def test_a_dropped_connection_is_found_although_an_earlier_coroutine_knows_it(
    single: Pool, db: psycopg.Connection
) -> None:
    """As one that failed does for a while: its error keeps its frames, until garbage is collected."""

    async def use() -> Any:
        async with single.connection() as view:
            await view.execute("SELECT 1")
        return view

    known = asyncio.run(use())
    pid = backend_pid(single.acquire())

    wait_until(lambda: not is_there(db, pid), FOUND_WITHIN, "the end of the session")
    assert known.closed


def test_a_connection_of_which_a_cursor_is_still_in_use_is_not_dropped(single: Pool) -> None:
    cursor = single.acquire().cursor()

    single.sweep_once()

    assert cursor.execute("SELECT 1").fetchone() == (1,)
    single.release(cursor.connection)


def test_a_connection_that_a_coroutine_dropped_is_found(single: Pool, db: psycopg.Connection) -> None:
    async def drop() -> int:
        conn = await single.acquire_async()
        await conn.execute("SELECT 1")
        return conn.info.backend_pid

    with running_loop() as loop:
        pid = loop.run(drop())

        with single.connection(timeout=FOUND_WITHIN):
            assert not is_there(db, pid)


def test_a_connection_that_a_coroutine_dropped_is_found_although_an_earlier_user_knows_it(
    single: Pool, db: psycopg.Connection
) -> None:
    """As garbage in a circle does, until it is collected."""

    async def use_and_drop() -> tuple[psycopg.Connection, int]:
        async with single.connection() as conn:
            known: psycopg.Connection = getattr(conn, "pooled")  # noqa: B009
        dropped = await single.acquire_async()
        assert getattr(dropped, "pooled") is known  # noqa: B009
        return known, dropped.info.backend_pid

    with running_loop() as loop:
        known, pid = loop.run(use_and_drop())

        with single.connection(timeout=FOUND_WITHIN):
            assert not is_there(db, pid)
        assert known.closed


def test_a_view_in_use_by_a_coroutine_is_not_dropped(single: Pool) -> None:
    async def use() -> object:
        view = await single.acquire_async()
        single.sweep_once()
        row = await (await view.execute("SELECT 1")).fetchone()
        await single.release_async(view)
        return row

    assert asyncio.run(use()) == (1,)


def test_what_a_closed_loop_had_is_ended_and_replaced(single: Pool, db: psycopg.Connection, events: Events) -> None:
    with running_loop() as loop:
        kept = loop.run(single.acquire_async())
        pid = kept.info.backend_pid

    with single.connection(timeout=FOUND_WITHIN):
        assert not is_there(db, pid)
    assert leaked(events)["why"] == "its event loop is closed"


def test_a_query_that_a_closed_loop_left_running_is_ended(single: Pool, db: psycopg.Connection) -> None:
    async def sleep() -> None:
        async with single.connection() as conn:
            await conn.execute("SELECT pg_sleep(600)")

    with running_loop() as loop:
        sleeping = loop.start(sleep())
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_until(lambda: scalar(db, query), 5, "the sleep")

    wait_until(lambda: num_sessions(db) == 0, FOUND_WITHIN + 1, "the session to end")
    sleeping.cancel()


def test_an_owner_that_dies_while_another_already_waits_is_found(single: Pool) -> None:
    """Rails looks for dead owners once, when the wait begins; one that dies after that is never found."""
    die = threading.Event()

    def hold_and_die() -> Connection:
        conn = single.acquire()
        assert die.wait(10)
        return conn

    owner = InThread(hold_and_die)
    wait_until(lambda: single.num_out == 1, 5, "the owner to have it")
    waiter = InThread(lambda: single.acquire(timeout=5))
    wait_until(lambda: single.stats().waiting == 1, 5, "the other to wait")
    started = clock.monotonic()

    die.set()

    single.release(waiter.result())
    assert clock.monotonic() - started < FOUND_WITHIN + 0.5
    assert owner.result().closed


def test_a_leaked_connection_is_never_handed_out_again(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=2)
    leaked_pids = {leak_by_dropping(pool) for _ in range(2)}

    with pool.connection(timeout=FOUND_WITHIN) as first, pool.connection(timeout=FOUND_WITHIN) as second:
        assert not leaked_pids & {backend_pid(first), backend_pid(second)}


def test_leaks_are_counted(single: Pool) -> None:
    leak_by_dropping(single)

    wait_until(lambda: single.stats().reclaimed_total == 1, FOUND_WITHIN, "the leak to be found")


def test_ten_leaks_at_once_are_found_in_time(open_pool: OpenPool, db: psycopg.Connection) -> None:
    pool = open_pool(max_size=10)
    kept = [leak_in_a_thread(pool) for _ in range(10)]

    wait_until(lambda: num_sessions(db) == 0, FOUND_WITHIN, "all ten sessions to end")

    assert len(kept) == 10
    wait_until(lambda: pool.size == 0, FOUND_WITHIN, "their seats to be free")


def test_a_live_owner_is_warned_about_once_and_never_robbed(open_pool: OpenPool, events: Events) -> None:
    pool = open_pool(max_size=1, warn_after=0.01)
    conn = as_job("job charge 42", lambda: take_and_use(pool))
    assert not threading.Event().wait(0.02)

    for _ in range(3):
        pool.sweep_once()

    warned = [event for event in events if event["event"] == "pool.held_long"]
    assert len(warned) == 1
    assert warned[0]["checkout"].startswith("job charge 42")
    assert scalar(conn, "SELECT 1") == 1
    pool.release(conn)


def test_a_connection_handed_to_a_living_thread_that_uses_it_is_not_taken_from_it(single: Pool) -> None:
    handed, used, enough = threading.Event(), threading.Event(), threading.Event()
    hands: list[Connection] = []

    def live_on() -> object:
        assert handed.wait(10)
        hands[0].execute("SELECT 1")
        used.set()
        assert enough.wait(10)
        return scalar(hands[0], "SELECT 1")

    def take_hand_over_and_die() -> None:
        hands.append(single.acquire())
        handed.set()
        assert used.wait(10)

    living = InThread(live_on)
    InThread(take_hand_over_and_die).result()

    for _ in range(3):
        single.sweep_once()
    enough.set()

    assert living.result() == 1
    single.release(hands[0])


def test_a_connection_handed_to_a_thread_that_got_the_number_of_the_dead_one_is_not_taken_from_it(single: Pool) -> None:
    conn = InThread(single.acquire).result()

    def use() -> object:
        conn.checkout.thread_id = threading.get_ident()  # as the system gives them out
        conn.execute("SELECT 1")
        single.sweep_once()
        return conn.execute("SELECT 2").fetchone()

    assert InThread(use).result() == (2,)
    single.release(conn)


@pytest.mark.parametrize("use", ["commit", "copy", "stream", "transaction", "named cursor"])
def test_whatever_the_living_thread_does_with_it_counts_as_use(single: Pool, use: str) -> None:
    conn: Connection = InThread(single.acquire).result()

    def once() -> None:
        if use == "commit":
            conn.commit()
        elif use == "copy":
            with conn.cursor() as cur, cur.copy("COPY (SELECT 1) TO STDOUT") as copy:
                list(copy)
        elif use == "stream":
            with conn.cursor() as cur:
                list(cur.stream("SELECT 1"))
        elif use == "transaction":
            with conn.transaction():
                pass
        else:
            with conn.cursor("named") as cur:
                cur.execute("SELECT 1")

    once()
    single.sweep_once()

    assert scalar(conn, "SELECT 1") == 1
    single.release(conn)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing and answers nothing, until the end of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_session_whose_end_is_not_confirmed_keeps_its_seat(logged_server: EmbeddedPostgres) -> None:
    """Its replacement would be one session too many on the server."""
    with (
        psycopg.connect(logged_server.url, autocommit=True) as db,
        opened_pool(logged_server.url, max_size=1) as pool,
    ):
        kept = leak_in_a_thread(pool)
        with stopped(backend_pid(kept)):
            wait_until(lambda: pool.num_out == 0, 5, "the leak to be found")

            with pytest.raises(PoolTimeout, match="1 were closed, but the server has not ended their sessions yet"):
                pool.acquire(timeout=1.5)
            assert num_sessions(db) == 1

        with pool.connection(timeout=FOUND_WITHIN) as conn:
            assert scalar(conn, "SELECT 1") == 1
        assert num_sessions(db) == 1


def test_checkouts_tell_job_age_place_and_statement(single: Pool) -> None:
    conn = as_job("job charge 42", lambda: take_and_use(single))

    checkout = single.checkouts()[0]

    assert checkout.who == "job charge 42"
    assert 0 <= checkout.age < 5
    assert checkout.taken_at.startswith("test_leaks.py:")
    assert checkout.last_statement == "SELECT 'the last statement'"
    single.release(conn)


@pytest.mark.parametrize("odd", ["\0", "\ud800"])
def test_a_statement_is_shown_so_that_it_can_be_stored(single: Pool, odd: str) -> None:
    conn = single.acquire()
    with suppress(UnicodeEncodeError):
        conn.execute(f"SELECT 1 -- {odd}")

    shown = single.checkouts()[0].last_statement

    assert shown == "SELECT 1 -- \ufffd"
    single.release(conn)


def test_checkouts_of_coroutines_are_named_by_their_task(single: Pool) -> None:
    async def look() -> str:
        async with single.connection() as conn:
            await conn.execute("SELECT 42")
            return f"{single.checkouts()[0].who}: {single.checkouts()[0].last_statement}"

    async def main() -> str:
        return await asyncio.create_task(look(), name="looking")

    assert asyncio.run(main()) == "task looking: SELECT 42"


def test_the_last_statement_is_told_without_its_parameters(single: Pool) -> None:
    with single.connection() as conn:
        conn.execute("SELECT %s", ["a secret"])

        assert single.checkouts()[0].last_statement == "SELECT %s"


def test_a_long_statement_is_told_in_part(single: Pool) -> None:
    with single.connection() as conn:
        conn.execute(f"SELECT {' + '.join(['1'] * 500)}".encode())

        assert len(single.checkouts()[0].last_statement or "") < 250


def test_a_checkout_keeps_no_local_variables_alive(single: Pool) -> None:
    import gc
    from weakref import ref

    class Big:
        pass

    def take() -> tuple[Connection, ref[Big]]:
        big = Big()
        return single.acquire(), ref(big)

    conn, big = take()
    gc.collect()

    assert big() is None
    single.release(conn)


def test_a_leak_whose_statement_cannot_be_shown_is_ended_all_the_same(single: Pool, events: Events) -> None:
    """What cannot be rendered is a mistake of its user's; it must not cost the pool a seat."""

    def take_and_fail() -> Connection:
        conn = single.acquire()
        with pytest.raises(psycopg.Error):
            conn.execute(Broken("SELECT 1"))
        return conn

    kept = InThread(take_and_fail).result()

    with single.connection(timeout=FOUND_WITHIN) as conn:
        assert scalar(conn, "SELECT 1") == 1
    assert "cannot be shown" in leaked(events)["statement"]
    assert kept.closed


def test_the_values_in_a_composed_statement_are_not_shown(single: Pool) -> None:
    with single.connection() as conn:
        conn.execute(sql.SQL("SELECT {} AS {}").format(sql.Literal("secret"), sql.Identifier("shown")))
        [checkout] = single.checkouts()

        assert checkout.last_statement == 'SELECT ... AS "shown"'


def test_an_owner_that_was_reclaimed_a_moment_ago_may_still_return_it(
    single: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between being booked and being ended."""
    conn = as_job("job charge 42", single.acquire)
    booked, enough = threading.Event(), threading.Event()
    revoke = Connection.revoke

    def late(self: Connection, **how: Any) -> None:
        booked.set()
        assert enough.wait(10)
        revoke(self, **how)

    monkeypatch.setattr(Connection, "revoke", late)
    reclaiming = InThread(lambda: single.reclaim("job charge 42"))
    assert booked.wait(10)

    single.release(conn)

    enough.set()
    reclaiming.result()
    assert conn.closed


def test_a_connection_of_a_closed_loop_that_a_living_thread_uses_is_left_alone(single: Pool, events: Events) -> None:
    async def take() -> Connection:
        return single.acquire()

    conn = asyncio.run(take())
    conn.execute("SELECT 1")
    single.sweep_once()

    assert (scalar(conn, "SELECT 2"), events) == (2, [])
    single.release(conn)
