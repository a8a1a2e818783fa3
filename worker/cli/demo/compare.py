"""Whether the inventory's table says what the folder holds."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import LiteralString, NamedTuple

import psycopg

from worker.cli.demo.walk import Found, truth

# The path's own bytes, from Postgres: the comparison does not rest on the jobs' way to write paths.
READ_TABLE: LiteralString = "SELECT decode(path, 'escape'), status, size, digest FROM inventory.file"


class Totals(NamedTuple):
    """What must be equal: how many paths, how many bytes, and one digest over every path and its content."""

    files: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Comparison:
    """
    The table against the walk.

    Args:
        statuses: How many paths of the table have each status.
        moved: Paths that differ because they were written to since the scan was sent; left out of both totals.
        differences: One sentence for each other path that differs.
    """

    table: Totals
    walk: Totals
    statuses: Counter[str]
    moved: list[bytes] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return self.table == self.walk and not self.differences


def compare(conn: psycopg.Connection, folder: bytes, *, since: float) -> Comparison:
    """Compare the table with a walk of *folder* made now; *since*: when the scan was sent, in seconds of the epoch."""
    in_table = read_table(conn)
    on_disk = truth(folder)
    unequal = sorted(path for path in in_table.keys() | on_disk.keys() if in_table.get(path) != on_disk.get(path))
    moved = [path for path in unequal if was_moved(path, since)]
    left_out = set(moved)
    return Comparison(
        table=totals(in_table, left_out),
        walk=totals(on_disk, left_out),
        statuses=Counter(found.status for found in in_table.values()),
        moved=moved,
        differences=[
            f"{os.fsdecode(path)!r}: the table says {_words(in_table.get(path))},"
            f" the folder holds {_words(on_disk.get(path))}"
            for path in unequal
            if path not in left_out
        ],
    )


def read_table(conn: psycopg.Connection) -> dict[bytes, Found]:
    """What the inventory says about every path."""
    return {path: Found(*rest) for path, *rest in conn.execute(READ_TABLE)}


def totals(paths: Mapping[bytes, Found], left_out: Iterable[bytes] = ()) -> Totals:
    """The totals over *paths* but those *left_out*."""
    kept = sorted((path, found) for path, found in paths.items() if path not in left_out)
    digest = hashlib.sha256()
    for path, (status, _, content) in kept:
        digest.update(b"%b\0%b\0%b" % (path, status.encode(), content or bytes(32)))
    return Totals(len(kept), sum(found.size or 0 for _, found in kept), digest.hexdigest())


def was_moved(path: bytes, since: float) -> bool:
    """Whether *path* was written to, or came or went, after *since*."""
    try:
        return os.lstat(path).st_ctime >= since
    except OSError:
        parent = os.path.dirname(path)
        return parent != path and was_moved(parent, since)


def _words(found: Found | None) -> str:
    if found is None:
        return "nothing"
    if found.digest is None:
        return found.status
    return f"{found.size} bytes with SHA-256 {found.digest.hex()[:16]}"
