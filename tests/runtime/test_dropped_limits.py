"""Jobs that were sent with a limit or a rate which the code has dropped since: they keep it, and are not stranded."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.factories import scalar
from tests.running import outcome, running_worker
from tests.waiting import wait_until
from worker import Limit, PostgresBroker, Rate, bind, job


@pytest.mark.parametrize("option", [{"limit": Limit(1)}, {"rate": Rate(1, per=0.5)}], ids=["limit", "rate"])
def test_they_run_with_what_they_were_sent_with(
    option: dict[str, Any], broker: PostgresBroker, database: str, db: psycopg.Connection
) -> None:
    before = PostgresBroker(schema="worker")

    @job(broker=before, name="visit", **option)
    def visit_before() -> None: ...

    @job(broker=broker, name="visit")
    def visit_now() -> None: ...

    with psycopg.connect(database) as conn, bind(conn):
        sent = [visit_before.send() for _ in range(3)]
    assert scalar(db, "SELECT count(*) FROM worker.job WHERE state IN ('held', 'throttled')") == 3

    with running_worker(broker, database) as _:
        assert [outcome(db, one) for one in sent] == ["done"] * 3
        wait_until(lambda: scalar(db, "SELECT count(*) FROM worker.job") == 0, 20, "an empty queue")
