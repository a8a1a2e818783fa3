"""Hygiene: a connection goes out as every other does, whatever its last user did to it; and that one is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.rows import dict_row, tuple_row
from psycopg.types import TypeInfo

from tests.factories import backend_pid, is_there, scalar
from tests.pool.conftest import Events, OpenPool
from tests.pool.proxy import Proxy, proxied
from worker.pool import Connection, HygieneMode, Pool, holder

Mess = Callable[[Connection], object]


def do(*statements: str) -> Mess:
    def mess(conn: Connection) -> None:
        for statement in statements:
            conn.execute(statement.encode())
        conn.commit()

    return mess


def leave_a_transaction_open(conn: Connection) -> None:
    conn.execute("SELECT 1")


def leave_a_failed_transaction(conn: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("SELECT 1/0")


def change(name: str, value: Any) -> Mess:
    def mess(conn: Connection) -> None:
        setattr(conn, name, value)

    return mess


# Seen for free, in every mode.
FREE: dict[str, Mess] = {
    "open transaction": leave_a_transaction_open,
    "open transaction that failed": leave_a_failed_transaction,
    "autocommit": change("autocommit", True),
    "row_factory": change("row_factory", dict_row),
    "isolation_level": change("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": change("read_only", True),
    "deferrable": change("deferrable", True),
    "cursor_factory": change("cursor_factory", psycopg.ClientCursor),
    "notice handler": lambda conn: conn.add_notice_handler(print),
    "setting TimeZone": do("SET timezone = 'Asia/Tokyo'"),
    "setting application_name": do("SET application_name = 'somebody else'"),
}
# Asked for, in the modes detect and discard.
ASKED: dict[str, Mess] = {
    "setting statement_timeout": do("SET statement_timeout = '17s'"),
    "setting search_path": do("SET search_path = pg_catalog"),
    "role": do("SET ROLE pg_monitor"),
    "LISTEN something": do("LISTEN something"),
    "temporary table leftover": do("CREATE TEMP TABLE leftover (id int)"),
    "advisory lock": do("SELECT pg_advisory_lock(42)"),
    "prepared statement kept_plan": do("PREPARE kept_plan AS SELECT 1"),
    "cursor held": do("BEGIN", "DECLARE held CURSOR WITH HOLD FOR SELECT 1", "COMMIT"),
}


def state(conn: Connection) -> dict[str, Any]:
    """All that a user of a connection can tell it by."""
    queries = {
        # These two may be set, to what they were.
        "settings": "SELECT array_agg(name || setting) FROM pg_settings WHERE source = 'session'"
        " AND name NOT IN ('TimeZone', 'application_name')",
        "zone": "SHOW timezone",
        "application_name": "SHOW application_name",
        "tenant": "SELECT coalesce(current_setting('app.tenant', true), '')",
        "role": "SELECT current_user",
        "listening": "SELECT count(*) FROM pg_listening_channels()",
        "temporary": "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
        "locks": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "prepared": "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
        "cursors": "SELECT count(*) FROM pg_cursors WHERE is_holdable",
    }
    names = ("autocommit", "isolation_level", "read_only", "deferrable", "row_factory", "cursor_factory")
    client = {name: getattr(conn, name) for name in names}
    handlers = len(conn._notice_handlers), len(conn._notify_handlers)
    with psycopg.Cursor(conn, row_factory=tuple_row) as cur:
        server = {name: (cur.execute(query.encode()).fetchone() or [None])[0] for name, query in queries.items()}
    return {**client, **server, "handlers": handlers, "status": conn.info.transaction_status}


def soil(pool: Pool, mess: Mess) -> int:
    """Let a job make *mess* and go; the session it had."""
    token = holder.set("job charge 42")
    conn = pool.acquire()
    holder.reset(token)
    mess(conn)
    pid = backend_pid(conn)
    pool.release(conn)
    return pid


def dirt(events: Events) -> str:
    """What the one blame in the log says was found."""
    blamed = [event for event in events if event["event"] in ("pool.dirty", "pool.discarded")]
    assert len(blamed) == 1
    assert "job charge 42 for" in blamed[0]["checkout"]
    return str(blamed[0].get("found") or blamed[0]["reason"])


def look(pool: Pool) -> dict[str, Any]:
    with pool.connection(timeout=5) as conn:
        return state(conn)


@pytest.fixture(params=list(HygieneMode), ids=str)
def any_mode(open_pool: OpenPool, request: pytest.FixtureRequest) -> Pool:
    return open_pool(max_size=1, hygiene=request.param)


@pytest.fixture
def detecting(open_pool: OpenPool) -> Pool:
    return open_pool(max_size=1, hygiene=HygieneMode.DETECT)


@pytest.fixture
def discarding(open_pool: OpenPool) -> Pool:
    return open_pool(max_size=1, hygiene=HygieneMode.DISCARD)


@pytest.mark.parametrize("kind", FREE)
def test_what_is_free_to_see_is_undone_in_every_mode_and_blamed(any_mode: Pool, kind: str, events: Events) -> None:
    before = look(any_mode)

    soil(any_mode, FREE[kind])

    assert look(any_mode) == before
    assert kind.removesuffix(" that failed").split()[-1] in dirt(events)


@pytest.mark.parametrize("kind", ASKED)
def test_what_a_session_keeps_is_undone_in_mode_detect_and_blamed(detecting: Pool, kind: str, events: Events) -> None:
    before = look(detecting)

    pid = soil(detecting, ASKED[kind])

    assert kind in dirt(events)
    with detecting.connection() as conn:
        assert backend_pid(conn) == pid
        assert state(conn) == before


@pytest.mark.parametrize("kind", ASKED)
def test_a_session_that_kept_something_is_replaced_in_mode_discard_and_blamed(
    discarding: Pool, kind: str, events: Events, db: psycopg.Connection
) -> None:
    before = look(discarding)

    pid = soil(discarding, ASKED[kind])

    assert kind in dirt(events)
    assert not is_there(db, pid)
    assert look(discarding) == before


@pytest.mark.parametrize("mode", [HygieneMode.DETECT, HygieneMode.DISCARD])
def test_settings_that_the_application_made_up_are_undone_though_the_server_lists_them_nowhere(
    open_pool: OpenPool, mode: HygieneMode
) -> None:
    pool = open_pool(max_size=1, hygiene=mode)

    soil(pool, do("SET app.tenant = '42'"))

    with pool.connection() as conn:
        assert scalar(conn, "SELECT current_setting('app.tenant', true)") in (None, "")


def test_in_mode_off_a_hooks_settings_survive_the_cleaning_of_a_users(open_pool: OpenPool) -> None:
    pool = open_pool(max_size=1, after_connect=lambda conn: conn.execute("SET statement_timeout = '17s'"))

    soil(pool, do("SET timezone = 'Asia/Tokyo'"))

    with pool.connection() as conn:
        assert scalar(conn, "SHOW statement_timeout") == "17s"
        assert scalar(conn, "SHOW timezone") != "Asia/Tokyo"


def test_in_mode_off_what_is_not_free_to_see_is_left_alone(open_pool: OpenPool, events: Events) -> None:
    pool = open_pool(max_size=1)

    soil(pool, ASKED["setting statement_timeout"])

    with pool.connection() as conn:
        assert scalar(conn, "SHOW statement_timeout") == "17s"
    assert not [event for event in events if event["event"] == "pool.dirty"]


def test_what_the_hook_set_up_is_no_leftover(open_pool: OpenPool, events: Events) -> None:
    def set_up(conn: Connection) -> None:
        conn.execute("SET statement_timeout = '17s'")
        conn.execute("CREATE TEMP TABLE scratch (id int)")

    pool = open_pool(max_size=1, hygiene=HygieneMode.DETECT, after_connect=set_up)

    for _ in range(2):
        with pool.connection() as conn:
            assert scalar(conn, "SHOW statement_timeout") == "17s"

    assert not [event for event in events if event["event"] == "pool.dirty"]


def test_what_the_hook_set_up_is_put_back_when_a_user_changed_it(open_pool: OpenPool, events: Events) -> None:
    pool = open_pool(
        max_size=1, hygiene=HygieneMode.DETECT, after_connect=lambda conn: conn.execute("SET statement_timeout = '17s'")
    )

    for mess in (do("SET statement_timeout = '1s'"), do("RESET statement_timeout"), do("RESET ALL")):
        soil(pool, mess)
        with pool.connection() as conn:
            assert scalar(conn, "SHOW statement_timeout") == "17s"

    assert [event["event"] for event in events].count("pool.dirty") == 3


def test_a_connection_that_comes_back_in_the_middle_of_a_pipeline_is_replaced(any_mode: Pool, events: Events) -> None:
    pipelines: list[Any] = []

    def enter_a_pipeline(conn: Connection) -> None:
        pipelines.append(conn.pipeline())
        pipelines[0].__enter__()

    pid = soil(any_mode, enter_a_pipeline)

    assert "pipeline" in dirt(events)
    with any_mode.connection(timeout=5) as conn:
        assert backend_pid(conn) != pid


def test_an_error_inside_of_a_pipeline_leaves_the_connection_usable(any_mode: Pool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), any_mode.connection() as conn, conn.pipeline():
        conn.execute("SELECT 1/0")

    with any_mode.connection() as conn:
        assert scalar(conn, "SELECT 1") == 1


def test_a_connection_that_comes_back_in_the_middle_of_a_statement_is_replaced(any_mode: Pool, events: Events) -> None:
    pid = soil(any_mode, lambda conn: conn.pgconn.send_query(b"SELECT pg_sleep(600)"))

    assert "middle of a statement" in dirt(events)
    with any_mode.connection(timeout=5) as conn:
        assert backend_pid(conn) != pid


def test_dirty_connections_are_counted(detecting: Pool) -> None:
    soil(detecting, ASKED["LISTEN something"])
    soil(detecting, do("SELECT 1"))

    assert detecting.stats().dirty_total == 1


def test_the_blame_names_place_and_last_statement(detecting: Pool, events: Events) -> None:
    soil(detecting, ASKED["LISTEN something"])

    blamed = next(event for event in events if event["event"] == "pool.dirty")
    assert "taken at test_hygiene.py" in blamed["checkout"]
    assert blamed["statement"] == "LISTEN something"


def test_statements_that_psycopg_prepared_by_itself_are_no_leftovers(detecting: Pool, events: Events) -> None:
    with detecting.connection() as conn:
        for _ in range(8):
            conn.execute("SELECT 'often'")

    assert detecting.stats().dirty_total == 0
    assert not events or all(event["event"] != "pool.dirty" for event in events)


def test_prepared_statements_work_on_after_leftovers_were_undone(detecting: Pool) -> None:
    with detecting.connection() as conn:
        for _ in range(8):
            conn.execute("SELECT 'often'")
    soil(detecting, do("PREPARE kept_plan AS SELECT 1"))

    with detecting.connection() as conn:
        for _ in range(8):
            conn.execute("SELECT 'often'")


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with proxied(database) as proxy:
        yield proxy


def test_a_clean_return_costs_not_one_byte_in_mode_off(open_pool: OpenPool, proxy: Proxy) -> None:
    pool = open_pool(proxy.conninfo, max_size=1)
    conn = pool.acquire()
    conn.execute("SELECT 1")
    conn.commit()
    scalar(conn, "SELECT 'a round trip, so that the proxy has seen all before'")
    conn.commit()
    before = len(proxy.sent)

    pool.release(conn)
    conn = pool.acquire()

    assert len(proxy.sent) == before
    pool.release(conn)


def test_a_clean_return_costs_one_statement_in_mode_detect(open_pool: OpenPool, proxy: Proxy) -> None:
    pool = open_pool(proxy.conninfo, max_size=1, hygiene=HygieneMode.DETECT)
    conn = pool.acquire()
    before = len(proxy.sent)

    pool.release(conn)

    assert bytes(proxy.sent[before:]).count(b"pg_listening_channels") == 1
    assert bytes(proxy.sent[before:]).count(b"BEGIN") == 0


class Reversed(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data)[::-1].decode()


def register_loader(conn: psycopg.Connection) -> None:
    conn.adapters.register_loader("text", Reversed)


def register_dumper(conn: psycopg.Connection) -> None:
    conn.adapters.register_dumper(list, psycopg.types.json.JsonbDumper)


def register_type(conn: psycopg.Connection) -> None:
    conn.adapters.types.add(TypeInfo("mine", 999_999, 999_998))


@pytest.mark.parametrize("mode", list(HygieneMode))
@pytest.mark.parametrize("change", [register_loader, register_dumper, register_type])
def test_adapters_that_a_user_registers_are_taken_back_and_named(
    open_pool: OpenPool, events: Events, mode: HygieneMode, change: Callable[[psycopg.Connection], None]
) -> None:
    pool = open_pool(max_size=1, hygiene=mode)

    for _ in range(2):
        with pool.connection() as conn:
            assert scalar(conn, "SELECT 'abc'::text") == "abc"
            assert 999_999 not in [info.oid for info in conn.adapters.types]
            change(conn)

    assert [event["found"] for event in events if event["event"] == "pool.dirty"] == [["adapters"], ["adapters"]]


def test_how_statements_are_prepared_is_restored_and_named(open_pool: OpenPool, events: Events) -> None:
    pool = open_pool(max_size=1)

    with pool.connection() as conn:
        before = conn.prepare_threshold, conn.prepared_max
        conn.prepare_threshold, conn.prepared_max = None, None
    with pool.connection() as conn:
        assert (conn.prepare_threshold, conn.prepared_max) == before

    assert [event["found"] for event in events if event["event"] == "pool.dirty"] == [
        ["prepare_threshold None", "prepared_max None"]
    ]


def test_using_adapters_leaves_nothing(open_pool: OpenPool, events: Events) -> None:
    pool = open_pool(max_size=1)

    for _ in range(2):
        with pool.connection() as conn:
            conn.execute("SELECT %s, %s, %s", [[1], psycopg.types.json.Jsonb({}), UUID(int=1)]).fetchall()

    assert not [event for event in events if event["event"] == "pool.dirty"]
