"""The exchange of one pass: outcomes, sends, claims and the heartbeat in one trip and one commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from worker.queue.claim import Claim
from worker.queue.feed import Room
from worker.queue.flow import Flow
from worker.queue.insertion import insert
from worker.queue.lanes import Admission, admit, what_was_admitted
from worker.queue.last_words import LastWords
from worker.queue.lease import Beat, Lease, Look
from worker.queue.limited_claim import CLAIM_WITHIN_LIMITS, read_claim
from worker.queue.marks import Marks, Search
from worker.queue.new_job import NewJob
from worker.queue.progress import Progress, Proof, write_progress
from worker.queue.rates import clear, what_is_left
from worker.queue.schema import Schema
from worker.queue.settlement import Settlement, read_lost, send_settlements
from worker.queue.statements import CLAIM_JOBS, MARK_BEGUN, PROMOTE_DUE


class Errand(NamedTuple):
    """
    What a pass has to say and to ask.

    Args:
        said: What running jobs have said of themselves; before their settlements, which end them.
        settlements: Those that one statement writes.
        new: Plain ones, for the same reason.
        begun: Jobs that were claimed ahead and run by now.
        rooms: What to claim for; those without room are passed over.
        promoting: Whether jobs for later may have become due.
        admitting: Whether jobs may wait before a lane that has room.
        clearing: Whether jobs may wait for their rate.
        renewing: Whether the heartbeat is due.
        marks: Where jobs are looked for; everywhere when None.
        search: Where the first jobs are to be looked for, so that the marks can follow.
        mine: For a heartbeat that looks at no others of the running jobs; None for a full look.
    """

    settlements: Sequence[Settlement] = ()
    new: Sequence[NewJob] = ()
    begun: Sequence[Claim] = ()
    rooms: Sequence[Room] = ()
    promoting: bool = False
    admitting: bool = False
    clearing: bool = False
    renewing: bool = False
    served: Sequence[Room] = ()
    flow: Flow = Flow()
    last_words: LastWords = LastWords()
    said: Sequence[tuple[Proof, Progress]] = ()
    marks: Marks | None = None
    search: Search | None = None
    mine: Collection[UUID] | None = None

    @property
    def num_statements(self) -> int:
        written = (self.said, self.settlements, self.new, self.begun)
        asked = (self.promoting, self.admitting, self.clearing, self.renewing, self.search)
        return sum(map(bool, (*written, *asked))) + len(self.rooms)


class Reply(NamedTuple):
    """
    What the database answered.

    Args:
        lost: The settled jobs whose token did not hold any more.
        claims: For each room, what was claimed.
        knocking: Some lanes, rates or limits were in others' hands; look again in a moment.
        opens_in: Seconds until the next job may start that waits for its rate, or its queue's; None when none does.
        look: What the heartbeat saw; None when it was not due, or when this worker was declared dead.
        heard: The jobs whose progress was written.
        strays: Queue and rank of jobs that were promoted, let into a lane or cleared for their rate.
        found: What the search has found.
        marked: The jobs that were marked as begun; a row that somebody has locked was passed by.
    """

    lost: set[UUID]
    claims: list[list[Claim]]
    knocking: bool
    opens_in: float | None
    look: Look | None
    heard: set[UUID]
    strays: list[tuple[str, float]]
    found: psycopg.Cursor[Any] | None
    marked: set[UUID]


def exchange(conn: psycopg.Connection[Any], schema: Schema, lease: Lease, errand: Errand) -> Reply:
    """
    Say and ask it all in one trip, in the order of the fields; *conn* must be in autocommit.

    Between two syncs of a pipeline the server runs one implicit transaction: all of it is committed, or nothing. The
    claims see what the statements before them wrote.

    Raises:
        psycopg.Error: Nothing was written, unless the connection is broken: then it is not known.
    """
    marks = errand.marks or Marks()
    try:
        with _together(conn) if errand.num_statements > 1 else nullcontext():
            reported = write_progress(conn, schema, errand.said) if errand.said else None
            settled = send_settlements(conn, schema, errand.settlements) if errand.settlements else None
            if errand.new:
                insert(conn, schema, errand.new)
            begun = _mark(conn, schema, errand.begun) if errand.begun else None
            promoted = _promote(conn, schema, marks) if errand.promoting else ()
            admitted = admit(conn, schema) if errand.admitting else None
            clearing = clear(conn, schema, errand.served) if errand.clearing else None
            claimed = [_claim(conn, schema, lease, marks, room) for room in errand.rooms]
            beat = _beat(conn, lease, errand) if errand.renewing else None
            # Behind the claims, so that the marks follow them.
            found = errand.search.send(conn, schema) if errand.search is not None else None
    except psycopg.Error:
        # psycopg takes a statement for prepared once it has sent it, also where the server never came to it.
        conn._prepared.clear()
        raise
    taken = [read_claim(rows, room) for rows, room in zip(claimed, errand.rooms, strict=True)]
    left = [left for _, left in taken]
    if clearing is not None:
        left.append(what_is_left(clearing))
    admission = what_was_admitted(admitted) if admitted is not None else Admission()
    return Reply(
        lost=read_lost(settled) if settled is not None else set(),
        claims=[claims for claims, _ in taken],
        knocking=admission.left_some or any(one.some for one in left),
        opens_in=min((one.opens_in for one in left if one.opens_in is not None), default=None),
        look=lease.hear(beat) if beat is not None else None,
        heard={row[0] for row in reported} if reported is not None else set(),
        strays=[*promoted, *(admission.strays or ()), *(stray for one in left for stray in one.strays or ())],
        found=found,
        marked={row[0] for row in begun} if begun is not None else set(),
    )


def follow(errand: Errand, reply: Reply, workers: int) -> bool:
    """
    Let the marks of *errand* follow what its *reply* tells.

    Args:
        workers: How many share the cost of full looks.

    Returns:
        Whether there is something to claim which its claims have not come to.
    """
    marks = errand.marks
    if marks is None or not marks.are_used:
        if marks is not None and reply.look is not None:
            marks.note(errand.served, reply.look.toil)
        return False
    found = False
    if errand.search is not None and reply.found is not None:
        claimed = {claim.queue for claims in reply.claims for claim in claims}
        found = marks.learn(errand.search, reply.found, claimed=claimed, workers=workers)
    found |= marks.add(reply.strays)
    sent = (*errand.new, *(new for one in errand.settlements for new in one.following))
    if any(one.priority < 0 for one in sent):
        marks.hurry()
    return found


def _together(conn: psycopg.Connection[Any]) -> AbstractContextManager[Any]:
    # A libpq before 14 knows no pipelines; then it is one commit in several trips.
    return conn.pipeline() if psycopg.capabilities.has_pipeline() else conn.transaction()


def _promote(conn: psycopg.Connection[Any], schema: Schema, marks: Marks) -> psycopg.Cursor[Any]:
    return conn.execute(schema.render(PROMOTE_DUE).encode(), {"due_low": marks.due_low})


def _beat(conn: psycopg.Connection[Any], lease: Lease, errand: Errand) -> Beat:
    return lease.beat(conn, errand.served, errand.flow, errand.marks, errand.mine, errand.last_words)


def _claim(
    conn: psycopg.Connection[Any], schema: Schema, lease: Lease, marks: Marks, room: Room
) -> psycopg.Cursor[Any]:
    return conn.execute(
        schema.render(CLAIM_WITHIN_LIMITS if room.limited else CLAIM_JOBS).encode(),
        {
            **marks.parameters(room.queues),
            **marks.parameters(room.limited, "limited_"),
            "actors": list(room.actors),
            "limit": room.limit,
            "free": room.limit if room.free is None else room.free,
            "holding": list(room.holding),
            "checkouts": room.checkouts,
            "idle": room.idle,
            "worker": lease.worker_id,
        },
    )


def _mark(conn: psycopg.Connection[Any], schema: Schema, claims: Sequence[Claim]) -> psycopg.Cursor[Any]:
    parameters = {"ids": [claim.id for claim in claims], "tokens": [claim.token for claim in claims]}
    return conn.execute(schema.render(MARK_BEGUN).encode(), parameters)
