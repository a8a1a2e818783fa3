"""The end of the demo: one table on stdout, and what is wrong, if anything is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import LiteralString, NamedTuple

import click
import psycopg

from worker.cli.demo.compare import Comparison, Totals
from worker.cli.demo.processes import Stopped
from worker.cli.demo.watch import Counts

MOST_SHOWN = 10
SAMPLES_SHOWN = 8

SUM_DUPLICATES: LiteralString = """
    SELECT coalesce(sum(copies - 1), 0)::bigint, coalesce(sum(wasted), 0)::bigint
    FROM inventory.duplicate"""

LIST_SAMPLES: LiteralString = """
    SELECT files
    FROM inventory.progress
    ORDER BY sampled_at"""

LIST_DEAD: LiteralString = """
    SELECT actor, args::text, error
    FROM worker.job_dead
    ORDER BY died_at
    LIMIT %(limit)s"""


class Duplicates(NamedTuple):
    """How many files are copies of another one, and the bytes they waste."""

    files: int
    wasted: int


def duplicates(conn: psycopg.Connection) -> Duplicates:
    """The sums of the report."""
    return Duplicates(*conn.execute(SUM_DUPLICATES).fetchone() or (0, 0))


def samples(conn: psycopg.Connection) -> list[int]:
    """How many files there were at each sample that the two-second schedule took."""
    return [files for (files,) in conn.execute(LIST_SAMPLES)]


def dead_jobs(conn: psycopg.Connection) -> list[str]:
    """A sentence for each of the first dead jobs."""
    rows = conn.execute(LIST_DEAD, {"limit": MOST_SHOWN})
    return [f"job {actor} {arguments} is dead: {_last_line(error)}" for actor, arguments, error in rows]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Everything that was seen; *sessions_left* are those of the worker after it had stopped."""

    comparison: Comparison
    duplicates: Duplicates
    counts: Counts
    samples: list[int]
    dead: list[str]
    seconds: float
    rate: float
    most_sessions: int
    allowed_sessions: int
    sessions_left: int
    stopped: Stopped
    restarts: int
    log_end: str

    def faults(self) -> list[str]:
        """What is not as it must be, a sentence each."""
        faults = list(self.comparison.differences[:MOST_SHOWN])
        more = len(self.comparison.differences) - MOST_SHOWN
        faults += [f"... and {more:,} more paths that differ"] if more > 0 else []
        if not self.comparison.is_equal:
            faults.append(f"the table has {self.comparison.table}, the walk {self.comparison.walk}")
        faults += self.dead
        if self.most_sessions > self.allowed_sessions:
            faults.append(
                f"{self.most_sessions} connections were seen at one moment, {self.allowed_sessions} are allowed"
            )
        if self.sessions_left:
            faults.append(f"{self.sessions_left} connections were left after the worker had stopped")
        if self.counts.ticks == 0:
            faults.append("the two-second schedule did not fire")
        if self.stopped.code != 0:
            faults.append(f"the worker ended with exit code {self.stopped.code}; the end of its log:\n{self.log_end}")
        return faults

    def rows(self) -> list[tuple[str, str]]:
        """What the table shows."""
        table, walk = self.comparison.table, self.comparison.walk
        rows = [
            ("by the table", _files(table)),
            ("by the walk", _files(walk)),
            ("digest of digests", f"{table.digest[:32]}, by the walk {walk.digest[:32]}"),
            ("not read", self._not_read()),
            (
                "duplicates",
                f"{_number(self.duplicates.files, 'file')}, {_number(self.duplicates.wasted, 'byte')} wasted",
            ),
            ("jobs", f"{self.counts.done:,} done, {self.counts.dead:,} dead in {self.seconds:.1f} s"),
            ("speed", f"{self.rate:,.0f} jobs/s"),
            ("connections", f"{self.most_sessions} at most, {self.allowed_sessions} allowed"),
            ("two-second schedule", f"{_number(self.counts.ticks, 'tick')} fired"),
            ("its samples", f"{_spread(self.samples)} files"),
            ("drain", f"{self.stopped.drain:.2f} s, {_number(self.sessions_left, 'connection')} left"),
        ]
        rows += [("worker killed", _number(self.restarts, "time"))] if self.restarts else []
        moved = self.comparison.moved
        rows += [("left out", f"{_number(len(moved), 'path')} written to meanwhile: {_some(moved)}")] if moved else []
        return rows

    def _not_read(self) -> str:
        others = {status: n for status, n in sorted(self.comparison.statuses.items()) if status != "ok"}
        return ", ".join(f"{n:,} {status}" for status, n in others.items()) or "none"


def show(verdict: Verdict) -> bool:
    """Print the table and the faults on stdout; returns whether there are none."""
    rows = verdict.rows()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"  {click.style(name.ljust(width), bold=True)}  {value}")
    faults = verdict.faults()
    for fault in faults:
        click.echo(f"{click.style('wrong', fg='red')}: {fault}")
    if not faults:
        click.echo(click.style("equal: the table holds what the folder holds", fg="green"))
    return not faults


def _files(totals: Totals) -> str:
    return f"{_number(totals.files, 'file')} with {_number(totals.bytes, 'byte')}"


def _number(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _spread(samples: list[int]) -> str:
    """Some of *samples*, evenly spaced, the last one always."""
    step = -(-len(samples) // SAMPLES_SHOWN) or 1
    return " ".join(f"{files:,}" for files in samples[::-1][::step][::-1]) or "no"


def _some(paths: list[bytes]) -> str:
    shown = ", ".join(repr(os.fsdecode(path)) for path in paths[:3])
    return shown + (", ..." if len(paths) > 3 else "")


def _last_line(error: str | None) -> str:
    return ((error or "").strip().splitlines() or ["no error was noted"])[-1]
