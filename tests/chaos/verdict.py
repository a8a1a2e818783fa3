"""What is seen at the end, the table that shows it, and whether it is what must be."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psycopg

from tests.chaos.leaks import Leaks
from tests.chaos.sampler import NAME

# What memory may grow by between the second fifth of the time and the last: arenas and caches that fill up late.
_GROWTH = 1.10
_GROWTH_MB = 10.0
# What a leak may last, once its owner is gone. Restarts and killed sessions are among what happens meanwhile.
FOUND_WITHIN = 2.0

_STATES = """
    SELECT coalesce(state, 'starting') FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> %s
"""


@dataclass(frozen=True)
class Finding:
    """One line of the verdict."""

    what: str
    seen: object
    holds: bool


def print_table(findings: Iterable[Finding], out: TextIO) -> None:
    for finding in findings:
        print(f"{'ok  ' if finding.holds else 'FAIL'}  {finding.what:<48} {finding.seen}", file=out)


def session_states(observer: psycopg.Connection) -> list[str]:
    """The state of each session that is not an observer's."""
    return [row[0] for row in observer.execute(_STATES, [NAME])]


def leak_findings(leaks: Leaks) -> Iterable[Finding]:
    for kind in sorted(leaks.made_by_kind | leaks.reclaimed_by_kind):
        made, reclaimed = leaks.made_by_kind[kind], leaks.reclaimed_by_kind[kind]
        yield Finding(f"leaks: {kind}", f"{made} made, {reclaimed} reclaimed", made == reclaimed)
    unsettled = leaks.unsettled()
    shown = dict(list(unsettled.items())[:5]) or "none"
    yield Finding("leaks lost (above 0) or live owners robbed", shown, not unsettled)
    if found := sorted(leaks.found_after):
        worst, whose = found[-1]
        median = statistics.median(after for after, _ in found)
        seen = f"median {median:.2f} s, worst {worst:.2f} s ({whose})"
        yield Finding(f"leaks found within {FOUND_WITHIN:g} s", seen, worst <= FOUND_WITHIN)


class Memory:
    """The resident size of this process over time."""

    def __init__(self) -> None:
        self.sizes: list[float] = []

    def look(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def finding(self) -> Finding:
        fifth = max(1, len(self.sizes) // 5)
        early, late = statistics.median(self.sizes[fifth : 2 * fifth] or [0]), statistics.median(self.sizes[-fifth:])
        seen = f"{early:.1f} MB in the second fifth of the time, {late:.1f} MB in the last"
        return Finding("memory flat", seen, late <= max(early * _GROWTH, early + _GROWTH_MB))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def seen(what: str, look: Callable[[], object], wanted: object) -> Finding:
    """Whether *look* sees exactly what is *wanted*."""
    found = look()
    return Finding(what, found, found == wanted)
