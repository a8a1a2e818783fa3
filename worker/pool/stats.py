"""What a pool does at this moment and has done since it opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """
    Numbers of a pool; counters, ending in `_total`, since it opened, the others at this moment.

    Args:
        size: Sessions that exist or are being made, the reserved one included.
        reserved: Connections that are the runtime's and never a job's.
        waiting: Callers who wait for a connection.
        oldest_checkout: Seconds that the longest checkout has lasted; 0.0 when none is out.
        waited_seconds_total: What callers have waited together.
        reclaimed_total: Connections taken from owners who were gone.
        dirty_total: Connections that did not come back as they went out.
    """

    max_size: int
    min_size: int
    size: int
    idle: int
    out: int
    reserved: int
    waiting: int
    oldest_checkout: float
    requests_total: int
    queued_total: int
    waited_seconds_total: float
    timeouts_total: int
    connects_total: int
    connect_errors_total: int
    reclaimed_total: int
    dirty_total: int
