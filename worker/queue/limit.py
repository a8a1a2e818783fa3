"""Limits: how many jobs of a lane run at once over the whole fleet, and whether in order."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from worker.errors import ConfigError
from worker.queue import keys


@dataclass(frozen=True)
class Limit:
    """
    At most *size* jobs of each lane run at once, on all workers together; the others wait, without attempts.

    Args:
        by: The argument, or arguments, whose values make lanes: jobs with equal ones share one. Without it all jobs of
            the actor do.
        name: Of lanes that several actors share; the actor's own name by default.
        in_order: A job never starts before those of its lane that were due earlier have settled for good: one that is
            to be retried keeps the others waiting. Its *size* is 1.

    Raises:
        ConfigError: A value cannot work.
    """

    size: int = 1
    _: KW_ONLY
    by: str | Sequence[str] = ()
    name: str | None = None
    in_order: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise ConfigError(f"limit {self.size!r}: expected a whole number from 1 on")
        keys.check_words("limit", self.by, self.name)
        if self.in_order and self.size != 1:
            raise ConfigError(f"limit {self.size}: jobs in order run one at a time, expected a size of 1")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments that make lanes."""
        return keys.names(self.by)

    @property
    def numbers(self) -> str:
        """What it allows, in words."""
        return f"{self.size} at once{', in order' if self.in_order else ''}"

    def check(self, actor: str, parameters: Mapping[str, inspect.Parameter]) -> None:
        """
        Refuse an argument that the job does not have.

        Raises:
            SignatureError: Says which.
        """
        keys.check("limit", actor, self.arguments, parameters)

    def lane(self, actor: str, args: str, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """The lane of a job with *args*, JSON by name, as it is written among its options."""
        name = keys.key(self.name or actor, self.arguments, args, parameters)
        return {"name": name, "size": self.size, "in_order": self.in_order}
