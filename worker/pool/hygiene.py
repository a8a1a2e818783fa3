"""Hygiene: a connection comes back as it went out, or the one who had it is named."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from worker import log
from worker.pool.checkout import Checkout
from worker.pool.connection import Connection

logger = log.get_logger(__name__)

# What the server reports by itself whenever it changes: looking costs nothing.
_REPORTED = (
    b"TimeZone", b"DateStyle", b"IntervalStyle", b"client_encoding", b"application_name", b"search_path",
    b"default_transaction_read_only", b"session_authorization",
)  # fmt: skip

# One look at all that a session can keep beyond a transaction; reads the server's memory, no table of the user's.
FIND_LEFTOVERS: LiteralString = """
    SELECT 'setting' AS kind, name, setting AS value FROM pg_settings WHERE source = 'session'
    UNION ALL
    SELECT 'role', current_user, '' WHERE current_user <> session_user
    UNION ALL
    SELECT 'LISTEN', channel, '' FROM pg_listening_channels() AS channel
    UNION ALL
    SELECT 'temporary table', relname, '' FROM pg_class
    WHERE relnamespace = pg_my_temp_schema() AND relkind IN ('r', 'p', 'S', 'v')
    UNION ALL
    SELECT 'advisory lock', concat_ws(':', classid, objid), '' FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL
    SELECT 'prepared statement', name, '' FROM pg_prepared_statements WHERE from_sql
    UNION ALL
    SELECT 'cursor', name, '' FROM pg_cursors WHERE is_holdable
