"""Progress: what running jobs say of themselves, written by the dispatcher on its own connection, in its own time."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg

from worker import clock
from worker.errors import ArgumentError
from worker.queue.schema import Schema

Proof = tuple[UUID, int]

# Between two writes of one job's progress.
_INTERVAL = 1.0
MAX_NOTE = 500

# job_pkey and job_progress_pkey. Fenced by the token, and held until the commit, so that it cannot become another's in
# between; a row that somebody has locked, as a run does that is just committing, is passed by.
WRITE_PROGRESS: LiteralString = """
    WITH running AS MATERIALIZED (
        SELECT job.id, job.token, job.attempt, said.fraction, said.note
        FROM {schema}.job AS job
        JOIN unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(fractions)s::float8[], %(notes)s::text[])
            AS said(id, token, fraction, note) ON said.id = job.id AND said.token = job.token
        WHERE job.state = 'running'
        ORDER BY job.id
        FOR SHARE OF job SKIP LOCKED
    )
    INSERT INTO {schema}.job_progress AS progress (job_id, token, attempt, fraction, note)
    SELECT id, token, attempt, fraction, note
    FROM running
    ON CONFLICT ON CONSTRAINT job_progress_pkey DO UPDATE
    SET token = excluded.token, attempt = excluded.attempt, fraction = excluded.fraction, note = excluded.note,
        reported_at = excluded.reported_at
    RETURNING job_id"""


# job_progress_pkey. The same within the run's own transaction, behind its settlement: that has locked the job's row
# and proven the token. A row that somebody has locked is passed by here too: no word is worth a run.
WRITE_LAST_PROGRESS: LiteralString = """
    WITH free AS MATERIALIZED (
        SELECT FROM {schema}.job_progress WHERE job_id = %(id)s FOR UPDATE SKIP LOCKED
    )
    INSERT INTO {schema}.job_progress AS progress (job_id, token, attempt, fraction, note)
    SELECT %(id)s, %(token)s, %(attempt)s, %(fraction)s, %(note)s
    WHERE EXISTS (SELECT FROM free)
       OR NOT EXISTS (SELECT FROM {schema}.job_progress WHERE job_id = %(id)s)
    ON CONFLICT ON CONSTRAINT job_progress_pkey DO UPDATE
    SET token = excluded.token, attempt = excluded.attempt, fraction = excluded.fraction, note = excluded.note,
        reported_at = excluded.reported_at"""


class Progress(NamedTuple):
    """How far a run is: *fraction* from 0 to 1, None when nobody knows, and a *note*."""

    fraction: float | None
    note: str | None


def check_progress(actor: str, fraction: float | None, note: str | None) -> Progress:
    """
    The progress that a job has told.

    Raises:
        ArgumentError: It cannot be stored; says what was expected.
    """
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise ArgumentError(
                f"job {actor!r}: ctx.progress({fraction!r:.100}): expected a number from 0 to 1, or None when nobody"
                " knows"
            )
        fraction = float(fraction)
    if note is not None:
        if not isinstance(note, str):
            raise ArgumentError(f"job {actor!r}: ctx.progress(): the note is a {type(note).__name__}, expected text")
        if len(note) > MAX_NOTE:
            raise ArgumentError(
                f"job {actor!r}: ctx.progress(): the note has {len(note):,} characters, expected at most {MAX_NOTE}"
            )
        check_storable(f"job {actor!r}: ctx.progress(): the note", note)
    return Progress(fraction, note)


def check_storable(what: str, text: str) -> None:
    """
    Refuse *text* that Postgres cannot store.

    Raises:
        ArgumentError: Names *what*, and the character.
    """
    if "\0" in text:
        raise ArgumentError(f"{what} holds the character U+0000, which Postgres cannot store")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ArgumentError(f"{what} holds half a character ({text[exc.start]!a}), which is no text") from None


class Reports:
    """
    What running jobs have said last, until it is written.

    `say` costs an entry in a dict; it, `unwritten` and `forget` are for any thread, the others for the dispatcher's.
    Jobs that say nothing never come here.
    """

    def __init__(self) -> None:
        self._said: dict[Proof, Progress] = {}
        self._written: dict[Proof, tuple[float, Progress | None]] = {}  # when it was tried last, and what is durable

    def __bool__(self) -> bool:
        return bool(self._said)

    def say(self, proof: Proof, progress: Progress) -> None:
        """Have it written when the dispatcher comes by; the last one wins."""
        self._said[proof] = progress

    def take(self, running: Container[Proof], ending: Collection[Proof]) -> list[tuple[Proof, Progress]]:
        """
        What is to be written now: what is new, of each run once a second, of those that are *ending* in any case.

        What runs say that are over, and that are not *running* any more, is forgotten.
        """
        now = clock.monotonic()
        taken = []
        for proof, progress in list(self._said.items()):
            tried_at, written = self._written.get(proof, (-_INTERVAL, None))
            if proof not in running:
                self.forget(proof)
            elif progress != written and (proof in ending or now >= tried_at + _INTERVAL):
                taken.append((proof, progress))
        return sorted(taken)

    def confirm(self, taken: Sequence[tuple[Proof, Progress]], written: Container[UUID]) -> None:
        """*taken* was tried, and of the *written* ids it is durable; the others are tried again in a second."""
        now = clock.monotonic()
        for proof, progress in taken:
            self._written[proof] = now, progress if proof[0] in written else self._durable(proof)
            # Its run may have ended meanwhile, on a thread of its own.
            if proof not in self._said:
                self._written.pop(proof, None)

    def unwritten(self, proof: Proof) -> Progress | None:
        """What a run has said last if nobody has written it yet, so that it can write it with its outcome."""
        progress = self._said.get(proof)
        return None if progress is None or progress == self._durable(proof) else progress

    def forget(self, proof: Proof) -> None:
        """The run is over."""
        self._said.pop(proof, None)
        self._written.pop(proof, None)

    def _durable(self, proof: Proof) -> Progress | None:
        return self._written.get(proof, (0.0, None))[1]


def write_progress(
    conn: psycopg.Connection[Any], schema: Schema, said: Sequence[tuple[Proof, Progress]]
) -> psycopg.Cursor[Any]:
    """Write what runs have *said*; the cursor tells of which jobs, for a pipeline that is synced later."""
    return conn.execute(
        schema.render(WRITE_PROGRESS).encode(),
        {
            "ids": [job_id for (job_id, _), _ in said],
            "tokens": [token for (_, token), _ in said],
            "fractions": [progress.fraction for _, progress in said],
            "notes": [progress.note for _, progress in said],
        },
    )


def write_last_progress(
    conn: psycopg.Connection[Any], schema: Schema, proof: Proof, attempt: int, progress: Progress
) -> None:
    """Write what a run has said last, in the transaction in which it has been settled."""
    parameters = {"id": proof[0], "token": proof[1], "attempt": attempt, **progress._asdict()}
    conn.execute(schema.render(WRITE_LAST_PROGRESS).encode(), parameters)
