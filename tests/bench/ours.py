"""Our worker in a process of its own, at ten slots: `python -m tests.bench.ours DATABASE JOBS`; JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack

import psycopg

from tests.bench import jobs
from tests.bench.protocol import watched
from tests.factories import num_sessions, scalar
from tests.running import RunningWorker, running_worker
from tests.waiting import wait_until
from worker import log
from worker.queue.lease import application_name

SLOTS = 10
_PATIENCE = 600.0
_TICK = 0.05


def main(database: str, number: int, kind: str) -> None:
    log.configure("json", "warning")
    with ExitStack() as stack:
        wire = stack.enter_context(watched()) if kind == "traffic" else None
        db = stack.enter_context(psycopg.connect(database, autocommit=True))
        worker = stack.enter_context(running_worker(jobs.broker, database, pool_size=SLOTS + 1))
        if kind == "idle":
            worker.dispatcher.submit(lambda _: None).result(_PATIENCE)
        before, cpu = time.monotonic(), time.process_time()
        if kind == "idle":
            time.sleep(number)
        else:
            _until_settled(db, worker, number)
        figures = {
            "seconds": time.monotonic() - before,
            "cpu": time.process_time() - cpu,
            "sessions": num_sessions(db, application_name(worker.dispatcher.lease.worker_id)),
            "started_after": jobs.started_after,
            "traffic": wire.traffic() if wire else None,
        }
    print(json.dumps(figures))


def _until_settled(db: psycopg.Connection, worker: RunningWorker, number: int) -> None:
    """All *number* jobs are recorded as done; looks at the table only when nothing is left in memory."""
    query = "SELECT count(*) FROM worker.job_history WHERE outcome = 'done'"

    def settled() -> bool:
        return not worker.dispatcher.num_outstanding and int(scalar(db, query)) >= number

    while not settled():
        wait_until(lambda: not worker.dispatcher.num_outstanding, _PATIENCE, "the jobs")
        time.sleep(_TICK)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
