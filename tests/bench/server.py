"""What a Postgres on this machine has spent: CPU of all its processes, and commits of one database."""

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


def commits(db: psycopg.Connection) -> int:
    """Of the database of *db*; sessions report theirs at the latest a second after."""
    return int(scalar(db, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"))


def _stat(pid: int) -> dict[str, float]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {}
    user, system, ended_user, ended_system = map(int, fields[11:15])
    return {"parent": int(fields[1]), "own": user + system, "ended": ended_user + ended_system}
