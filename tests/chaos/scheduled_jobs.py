"""The jobs of the chaos: a job that notes its tick, on one-second and odd schedules that must fire every tick."""

from __future__ import annotations

import os
from typing import Any

from psycopg import Connection

from worker import Context, cron, every, job

# All of what was missed, so that a tick without a run is one that was lost.
_ALL: dict[str, Any] = {"missed": "all", "overlap": "allow", "grace": 86400.0}

# What the two deploys of the chaos declare under one name.
OLD, NEW = 2.0, 3.0
DEPLOYED = "deployed anew"
DEPLOY_VARIABLE = "CHAOS_DEPLOY"


@every(seconds=1, name="each second", **_ALL)
@every(seconds=1.7, name="each 1.7 seconds", **_ALL)
@every(seconds=7, name="each 7 seconds", jitter=2.0, **_ALL)
@every(seconds=NEW if os.environ.get(DEPLOY_VARIABLE) == "new" else OLD, name=DEPLOYED, **_ALL)
@cron("*/3 * * * * *", seconds=True, tz="Asia/Kathmandu", name="each third second", **_ALL)
@cron("7-59/13,0 * * * * mon-sun", seconds=True, tz="Australia/Lord_Howe", name="odd seconds", **_ALL)
@job(max_retries=None, min_backoff=100, max_backoff=1000)
def note(conn: Connection, ctx: Context) -> None:
    """Write down the tick, in the transaction of the job."""
    conn.execute("INSERT INTO noted (schedule, tick) VALUES (%s, %s)", [ctx.schedule, ctx.scheduled_for])
