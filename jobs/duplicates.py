"""The report of identical files: which there are, and what their copies waste."""

from __future__ import annotations

import psycopg

from jobs.statements import CLEAR_REPORT, LOCK_REPORT, WRITE_REPORT
from worker import cron, job


@cron("30 3 * * *", tz="UTC", missed="last", overlap="skip")
@job(queue="inventory")
def find_duplicates(conn: psycopg.Connection) -> None:
    """Replace `inventory.duplicate` by what the inventory holds now; readers see the old report or the new one."""
    conn.execute(LOCK_REPORT)
    conn.execute(CLEAR_REPORT)
    conn.execute(WRITE_REPORT)
