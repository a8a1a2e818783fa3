"""How the inventory grows: a sample every two seconds, while there is something to see."""

from __future__ import annotations

import psycopg

from jobs.statements import FORGET_PROGRESS, SAMPLE_PROGRESS
from worker import every, job


# Ahead of the many jobs that wait: a sample is of now or of no use.
@every(seconds=2, missed="skip", overlap="skip")
@job(queue="inventory", priority=-60)
def sample_progress(conn: psycopg.Connection) -> None:
    """Note how many files and bytes the inventory holds, when that has changed; samples are kept for a day."""
    conn.execute(SAMPLE_PROGRESS)
    conn.execute(FORGET_PROGRESS)
