"""Schedules in people's hands: made, changed, removed, paused and run in the database, on a connection of theirs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dramatiq import Actor, get_broker
from psycopg import Connection
from psycopg.rows import class_row

from worker.errors import ConfigError, NotFound, Refused
from worker.queue.schema import Schema
from worker.schedule import spec, statements
from worker.schedule.backlog import Entry
from worker.schedule.declaration import Args, Missed, Overlap, Schedule, check
from worker.schedule.ledger import Ledger
from worker.schedule.register import parameters
from worker.schedule.rows import Row, Rows
from worker.schedule.sending import send
from worker.schedule.stored import PLACE, stored
from worker.schedule.trigger import Gap, Repeat, Trigger
from worker.schedule.why import Answer, why


@dataclass(frozen=True)
class Listed(Row):
    """A schedule in the database with the newest row of its ledger."""

    newest_tick: datetime | None
    newest_outcome: str | None
    newest_reason: str | None


class Schedules:
    """
    The schedules of a database.

    Everything happens in *conn*'s transaction: what you add exists when it commits. Workers notice within two seconds.

    Args:
        schema: The schema that holds the tables; "worker" when None.
        actors: Finds the actor by that name, None when there is none; by default among those of Dramatiq's global
            broker, on which `@job` declares.
    """

    def __init__(
        self,
        conn: Connection[Any],
        schema: Schema | None = None,
        *,
        actors: Callable[[str], Actor[Any, Any] | None] | None = None,
    ) -> None:
        self._conn = conn
        self._schema = schema or Schema()
        self._rows = Rows(self._schema)
        self._actors = actors or get_broker().actors.get
        self._ledger = Ledger(send, schema=self._schema)

    def add(
        self,
        name: str,
        job: str | Actor[Any, Any],
        *,
        cron: str | None = None,
        every: float | None = None,
        at: datetime | None = None,
        tz: str = "UTC",
        gap: Gap | None = None,
        repeat: Repeat | None = None,
        seconds: bool = False,
        args: Args = (),
        missed: Missed = "last",
        overlap: Overlap = "skip",
        grace: float = 3600.0,
        jitter: float = 0.0,
    ) -> Schedule:
        """
        Add a schedule; it begins now. Exactly one of *cron*, *every* (seconds) and *at* says when.

        Args:
            job: The job or its name; its module must be loaded, so that the arguments can be checked.
            args: JSON, by name or in order.

        Raises:
            ConfigError: Something of it cannot work.
            Refused: The name is taken.
        """
        trigger = _trigger(cron, every, at, tz=tz, gap=gap, repeat=repeat, seconds=seconds)
        if trigger is None:
            raise ConfigError(f"schedule {name!r}: nothing says when, expected one of cron, every, at")
        schedule = self._checked(name, trigger, tz, job, missed, overlap, grace, jitter, args)
        added = self._conn.execute(self._rows.sql(statements.ADD_SCHEDULE), parameters(schedule, None))
        if added.rowcount != 1:
            raise Refused(f"schedule {name!r} exists: change it, or choose another name")
        self._tell_workers()
        return schedule

    def change(
        self,
        name: str,
        *,
        job: str | Actor[Any, Any] | None = None,
        cron: str | None = None,
        every: float | None = None,
        at: datetime | None = None,
        tz: str | None = None,
        gap: Gap | None = None,
        repeat: Repeat | None = None,
        seconds: bool = False,
        args: Args | None = None,
        missed: Missed | None = None,
        overlap: Overlap | None = None,
        grace: float | None = None,
        jitter: float | None = None,
    ) -> Schedule:
        """
        Change what is given of a schedule that `add` made; the rest stays.

        Ticks that were due by the old terms and undecided are recorded as skipped when it changes when it ticks.

        Raises:
            ConfigError: Something of it cannot work.
            NotFound: There is no such schedule.
            Refused: It is declared in code.
        """
        row = self._owned(name)
        zone = row.tz if tz is None else tz
        trigger = _trigger(cron, every, at, tz=zone, gap=gap, repeat=repeat, seconds=seconds)
        schedule = self._checked(
            name,
            trigger or spec.read(row.spec, zone),
            zone,
            row.actor if job is None else job,
            row.missed if missed is None else missed,
            row.overlap if overlap is None else overlap,
            row.grace if grace is None else grace,
            row.jitter if jitter is None else jitter,
            row.args if args is None else args,
        )
        same_ticks = (row.spec, row.tz) == (schedule.spec, schedule.tz)
        if not same_ticks:
            self._rows.close(self._conn, row, row.now, "paused" if row.paused_at else "changed")
        begins = row.last_tick if same_ticks else row.now
        columns = {**parameters(schedule, row.now), "last_tick": begins}
        self._conn.execute(self._rows.sql(statements.REDECLARE_SCHEDULE), columns)
        self._tell_workers()
        return schedule

    def remove(self, name: str) -> None:
        """
        Remove a schedule that `add` made; its ledger stays, with a row for each tick that was still undecided.

        Raises:
            NotFound: There is no such schedule.
            Refused: It is declared in code.
        """
        row = self._owned(name)
        self._rows.close(self._conn, row, row.now, "removed")
        self._conn.execute(self._rows.sql(statements.REMOVE_SCHEDULE), {"name": name})
        self._tell_workers()

    def pause(self, name: str) -> None:
        """
        Stop it from firing in every process; its ticks are recorded as skipped. A second call does nothing.

        Raises:
            NotFound: There is no such schedule.
        """
        self._found(name)
        self._ledger.pause(self._conn, name)

    def resume(self, name: str) -> bool:
        """
        Let it fire again from its next tick on; False when it was not paused.

        Raises:
            NotFound: There is no such schedule.
        """
        self._found(name)
        return self._ledger.resume(self._conn, name)

    def run(self, name: str, *, force: bool = False) -> Entry:
        """
        Send its job now, also while it is paused; the ledger marks the run as manual.

        Args:
            force: Also when its overlap policy forbids it.

        Raises:
            ConfigError: No module that declares its job is loaded.
            NotFound: There is no such schedule.
            Refused: Its overlap policy forbids it, or it is disabled.
        """
        row = self._found(name)
        schedule = self._declared(row)
        return self._ledger.run_now(self._conn, schedule, force=force)

    def list(self) -> list[Listed]:
        """Every schedule, by name, with the newest row of its ledger."""
        with self._conn.cursor(row_factory=class_row(Listed)) as cur:
            return cur.execute(self._rows.sql(statements.LIST_SCHEDULES)).fetchall()

    def why(self, name: str, at: datetime | None = None) -> Answer:
        """
        What became of the tick at *at*, or of the newest one, in one sentence.

        Raises:
            NotFound: Neither schedule nor ledger knows the name.
        """
        found = self._rows.fetch(self._conn, statements.LOOK_AT_SCHEDULES, {"names": [name], "now": None})
        row = found[0] if found else None
        moment = at or (row.now if row is not None else None)
        with self._conn.cursor(row_factory=class_row(Entry)) as cur:
            query = {"name": name, "at": moment or datetime.max}  # noqa: DTZ901  # infinity, whatever the zone
            entry = cur.execute(self._rows.sql(statements.FIND_TICK), query).fetchone()
        if row is None and entry is None:
            raise NotFound(f"schedule {name!r} is neither in the database nor in its ledger{self._hint(name)}")
        return why(name, row, entry, at)

    def _tell_workers(self) -> None:
        # Heard when the transaction commits.
        parameters = {"channel": self._schema.channels["schedules"]}
        self._conn.execute(self._rows.sql(statements.NOTIFY_SCHEDULES), parameters)

    def _hint(self, name: str) -> str:
        close = difflib.get_close_matches(name, [row.name for row in self.list()], n=1)
        return f", did you mean {close[0]!r}?" if close else ""

    def _found(self, name: str) -> Row:
        row = self._rows.lock(self._conn, name, None)
        if row is None:
            raise NotFound(
                f"schedule {name!r} is not in the database{self._hint(name)}"
                " (one that is declared in code is there from the first boot of a worker on)"
            )
        return row

    def _owned(self, name: str) -> Row:
        row = self._found(name)
        if row.source != "database":
            raise Refused(f"schedule {name!r} is declared in code, by module {row.module!r}: change it there")
        return row

    def _declared(self, row: Row) -> Schedule:
        from worker.schedule.declaration import registered

        mine = [schedule for schedule in registered() if schedule.name == row.name and row.source == "code"]
        schedule = mine[0] if mine else None if row.args is None else stored(row, self._actors)
        if schedule is None:
            raise ConfigError(
                f"schedule {row.name!r}: no loaded module declares its job {row.actor!r}: name it with --jobs"
            )
        return schedule

    def _checked(
        self,
        name: str,
        trigger: Trigger,
        tz: str,
        job: str | Actor[Any, Any],
        missed: Any,
        overlap: Any,
        grace: float,
        jitter: float,
        args: Args,
    ) -> Schedule:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ConfigError(f"schedule {name!r}: the name cannot be read, expected a printable text")
        actor = self._actor(name, job) if isinstance(job, str) else job
        text = spec.written(trigger)
        schedule = Schedule(
            name, text, tz, missed, overlap, grace, trigger, actor, PLACE, jitter, args, None, "database"
        )
        if callable(args):
            raise ConfigError(f"schedule {name!r}: args in the database are JSON, only code can compute them")
        check(schedule)
        return replace(schedule, args=schedule.terms.args)

    def _actor(self, name: str, job: str) -> Actor[Any, Any]:
        actor = self._actors(job)
        if actor is None:
            known: Sequence[str] = sorted(get_broker().actors)
            close = difflib.get_close_matches(job, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"schedule {name!r}: job {job!r} is not declared by the loaded modules{hint}"
                f" (they declare {', '.join(known) or 'none'}; name others with --jobs)"
            )
        return actor


def _trigger(
    cron: str | None,
    every: float | None,
    at: datetime | None,
    *,
    tz: str,
    gap: Gap | None,
    repeat: Repeat | None,
    seconds: bool,
) -> Trigger | None:
    given = [name for name, value in (("cron", cron), ("every", every), ("at", at)) if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both say when, expected one of cron, every, at")
    if cron is not None:
        return spec.crontab(cron, tz, gap=gap, repeat=repeat, seconds=seconds)
    if gap is not None or repeat is not None:
        raise ConfigError("gap and repeat belong to a crontab: give cron as well")
    if every is not None:
        return spec.interval(every)
    return None if at is None else spec.at_instant(at)
