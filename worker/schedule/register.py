"""The register: which schedules there are, and which process's word about them counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection
from psycopg.types.json import Jsonb

from worker.queue.schema import Schema
from worker.schedule import statements
from worker.schedule.declaration import Schedule
from worker.schedule.rows import Row, Rows

# What a declaration did to the row; "locked": somebody else is at it, try again.
Declared = Literal["added", "changed", "confirmed", "locked"]

# A process confirms its terms this often.
CONFIRM_EVERY = 5.0


@dataclass(frozen=True)
class Survey:
    """Of the schedules looked at: those with due ticks, and those whose row is missing or abandoned by other terms."""

    due: tuple[Schedule, ...]
    orphaned: tuple[Schedule, ...]


class Register:
    """
    The schedules in the database.

    Each method works inside the caller's transaction. *now* replaces the database's clock, for tests.

    Args:
        modules: The modules that this process loaded: what they declared once and do not any more, it disables.
    """

    def __init__(self, schema: Schema, modules: Sequence[str] = ()) -> None:
        self._rows = Rows(schema)
        self._modules = list(modules)

    def declare(
        self, conn: Connection[Any], schedule: Schedule, *, takeover: bool = False, now: datetime | None = None
    ) -> Declared:
        """
        Make the database's row say what the code says; the last to declare wins.

        A new schedule, and one whose spec or zone changed, begins at this moment: it does not fire its past. Ticks that
        were due by the old spec and undecided are recorded.

        Args:
            takeover: Only replace terms that were abandoned, and begin when they were last confirmed: this process ran
                since then, so no tick falls between two deploys. Terms that are alive are left alone.
        """
        columns = parameters(schedule, now)
        added = conn.execute(self._rows.sql(statements.ADD_SCHEDULE), columns).rowcount == 1
        if added:
            return "added"
        row = self._rows.lock(conn, schedule.name, now)
        if row is None:
            return "locked"
        unchanged = _is_ours(row, schedule)
        if unchanged or (takeover and not row.abandoned):
            self._confirm(conn, [row] if unchanged else [])
            if unchanged and row.module != schedule.module:
                self._redeclare(conn, columns, row, row.last_tick)
            return "confirmed"
        same_ticks = (row.spec, row.tz, row.disabled_at) == (schedule.spec, schedule.tz, None)
        begins = row.last_tick if same_ticks else row.confirmed_at if takeover else row.now
        if not same_ticks and row.disabled_at is None:
            self._rows.close(conn, row, begins, "paused" if row.paused_at else "changed")
        self._redeclare(conn, columns, row, begins)
        return "changed"

    def disable_vanished(
        self, conn: Connection[Any], schedules: Iterable[Schedule], *, now: datetime | None = None
    ) -> list[str]:
        """
        Disable what our modules declared once and do not declare any more; returns the names.

        The ledger keeps its rows; ticks that were due and undecided are recorded as of a schedule removed.
        """
        names = [schedule.name for schedule in schedules]
        vanished = self._rows.fetch(
            conn, statements.LOCK_VANISHED, {"names": names, "modules": self._modules, "now": now}
        )
        for row in vanished:
            self._rows.close(conn, row, row.now, "removed")
            conn.execute(self._rows.sql(statements.DISABLE_SCHEDULE), {"name": row.name, "now": row.now})
        return [row.name for row in vanished]

    def survey(self, conn: Connection[Any], schedules: Iterable[Schedule], *, now: datetime | None = None) -> Survey:
        """Find the schedules that need a pass or a declaration, and confirm that our terms are alive; locks nothing."""
        mine = {schedule.name: schedule for schedule in schedules}
        found = self._rows.fetch(conn, statements.LOOK_AT_SCHEDULES, {"names": list(mine), "now": now})
        rows = {row.name: row for row in found}
        ours = [row for row in rows.values() if _is_ours(row, mine[row.name])]
        self._confirm(conn, ours)
        due = [mine[row.name] for row in ours if mine[row.name].trigger.after(row.last_tick) <= row.now]
        stale = [row.name for row in rows.values() if row not in ours and not row.abandoned]
        kept = {row.name for row in ours}.union(stale)
        orphaned = [schedule for name, schedule in mine.items() if name not in kept and schedule.source == "code"]
        return Survey(tuple(due), tuple(orphaned))

    def confirm_gone(self, conn: Connection[Any], schedules: Iterable[Schedule], *, now: datetime) -> None:
        """Say that the disabled schedules of our modules are gone indeed: an older process cannot revive them then."""
        if not self._modules:
            return
        parameters = {"names": [schedule.name for schedule in schedules], "modules": self._modules}
        names = [row[0] for row in conn.execute(self._rows.sql(statements.FIND_GONE), parameters)]
        if names:
            self._confirm_names(conn, names, now)

    def revision(self, conn: Connection[Any]) -> tuple[int, int]:
        """Two numbers that differ from the last time's when a schedule in the database was added, changed, removed."""
        count, total = conn.execute(self._rows.sql(statements.GET_REVISION)).fetchone() or (0, 0)
        return count, total

    def in_database(self, conn: Connection[Any]) -> list[Row]:
        """The schedules that people made, by name."""
        return self._rows.fetch(conn, statements.LOOK_AT_DATABASE, {})

    def _redeclare(self, conn: Connection[Any], columns: dict[str, Any], row: Row, last_tick: datetime) -> None:
        conn.execute(self._rows.sql(statements.REDECLARE_SCHEDULE), {**columns, "last_tick": last_tick, "now": row.now})

    def _confirm(self, conn: Connection[Any], rows: Sequence[Row]) -> None:
        names = [row.name for row in rows if (row.now - row.confirmed_at).total_seconds() > CONFIRM_EVERY]
        if names:
            self._confirm_names(conn, names, rows[0].now)

    def _confirm_names(self, conn: Connection[Any], names: Sequence[str], now: datetime) -> None:
        conn.execute(
            self._rows.sql(statements.CONFIRM_SCHEDULES), {"names": list(names), "now": now, "age": CONFIRM_EVERY}
        )


def parameters(schedule: Schedule, now: datetime | None) -> dict[str, Any]:
    """The columns of *schedule*, as the statements take them."""
    terms = schedule.terms._asdict()
    terms["args"] = None if terms["args"] is None else Jsonb(terms["args"])
    return {"name": schedule.name, "now": now, "source": schedule.source, "module": schedule.module, **terms}


def _is_ours(row: Row, schedule: Schedule) -> bool:
    return row.terms == schedule.terms and row.source == schedule.source and row.disabled_at is None
