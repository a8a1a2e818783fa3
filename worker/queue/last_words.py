"""Last words: what will be known of this worker if it dies before its next heartbeat."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from worker.pool import Pool
from worker.queue.claim import Claim

_STATM = Path("/proc/self/statm")


class LastWords(NamedTuple):
    """
    What a heartbeat says of its worker.

    Args:
        memory: Its resident memory in bytes.
        statements: By the id of a running job, the last statement on its connection, without parameters.
    """

    memory: int | None = None
    statements: Mapping[str, str] = {}


def last_words(pool: Pool, running: Iterable[Claim]) -> LastWords:
    """As things are, of a worker with *pool*."""
    ids = {claim.holder: str(claim.id) for claim in running}
    said = {ids[held.holder]: held.last_statement for held in pool.checkouts() if held.holder in ids}
    return LastWords(resident(), {job_id: statement for job_id, statement in said.items() if statement is not None})


def resident() -> int:
    """This process's resident memory in bytes; where the system does not tell, the most that it ever was."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
