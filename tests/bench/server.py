"""What the stores on this machine have spent: CPU, statements, connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import psycopg

from tests.factories import scalar

_TICKS = os.sysconf("SC_CLK_TCK")
_ESTABLISHED = "01"


def cpu_seconds(db: psycopg.Connection) -> float:
    """Of the postmaster, its children that live and those that have ended, since its start; 0 if it is elsewhere."""
    postmaster = _stat(db.info.backend_pid).get("parent")
    if postmaster is None:
        return 0.0
    stats = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    own = stats[int(postmaster)]
    living = sum(_exact_seconds(pid, stat) for pid, stat in stats.items() if stat.get("parent") == postmaster)
    return (own["own"] + own["ended"]) / _TICKS + living


def own_seconds(db: psycopg.Connection) -> float:
    """CPU of this process, of those that it started and that have ended, and of the server of *db*."""
    return cpu_seconds(db) + process_cpu_seconds(os.getpid())


def process_cpu_seconds(pid: int) -> float:
    """Of one process of this machine, with its children that have ended; 0 if there is none."""
    stat = _stat(pid)
    return (stat.get("own", 0.0) + stat.get("ended", 0.0)) / _TICKS


def num_tcp_connections(port: int) -> int:
    """Of clients to a server on *port* of this machine."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == _ESTABLISHED for fields in sockets)


def statements(db: psycopg.Connection) -> int:
    """In the database of *db* since `count_statements`, BEGIN and COMMIT included, without this look at them."""
    return int(
        scalar(
            db,
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"
            " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND query NOT LIKE '%%pg_stat_statements%%'",
        )
    )


class Claims(NamedTuple):
    """The statements of a database that take jobs, as every queue on Postgres does it: past the locks of others."""

    calls: float
    milliseconds: float
    blocks: float

    def __sub__(self, before: Claims) -> Claims:
        return Claims(*(now - then for now, then in zip(self, before, strict=True)))


def claims(db: psycopg.Connection) -> Claims:
    """In the database of *db* since `count_statements`; blocks of 8 kB that were looked at."""
    row = db.execute(
        "SELECT coalesce(sum(calls), 0), coalesce(sum(total_exec_time), 0),"
        " coalesce(sum(shared_blks_hit + shared_blks_read), 0) FROM pg_stat_statements"
        " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query ILIKE '%SKIP LOCKED%'"
    ).fetchone()
    assert row is not None
    return Claims(*map(float, row))


def count_statements(db: psycopg.Connection) -> bool:
    """Count those of all sessions that are opened from now on; false if the server cannot."""
    if "pg_stat_statements" not in scalar(db, "SHOW shared_preload_libraries"):
        return False
    db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    db.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET pg_stat_statements.track = top', current_database()); END $$"
    )
    return True


def _stat(pid: int) -> dict[str, float]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {}
    user, system, ended_user, ended_system = map(int, fields[11:15])
    return {"parent": int(fields[1]), "own": user + system, "ended": ended_user + ended_system}


def _exact_seconds(pid: int, stat: dict[str, float]) -> float:
    """Of a process with one thread: ticks are too coarse where many processes do little each."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return stat["own"] / _TICKS
