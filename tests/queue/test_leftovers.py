"""Leftovers: forgotten portion by portion, so that millions of them keep no worker from its jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

from tests.factories import InThread, column, scalar
from tests.queue.conftest import SCHEMA
from tests.waiting import wait_until
from worker.queue.history import History
from worker.queue.leftovers import Leftovers

KEEP = 14
SOON, IN_AN_HOUR = 1.0, 3600.0


class Kind(NamedTuple):
    table: str
    insert: str


KINDS = [
    Kind("job_key", "(actor, key, job_id, scope, taken_at) SELECT 'charge', n::text, job_id, 'queued', at"),
    Kind("job_tag", "(tag, job_id, tagged_at) SELECT 'a', job_id, at"),
    Kind("job_progress", "(job_id, token, attempt, begun_at) SELECT job_id, 1, 1, at"),
    Kind(
        "job_step",
        "(job_id, name, value, attempt, args_hash, recorded_at) SELECT job_id, 'one', '1', 1, 0, at",
    ),
]
BY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)


@pytest.fixture(autouse=True)
def _by_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.queue.leftovers.PORTION", 3)


LEAVE = """
    INSERT INTO worker.{table} {insert}
    FROM (
        SELECT n, md5(n::text)::uuid AS job_id, now() - interval '30 days' + n * %s AS at
        FROM unnest(%s::int[]) AS n
    ) AS left_by"""


def leave(db: psycopg.Connection, kind: Kind, *, of: range, apart: timedelta = timedelta(seconds=1)) -> None:
    """What the jobs numbered *of* left 30 days ago, one *apart* from the next."""
    statement = LEAVE.replace("{table}", kind.table).replace("{insert}", kind.insert)
    db.execute(statement.encode(), [apart, list(of)])


def live(db: psycopg.Connection, jobs: range) -> None:
    db.execute(
        "INSERT INTO worker.job (id, queue, actor, args)"
        " SELECT md5(n::text)::uuid, 'other', 'charge', '{}' FROM unnest(%s::int[]) AS n",
        [list(jobs)],
    )


def left(db: psycopg.Connection, kind: Kind) -> int:
    [(number,)] = db.execute(sql.SQL("SELECT count(*) FROM worker.{}").format(sql.Identifier(kind.table))).fetchall()
    return int(number)


@BY_KIND
def test_a_call_forgets_a_portion_and_the_next_comes_soon(db: psycopg.Connection, kind: Kind) -> None:
    """Not an hour later: what jobs leave behind in an hour may be more than that."""
    history = History(SCHEMA)
    leave(db, kind, of=range(7))

    calls = [(history.maintain(db), left(db, kind)) for _ in range(3)]

    assert calls == [(SOON, 4), (SOON, 1), (IN_AN_HOUR, 0)]


@BY_KIND
def test_it_is_of_rows_looked_at_and_those_behind_them_are_not_missed(db: psycopg.Connection, kind: Kind) -> None:
    """Or it would look at all that is needed, millions perhaps, for the first one that is not."""
    leftovers = Leftovers(SCHEMA, KEEP)
    live(db, range(6))
    leave(db, kind, of=range(8))

    calls = [(leftovers.forget(db), left(db, kind)) for _ in range(3)]

    assert calls == [(False, 8), (False, 8), (True, 6)]


@BY_KIND
def test_rows_of_one_instant_are_of_one_portion(db: psycopg.Connection, kind: Kind) -> None:
    """Where a portion ended is an instant, behind which the next begins."""
    leftovers = Leftovers(SCHEMA, KEEP)
    live(db, range(4))
    leave(db, kind, of=range(5), apart=timedelta(0))
    leave(db, kind, of=range(5, 6))

    calls = [(leftovers.forget(db), left(db, kind)) for _ in range(2)]

    assert calls == [(False, 5), (True, 4)]


def test_one_call_comes_to_one_full_portion_and_to_all_that_is_less(db: psycopg.Connection) -> None:
    keys, tags, progress, steps = KINDS
    leftovers = Leftovers(SCHEMA, KEEP)
    for kind, of in ((keys, range(2)), (tags, range(4)), (progress, range(1)), (steps, range(2))):
        leave(db, kind, of=of)

    first = leftovers.forget(db), [left(db, kind) for kind in KINDS]
    second = leftovers.forget(db), [left(db, kind) for kind in KINDS]

    assert (first, second) == ((False, [0, 1, 1, 2]), (True, [0, 0, 0, 0]))


def test_the_next_round_looks_at_all_again(db: psycopg.Connection) -> None:
    keys = KINDS[0]
    leftovers = Leftovers(SCHEMA, KEEP)
    live(db, range(4))
    leave(db, keys, of=range(4))
    while not leftovers.forget(db):
        pass
    db.execute("DELETE FROM worker.job WHERE id IN (md5('1')::uuid, md5('3')::uuid)")

    while not leftovers.forget(db):
        pass

    assert column(db, "SELECT key FROM worker.job_key ORDER BY key") == ["0", "2"]


def test_a_key_that_is_taken_over_meanwhile_is_not_forgotten(db: psycopg.Connection, database: str) -> None:
    keys = KINDS[0]
    leave(db, keys, of=range(1))
    with psycopg.connect(database) as sender:
        sender.execute("UPDATE worker.job_key SET taken_at = clock_timestamp(), job_id = gen_random_uuid()")
        with psycopg.connect(database, autocommit=True) as other:
            house = InThread(lambda: Leftovers(SCHEMA, KEEP).forget(other))
            wait_until(lambda: scalar(db, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"), 10, "the wait")
            sender.commit()
            house.result()

    assert left(db, keys) == 1
