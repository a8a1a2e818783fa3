"""The ledger: what was sent against what has happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

import psycopg

# Each finds what must not be: a name, and how many.
AUDITS: dict[str, LiteralString] = {
    "sends lost after they were confirmed": "SELECT count(*) FROM unnest(%(confirmed)s::int[]) AS number"
    " WHERE NOT EXISTS (SELECT FROM sent WHERE sent.number = number)",
    "effects missing": "SELECT count(*) FROM sent"
    " WHERE NOT EXISTS (SELECT FROM effect WHERE effect.number = sent.number)",
    "effects doubled": "SELECT count(*) FROM (SELECT FROM effect JOIN sent ON sent.number = abs(effect.number)"
    " WHERE sent.kind <> 'at_least_once' GROUP BY effect.number HAVING count(*) > 1) AS doubled",
    "effects of nothing": "SELECT count(*) FROM effect"
    " WHERE NOT EXISTS (SELECT FROM sent WHERE sent.number = abs(effect.number))",
    "followers missing": "SELECT count(*) FROM sent WHERE kind = 'in_thread' AND number %% 3 = 0"
    " AND NOT EXISTS (SELECT FROM effect WHERE effect.number = -sent.number)",
    "ticks missing": "SELECT count(*) FROM (SELECT min(tick) AS first, max(tick) AS last FROM ticked) AS bounds,"
    " generate_series(first, last, interval '1 second') AS tick"
    " WHERE NOT EXISTS (SELECT FROM ticked WHERE ticked.tick = tick.tick)",
    "ticks doubled": "SELECT count(*) - count(DISTINCT tick) FROM ticked",
    "jobs left": "SELECT count(*) FROM worker.job WHERE actor <> 'ticking'",  # it ticks until the end
    "jobs dead": "SELECT count(*) FROM worker.job_dead",
}
# Each is worth knowing, and may be anything.
_COUNTS: dict[str, LiteralString] = {
    "jobs sent": "SELECT count(*) FROM sent",
    "effects": "SELECT count(*) FROM effect",
    "of these repeated, at least once": "SELECT count(*) - count(DISTINCT effect.number) FROM effect"
    " JOIN sent ON sent.number = effect.number WHERE kind = 'at_least_once'",
    "ticks": "SELECT count(*) FROM ticked",
}


def audit(conn: psycopg.Connection, confirmed: Sequence[int]) -> dict[str, int]:
    """What must not be, with how often it is."""
    return {name: count(conn, query, {"confirmed": list(confirmed)}) for name, query in AUDITS.items()}


def counts(conn: psycopg.Connection) -> dict[str, int]:
    """What was done."""
    return {name: count(conn, query) for name, query in _COUNTS.items()}


def count(conn: psycopg.Connection, query: LiteralString, parameters: dict[str, object] | None = None) -> int:
    row = conn.execute(query, parameters).fetchone()
    return 0 if row is None else int(row[0])
