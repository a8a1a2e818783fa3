"""`worker schedules list` and `why`: what the database knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.config import Config


def stored(config: Config) -> list[Any]:
    """The schedules in the database."""
    return []
