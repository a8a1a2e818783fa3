"""Ids of jobs and workers: UUIDs that sort by time."""

from __future__ import annotations

import os
import time
from uuid import UUID, uuid5

# Ids of plain actors are any text; each text that is no UUID has one UUID, so that sending it again finds its row.
_FOREIGN = UUID("6f2d6c1e-6b0f-5c4e-9d3f-0c9a1b7e5a11")


def uuid7() -> UUID:
    """
    A UUID whose first 48 bits are milliseconds since 1970 and whose rest is random (RFC 9562, section 5.7).

    But for 12 bits of the millisecond's fraction (section 6.2, method 3), so that what one thread makes stays in order.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    value = milliseconds << 80 | fraction << 64 | int.from_bytes(os.urandom(8), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return UUID(int=value)


def job_id(message_id: str) -> UUID:
    """The id of the row that holds the message *message_id*."""
    try:
        return UUID(message_id)
    except (ValueError, AttributeError):
        return uuid5(_FOREIGN, str(message_id))
