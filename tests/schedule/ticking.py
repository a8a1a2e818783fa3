"""A process with a scheduler in it, for tests that kill it: `python -m tests.schedule.ticking URL [hang]`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from tests.schedule.standins import SCHEMA, dispatcher, enqueue, schedule
from worker import log
from worker.schedule import Scheduler
from worker.schedule.sending import Firing
from worker.schedule.trigger import Every


def hang_inside(conn: psycopg.Connection[Any], firings: Sequence[Firing]) -> list[UUID | Exception]:
    """Enqueue and then stay in the open transaction, holding the schedule's row."""
    enqueue(conn, firings)
    print("inside", flush=True)
    threading.Event().wait()
    raise AssertionError("it was to be killed in here")


def main(url: str, *options: str) -> None:
    log.configure("json")
    # All of what was missed, so that a gap in the ledger is a tick that was lost.
    every_second = schedule(trigger=Every(1), spec="every 1 second", missed="all")
    sender = hang_inside if "hang" in options else enqueue
    with dispatcher(url) as submit, Scheduler([every_second], submit=submit, enqueue=sender, schema=SCHEMA):
        print("started", os.getpid(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
