"""A job that notes each second, whoever fires it and however late."""

from __future__ import annotations

from psycopg import Connection

from worker import Context, every, job


@every(seconds=1, missed="all", overlap="allow", grace=3600.0)
@job
def tick(conn: Connection, ctx: Context) -> None:
    assert ctx.scheduled_for is not None
    conn.execute("INSERT INTO note VALUES (%s)", [f"{ctx.scheduled_for.timestamp():.0f}"])
