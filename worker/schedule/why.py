"""Why a schedule did or did not fire, in one sentence, from its row and the ledger's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.schedule.backlog import PROMPT, Entry
from worker.schedule.rows import Row
from worker.schedule.spec import utc_text
from worker.schedule.trigger import NEVER

_TINY = timedelta(microseconds=1)

_REASONS = {
    "grace": "nobody could fire it within its grace: no worker was there, or its log says why",
    "missed": "nobody was there in time, and the schedule does not make up for missed ticks (missed=skip)",
    "overlap": "the job of an earlier tick was not done yet",
    "paused": "the schedule was paused",
    "changed": "the schedule was changed before anybody decided it",
    "removed": "the schedule was removed before anybody decided it",
}


@dataclass(frozen=True)
class Answer:
    """The sentence, and the ledger's row that it was told from, if there is one."""

    sentence: str
    entry: Entry | None = None


def why(name: str, row: Row | None, entry: Entry | None, at: datetime | None) -> Answer:
    """
    Tell what became of the tick at *at*, of the newest one when None.

    Args:
        row: The schedule; None when it was removed.
        entry: The ledger's newest row up to then.
    """
    if entry is not None and (at is None or _covers(entry, at)):
        return Answer(f"{name} {_told(entry)}{_state(row)}.", entry)
    if row is None:
        return Answer(f"{name} has no tick in the ledger at {_at(at)}, and the schedule is removed.")
    return Answer(f"{name} {_undecided(row, at)}{_state(row)}.")


def _covers(entry: Entry, at: datetime) -> bool:
    # Whoever asks writes whole seconds; a run by hand has others.
    return entry.until > at if entry.until else entry.tick <= at < entry.tick + timedelta(seconds=1)


def _told(entry: Entry) -> str:
    tick = utc_text(entry.tick)
    if entry.manual:
        return f"was run by hand at {tick} (job {entry.job_id})"
    if entry.outcome == "fired":
        return f"fired at {tick}, {entry.lateness:.3f} s late (job {entry.job_id})"
    if entry.outcome == "late":
        return (
            f"fired for {tick} only {_length(entry.lateness)} later, when a worker was there again (job {entry.job_id})"
        )
    which = f"at {tick}" if entry.until is None else f"at any tick from {tick} to before {utc_text(entry.until)}"
    if entry.outcome == "coalesced" and entry.coalesced_into is not None:
        return f"did not fire {which}: the run of {utc_text(entry.coalesced_into)} made up for it"
    return f"did not fire {which}: {_REASONS.get(entry.reason or '', entry.reason)}"


def _undecided(row: Row, at: datetime | None) -> str:
    if at is None:
        upcoming = row.trigger.after(row.last_tick)
        if upcoming == NEVER:
            return "has not fired, and has no further tick"
        if upcoming > row.now:
            return f"has not ticked since {utc_text(row.declared_at)}; its next tick is {utc_text(upcoming)}"
        return _overdue(row, upcoming)
    tick = row.trigger.after(at - _TINY)
    if tick >= at + timedelta(seconds=1):
        then = "it has no later one" if tick == NEVER else f"the next one is {utc_text(tick)}"
        return f"has no tick at {_at(at)} by its spec {row.spec!r} in {row.tz}: {then}"
    if tick > row.now:
        return f"has not fired at {_at(at)} because that is still to come"
    if tick > row.last_tick:
        return _overdue(row, tick)
    if tick <= row.declared_at:
        return f"did not fire at {_at(at)}: its terms of today are from {utc_text(row.declared_at)} only"
    return f"has no row for {_at(at)} in the ledger: it is older than what is kept, or the schedule did not exist then"


def _overdue(row: Row, tick: datetime) -> str:
    silence = (row.now - row.confirmed_at).total_seconds()
    if silence > PROMPT:
        return f"has not fired at {utc_text(tick)}: no worker that declares it has been seen for {_length(silence)}"
    return (
        f"has not fired at {utc_text(tick)} yet: it is due, and a worker is alive to decide it; should that last, its"
        " log says why"
    )


def _state(row: Row | None) -> str:
    if row is None:
        return "; it is removed now"
    if row.disabled_at is not None:
        return (
            f"; it is disabled since {utc_text(row.disabled_at)}, as module {row.module!r} does not declare it any more"
        )
    return f"; it is paused since {utc_text(row.paused_at)}" if row.paused_at is not None else ""


def _at(at: datetime | None) -> str:
    return "any time" if at is None else utc_text(at)


def _length(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
