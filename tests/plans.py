"""How the server answers a statement of ours in a session like the dispatcher's, where each is planned once."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer

from worker.queue.schema import Schema


def explained(db: psycopg.Connection, statement: LiteralString, parameters: dict[str, Any]) -> dict[str, Any]:
    """What `EXPLAIN ANALYZE` tells of *statement* as the server runs it when prepared, with plan and times."""
    query = PostgresQuery(Transformer.from_context(db))
    query.convert(Schema().render(statement).encode(), parameters)
    values = sql.SQL(", ").join(sql.Literal(parameters[name]) for name in query._order or ())
    given = sql.SQL("({})").format(values) if query._order else sql.SQL("")
    # EXPLAIN would plan the statement itself for these parameters; EXECUTE asks what is prepared.
    db.execute(b"PREPARE explained AS " + query.query)
    try:
        asked = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) EXECUTE explained{}").format(given)
        row = db.execute(asked).fetchone()
    finally:
        db.execute("DEALLOCATE explained")
    assert row is not None
    answer: dict[str, Any] = row[0][0]
    return answer


def blocks(plan: dict[str, Any]) -> int:
    """Of 8 kB, that were looked at."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def num_blocks(db: psycopg.Connection, statement: LiteralString, parameters: dict[str, Any]) -> int:
    """
    Blocks that *statement* looks at, without those of the catalogue; what it does is undone.

    Who has slept while others made thousands of tables has forgotten the catalogue, and reads it anew once.
    """
    return min(_num_blocks_once(db, statement, parameters) for _ in range(2))


def _num_blocks_once(db: psycopg.Connection, statement: LiteralString, parameters: dict[str, Any]) -> int:
    with db.transaction(force_rollback=True):
        return blocks(explained(db, statement, parameters)["Plan"])
