"""The reserved session: how the server is to plan, and how long to wait, whatever the dispatcher asks."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg

# What is asked here is ours alone, and rests on indexes. Nothing may wait for somebody else's lock for as long as to
# miss a heartbeat: whoever is in the way, say a transaction that sends a running job again and stays open, is passed by
# and met again later. Statistics of a table that was empty a moment ago make a scan of it all look cheap; those of many
# queues, to sort all jobs of each for its first few. Where a scan cannot be avoided, the first of these settings makes
# its cost look astronomic, and the server would spend a second on compiling a statement of a millisecond. So there is
# one good plan for each statement, and making it anew at each look would cost several times the look.
# It may have been made when the table was empty: there a walk along all of job_pkey looks as cheap as one look into it.
# So jobs are joined by `id = ANY(ARRAY[...])`, which nothing but such looks can serve.
PREPARE_SESSION: LiteralString = """
    SELECT
        set_config('statement_timeout', %(statement_timeout)s, false),
        set_config('lock_timeout', '250ms', false),
        set_config('enable_seqscan', 'off', false),
        set_config('enable_bitmapscan', 'off', false),
        set_config('jit', 'off', false),
        set_config('plan_cache_mode', 'force_generic_plan', false)"""


def prepare(conn: psycopg.Connection[Any], *, statement_timeout: float) -> None:
    """Set up the session of *conn* for the dispatcher; *statement_timeout* in seconds."""
    conn.execute(PREPARE_SESSION, {"statement_timeout": f"{int(statement_timeout * 1000)}ms"})
