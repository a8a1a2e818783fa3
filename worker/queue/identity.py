"""Ids of jobs and workers: UUIDs that sort by time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from uuid import UUID, uuid5

# Ids of plain actors are any text; each text that is no UUID has one UUID, so that sending it again finds its row.
_FOREIGN = UUID("6f2d6c1e-6b0f-5c4e-9d3f-0c9a1b7e5a11")
# Ids of one call for random bytes.
_AT_ONCE = 64


def uuid7() -> UUID:
    """
    A UUID whose first 48 bits are milliseconds since 1970 and whose rest is random (RFC 9562, section 5.7).

    But for 12 bits of the millisecond's fraction (section 6.2, method 3), so that what one thread makes stays in order.
    """
    return _uuid7(os.urandom(8))


def uuid7s() -> Iterator[UUID]:
    """`uuid7` again and again, for a bulk: the system is asked for chance once for many."""
    while True:
        chance = os.urandom(8 * _AT_ONCE)
        for place in range(0, len(chance), 8):
            yield _uuid7(chance[place : place + 8])


def _uuid7(chance: bytes) -> UUID:
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    high = milliseconds << 16 | 0x7000 | fraction  # 7 is the version
    low = int.from_bytes(chance, "big") & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000  # the variant's two bits
    return UUID(int=high << 64 | low)


def job_id(message_id: str) -> UUID:
    """The id of the row that holds the message *message_id*."""
    try:
        return UUID(message_id)
    except (ValueError, AttributeError):
        return uuid5(_FOREIGN, str(message_id))
