"""How long a worker keeps what is over, as its settings say."""

from __future__ import annotations

from datetime import timedelta

import psycopg

from tests.factories import scalar
from tests.lifecycle.conftest import WAIT, StartWorker
from tests.waiting import wait_until
from worker import clock
from worker.queue.history import History
from worker.queue.schema import Schema

TICK = """
    INSERT INTO worker.tick (schedule, tick, outcome, lateness, reason, decided_at)
    SELECT %(name)s, at, 'skipped', 0, 'paused', at
    FROM (SELECT now() - %(days)s * interval '1 day' AS at) AS at"""
PARTITION = (
    "SELECT to_regclass('worker.job_history_' || to_char(now() - %s * interval '1 day', 'YYYYMMDD')) IS NOT NULL"
)


def test_ledger_and_history_are_kept_as_long_as_the_settings_say(
    start_worker: StartWorker, database: str, db: psycopg.Connection
) -> None:
    for days in (1, 3):
        db.execute(TICK, {"name": f"{days} days ago", "days": days})
    History(Schema(), keep=None).maintain(db, clock.now().date() - timedelta(days=9))

    start_worker(database, WORKER_TICK_DAYS="2", WORKER_HISTORY_DAYS="4").running()

    wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.tick") == 1, WAIT, "the ledger to forget")
    assert scalar(db, "SELECT schedule FROM worker.tick") == "1 days ago"
    wait_until(lambda: not scalar(db, PARTITION, 6), WAIT, "the history to forget")
    assert scalar(db, PARTITION, 3)
