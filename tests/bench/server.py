"""What the stores on this machine have spent: CPU, commits, commands, sessions."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from tests.factories import scalar

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(db: psycopg.Connection) -> float:
    """Of the postmaster, its children that live and those that have ended, since its start; 0 if it is elsewhere."""
    postmaster = _stat(db.info.backend_pid).get("parent")
    if postmaster is None:
        return 0.0
    stats = [_stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    own = _stat(int(postmaster))
    living = sum(stat["own"] for stat in stats if stat.get("parent") == postmaster)
    return (own["own"] + own["ended"] + living) / _TICKS


def process_cpu_seconds(pid: int) -> float:
    """Of one process of this machine, with its children that have ended; 0 if there is none."""
    stat = _stat(pid)
    return (stat.get("own", 0.0) + stat.get("ended", 0.0)) / _TICKS


def commits(db: psycopg.Connection) -> int:
    """Of the database of *db*; sessions report theirs at the latest a second after."""
    return int(scalar(db, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"))


def statements(db: psycopg.Connection) -> int:
    """In the database of *db* since `count_statements`, BEGIN and COMMIT included."""
    return int(
        scalar(
            db,
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"
            " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
    )


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
