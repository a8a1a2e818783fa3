"""The register: which schedules there are, and which process's word about them counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import dict_row
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
    """
    Of the schedules looked at those with due ticks, and those whose row is missing or abandoned by other terms.

    Attributes:
        revision: Two numbers that differ from the last time's when one in the database was added, changed, removed.
    """

    due: tuple[Schedule, ...]
    orphaned: tuple[Schedule, ...]
    revision: tuple[int, int] = (0, 0)


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
        # Those that the last survey found with our terms, and since when these are in the database.
        self._known: dict[str, datetime] = {}

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
        row = self._rows.lock_free(conn, [schedule.name], now).get(schedule.name)
        if row is None:
            return "locked"
        unchanged = _is_ours(row, schedule)
        if unchanged or (takeover and not row.abandoned):
            if unchanged and (row.now - row.confirmed_at).total_seconds() > CONFIRM_EVERY:
                conn.execute(self._rows.sql(statements.CONFIRM_SCHEDULE), {"name": row.name, "now": row.now})
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
        """
        Find the schedules that need a pass or a declaration, in one statement that waits for nobody.

        It also says that our terms are alive, as far as the last survey found them in the database, and that the
        disabled schedules of our modules are gone indeed: an older process cannot revive them then.
        """
        mine = {schedule.name: schedule for schedule in schedules}
        parameters = {
            "names": list(mine),
            "modules": self._modules,
            "known": list(self._known),
            "declared": list(self._known.values()),
            "age": CONFIRM_EVERY,
            "now": now,
        }
        with conn.cursor(row_factory=dict_row) as cur:
            found = cur.execute(self._rows.sql(statements.SURVEY_SCHEDULES), parameters).fetchall()
        revision = [(each.pop("count"), each.pop("revisions")) for each in found][-1]
        rows = {row.name: row for row in (Row(**each) for each in found if each["name"] is not None)}
        ours = [row for row in rows.values() if _is_ours(row, mine[row.name])]
        self._known = {row.name: row.declared_at for row in ours}
        due = [mine[row.name] for row in ours if mine[row.name].trigger.after(row.last_tick) <= row.now]
        stale = [row.name for row in rows.values() if row.name not in self._known and not row.abandoned]
        kept = {*self._known, *stale}
        orphaned = [schedule for name, schedule in mine.items() if name not in kept and schedule.source == "code"]
        return Survey(tuple(due), tuple(orphaned), revision)

    def revision(self, conn: Connection[Any]) -> tuple[int, int]:
        """A survey's, by itself."""
        count, total = conn.execute(self._rows.sql(statements.GET_REVISION)).fetchone() or (0, 0)
        return count, total

    def in_database(self, conn: Connection[Any]) -> list[Row]:
        """The schedules that people made, by name."""
        return self._rows.fetch(conn, statements.LOOK_AT_DATABASE, {})

    def _redeclare(self, conn: Connection[Any], columns: dict[str, Any], row: Row, last_tick: datetime) -> None:
        conn.execute(self._rows.sql(statements.REDECLARE_SCHEDULE), {**columns, "last_tick": last_tick, "now": row.now})


def parameters(schedule: Schedule, now: datetime | None) -> dict[str, Any]:
    """The columns of *schedule*, as the statements take them."""
    terms = schedule.terms._asdict()
    terms["args"] = None if terms["args"] is None else Jsonb(terms["args"])
    return {"name": schedule.name, "now": now, "source": schedule.source, "module": schedule.module, **terms}


def _is_ours(row: Row, schedule: Schedule) -> bool:
    return row.terms == schedule.terms and row.source == schedule.source and row.disabled_at is None
