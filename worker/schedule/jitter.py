"""Jitter: a delay that depends on schedule and tick alone, so that every process reckons the same."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime


def jitter(name: str, tick: datetime, most: float) -> float:
    """Seconds from 0 to below *most* that the job of *tick* waits; the tick stays what it is."""
    if not most:
        return 0.0
    digest = hashlib.sha256(f"{name}\n{tick.astimezone(UTC).isoformat()}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 * most
