"""Leftovers: what jobs leave behind beside their own rows, forgotten when nobody needs it any more."""

from __future__ import annotations

from datetime import datetime
from typing import Any, LiteralString

import psycopg

from worker.queue.schema import Schema
from worker.queue.sending_statements import FORGET_KEYS, FORGET_PROGRESS, FORGET_STEPS, FORGET_TAGS

# Rows that are looked at in one call: it takes the dispatcher some milliseconds.
PORTION = 2000
_KINDS: tuple[LiteralString, ...] = (FORGET_KEYS, FORGET_TAGS, FORGET_PROGRESS, FORGET_STEPS)


class Leftovers:
    """
    Keys, tags, progress and steps of jobs that are over.

    Args:
        keep: Days that the history keeps a job, and these with it; keys are needed by live jobs only.
    """

    def __init__(self, schema: Schema, keep: int) -> None:
        self._schema = schema
        self._keep = keep
        # Of the round under way: where to go on in each kind that is not through yet.
        self._places: dict[LiteralString, datetime | None] = {}

    def forget(self, conn: psycopg.Connection[Any]) -> bool:
        """Look at the next portion; whether that ended a round through all, so that the next call begins another."""
        self._places = self._places or dict.fromkeys(_KINDS)
        while self._places:
            statement, after = next(iter(self._places.items()))
            parameters = {"after": after, "portion": PORTION, "keep": self._keep}
            [(last, looked_at)] = conn.execute(self._schema.render(statement).encode(), parameters)
            if looked_at >= PORTION:
                self._places[statement] = last
                return False
            del self._places[statement]
        return True
