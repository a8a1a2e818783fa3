"""Where the time comes from: aware UTC instants and monotonic seconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """This machine's time, aware UTC. What two workers compare comes from the database's `now()` instead."""
    return datetime.now(UTC)


# Seconds that only ever grow, for durations and deadlines.
monotonic = time.monotonic