"""

# Looked up at each return.
_IDLE = TransactionStatus.IDLE

_RESTORE_SETTING: LiteralString = "SELECT set_config(%s, %s, false)"

# How each kind is undone; DISCARD ALL would also take what the pool itself has set up.
_CLEANING: dict[str, LiteralString] = {
    "role": "RESET ROLE",
    "LISTEN": "UNLISTEN *",
    "temporary table": "DISCARD TEMP",
    "advisory lock": "SELECT pg_advisory_unlock_all()",
    "prepared statement": "DEALLOCATE ALL",
    "cursor": "CLOSE ALL",
}


class HygieneMode(StrEnum):
    """What is looked for, beyond what is free to see, when a connection comes back."""

    OFF = "off"
    """Nothing more."""
    DETECT = "detect"
    """All that a session can keep, by one statement at each return; what is found is named and undone."""
    DISCARD = "discard"
    """The same look; a session in which something is found is named, closed and replaced."""


class Leftover(NamedTuple):
    """Something that outlived the transaction it was made in."""

    kind: str
    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} = {self.value}" if self.value else f"{self.kind} {self.name}"


class Standard(NamedTuple):
    """A connection as it goes out."""

    attributes: tuple[Any, ...]
    reported: tuple[bytes | None, ...]
    handlers: tuple[tuple[Any, ...], tuple[Any, ...]]
    adapters: AdaptersMap
    leftovers: frozenset[Leftover]
    look: bytes
    """What is asked for when it comes back; nothing in mode off."""


_ATTRIBUTES = (
    "_autocommit", "row_factory", "cursor_factory", "server_cursor_factory", "_isolation_level", "_read_only",
    "_deferrable", "prepare_threshold", "prepared_max",
)  # fmt: skip


class Hygiene:
    """Compares each connection that comes back with how it went out, and restores it."""

    def __init__(self, mode: HygieneMode) -> None:
        self.mode = mode
        self._sees_all = mode is HygieneMode.OFF  # what is free to see is all that is looked at
        self.num_dirty = 0
        """Connections that did not come back as they went out."""

    def remember(self, conn: Connection) -> None:
        """This is how *conn*, which is new, is to come back."""
        found: frozenset[Leftover] = frozenset()
        look = b""
        if self.mode is not HygieneMode.OFF:
            found = frozenset(_find(conn, FIND_LEFTOVERS.encode()))
            conn.rollback()
            look = _look(conn, found)
        # A copy that shares all with its origin, whose registrations copy what is shared before they change it.
        adapters = AdaptersMap(conn.adapters)
        conn.standard = Standard(_attributes(conn), _reported(conn), _handlers(conn), adapters, found, look)

    def is_clean(self, conn: Connection) -> bool:
        """Whether all that can be seen for free is as it was, and nothing else is to be looked for; no round trip."""
        standard = conn.standard
        return (
            self._sees_all
            and standard is not None
            and conn.pgconn.transaction_status == _IDLE
            and not conn.pgconn.pipeline_status
            and conn._pipeline is None
            and conn._tpc is None
            and _attributes(conn) == standard.attributes
            and _reported(conn) == standard.reported
            and _handlers(conn) == standard.handlers
            and _are_alike(conn.adapters, standard.adapters)
        )

    def restore(self, conn: Connection, checkout: Checkout) -> None:
        """
        Bring *conn* back to how it went out and blame what was found on its *checkout*; closes it where it cannot.

        Up to a few round trips when something was left, else none, or one with a mode other than off.
        """
        if conn.closed:
            return
        try:
            found = self._restore(conn)
        except psycopg.Error as exc:
            self.num_dirty += 1
            logger.warning("pool.discarded", reason=str(exc), checkout=str(checkout))
            conn.close()
            return
        if found:
            self.num_dirty += 1
            logger.warning(
                "pool.dirty", found=found, checkout=str(checkout), statement=checkout.last_statement,
                advice="end transactions, use SET LOCAL, and undo what a session keeps",
            )  # fmt: skip

    def _restore(self, conn: Connection) -> list[str]:
        found = []
        status = conn.pgconn.transaction_status
        if conn.pgconn.pipeline_status or conn._pipeline or status == TransactionStatus.ACTIVE:
            raise psycopg.OperationalError("it came back in the middle of a statement or a pipeline")
        if conn._tpc is not None:
            raise psycopg.OperationalError("it came back in a two-phase transaction")
        if status != TransactionStatus.IDLE:
            found.append("open transaction")
            conn.rollback()
        found += _restore_client(conn)
        found += self._restore_session(conn)
        return found

    def _restore_session(self, conn: Connection) -> list[str]:
        standard = _standard(conn)
        conn._autocommit = True
        try:
            if self.mode is HygieneMode.OFF:
                return _restore_reported(conn, standard)
            now = frozenset(_find(conn, standard.look))
            found = sorted(str(leftover) for leftover in now - standard.leftovers)
            found += sorted(f"{leftover.kind} {leftover.name} was reset" for leftover in _missing(standard, now))
            if found and self.mode is HygieneMode.DISCARD:
                raise psycopg.OperationalError(f"its session kept {', '.join(found)}")
            _undo(conn, now - standard.leftovers)
            if _reported(conn) != standard.reported:
                raise psycopg.OperationalError("its session could not be restored")
            return found
        finally:
            conn._autocommit = standard.attributes[0]


def _standard(conn: Connection) -> Standard:
    standard = conn.standard
    assert isinstance(standard, Standard)  # noqa: S101  # every connection of a pool is remembered when it is made
    return standard


def _restore_client(conn: Connection) -> list[str]:
    """What psycopg keeps on its own side."""
    standard = _standard(conn)
    found = []
    for name, was, now in zip(_ATTRIBUTES, standard.attributes, _attributes(conn), strict=True):
        if now != was:
            found.append(f"{name.lstrip('_')} {now!r}")
            setattr(conn, name, was)
            conn._begin_statement = b""
    if _handlers(conn) != standard.handlers:
        found.append("notice or notify handlers")
        conn._notice_handlers[:], conn._notify_handlers[:] = standard.handlers
    if not _are_alike(conn.adapters, standard.adapters):
        found.append("adapters")
        conn._adapters = AdaptersMap(standard.adapters)
    return found


def _find(conn: Connection, look: bytes) -> list[Leftover]:
    with conn.cursor(row_factory=tuple_row) as cur:
        return [Leftover(*row) for row in cur.execute(look)]


def _look(conn: Connection, standard: frozenset[Leftover]) -> bytes:
    """
    Find leftovers and restore every setting, in one round trip.

    The settings are restored whatever is found, because those that an application makes up (`app.tenant`) are listed
    nowhere on the server, and the next user's rows may hang on them.
    """
    restore = sql.SQL("; SELECT set_config({}, {}, false)")
    settings = sorted(leftover for leftover in standard if leftover.kind == "setting")
    return sql.Composed(
        [sql.SQL(FIND_LEFTOVERS), sql.SQL("; RESET ALL"), *(restore.format(was.name, was.value) for was in settings)]
    ).as_bytes(conn)


def _restore_reported(conn: Connection, standard: Standard) -> list[str]:
    """Restore what the server reports by itself, and nothing else: what a hook has set up is not known in mode off."""
    found = []
    for name, was, now in zip(_REPORTED, standard.reported, _reported(conn), strict=True):
        if now != was:
            found.append(f"setting {name.decode()} = {(now or b'').decode(errors='replace')}")
            conn.execute(_RESTORE_SETTING, [name.decode(), (was or b"").decode()])
    return found


def _missing(standard: Standard, now: frozenset[Leftover]) -> list[Leftover]:
    """What the pool had set up in the session, and is not there any more."""
    names = {leftover.name for leftover in now}
    return [was for was in standard.leftovers if was.kind == "setting" and was.name not in names]


def _undo(conn: Connection, left: frozenset[Leftover]) -> None:
    for kind in {leftover.kind for leftover in left} - {"setting"}:
        conn.execute(_CLEANING[kind])
        if kind == "prepared statement":
            conn._prepared.clear()


def _attributes(conn: Connection) -> tuple[Any, ...]:
    return (
        conn._autocommit, conn.row_factory, conn.cursor_factory, conn.server_cursor_factory, conn._isolation_level,
        conn._read_only, conn._deferrable, conn.prepare_threshold, conn.prepared_max,
    )  # fmt: skip


def _reported(conn: Connection) -> tuple[bytes | None, ...]:
    ask = conn.pgconn.parameter_status
    return tuple([ask(name) for name in _REPORTED])


def _handlers(conn: Connection) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return tuple(conn._notice_handlers), tuple(conn._notify_handlers)


def _are_alike(one: AdaptersMap, other: AdaptersMap) -> bool:
    """Whether the two share all they have: lists compare what is identical at once, dictionaries do not."""
    return (
        one._loaders == other._loaders
        and one._dumpers_by_oid == other._dumpers_by_oid
        and [*one._dumpers.values()] == [*other._dumpers.values()]
        and one.types._registry is other.types._registry
    )
