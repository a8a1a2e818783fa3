"""Rates: how many jobs start within some seconds over the whole fleet."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any

from worker.errors import ConfigError
from worker.queue import keys
from worker.queue.limit import Limit

MAX_SIZE = 1_000_000_000
MAX_PER = 366 * 86400.0
# What the starts of a queue are counted under, before its name.
OF_QUEUE = "queue:"


@dataclass(frozen=True)
class Rate:
    """
    At most *size* jobs start within any *per* seconds, on all workers together; the others wait, without attempts.

    After a pause *size* may start at once; from then on each start makes room for another *per* seconds later. Every
    run is a start, also that of a retry. It begins with the claim, as the history has it.

    Args:
        per: Seconds, or a timedelta; at most a year.
        by: The argument, or arguments, whose values make rates: jobs with equal ones share one. Without it all jobs of
            the actor do.
        name: Of a rate that several actors share; the actor's own name by default.

    Raises:
        ConfigError: A value cannot work.
    """

    size: int
    _: KW_ONLY
    per: float | timedelta
    by: str | Sequence[str] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if not is_size(self.size):
            raise ConfigError(f"rate {self.size!r}: expected a whole number from 1 to {MAX_SIZE}")
        if not is_per(self.per):
            raise ConfigError(f"rate per {self.per!r}: expected seconds from 0.001 to {MAX_PER:.0f}, or a timedelta")
        keys.check_words("rate", self.by, self.name)

    @property
    def seconds(self) -> float:
        """How long a start counts."""
        return seconds_of(self.per)

    @property
    def numbers(self) -> str:
        """What it allows, in words."""
        return f"{self.size} in {self.seconds:.15g} s"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments that make rates."""
        return keys.names(self.by)

    def check(self, actor: str, parameters: Mapping[str, inspect.Parameter], limit: Limit | None) -> None:
        """
        Refuse an argument that the job does not have, and a *limit* beside which some would wait without need.

        Raises:
            SignatureError: Says which argument.
            ConfigError: Neither is by all arguments of the other, or the rate has the name of a queue's starts.
        """
        keys.check("rate", actor, self.arguments, parameters)
        if (self.name or actor).startswith(OF_QUEUE):
            raise ConfigError(
                f"job {actor!r}: rate {self.name or actor!r}: expected a name without {OF_QUEUE!r} before"
            )
        if limit is None or set(limit.arguments) >= set(self.arguments):
            return
        if limit.in_order or not self.comes_before(limit):
            wanted = ", ".join(map(repr, sorted({*limit.arguments, *self.arguments})))
            why = "in order, the limit" if limit.in_order else "one of the two"
            raise ConfigError(
                f"job {actor!r}: limit by {list(limit.arguments)} and rate by {list(self.arguments)}: who waits for one"
                f" would keep others from what they need: expected {why} to be by {wanted}"
            )

    def comes_before(self, limit: Limit | None) -> bool:
        """Whether a job is cleared first and gets its place in the lane then: of two keys the finer comes first."""
        return limit is not None and set(self.arguments) > set(limit.arguments)

    def option(
        self, actor: str, args: str, parameters: Mapping[str, inspect.Parameter], limit: Limit | None
    ) -> dict[str, Any]:
        """The rate of a job with *args*, JSON by name, as it is written among its options."""
        name = keys.key(self.name or actor, self.arguments, args, parameters)
        return {"name": name, "size": self.size, "per": self.seconds, "first": self.comes_before(limit)}


def is_size(size: Any) -> bool:
    """Whether so many can be counted: a whole number of at least 1."""
    return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MAX_SIZE


def is_per(per: Any) -> bool:
    """Whether starts can be counted for so long: seconds, or a timedelta."""
    if isinstance(per, bool) or not isinstance(per, int | float | timedelta):
        return False
    return 0.001 <= seconds_of(per) <= MAX_PER


def seconds_of(per: float | timedelta) -> float:
    return per.total_seconds() if isinstance(per, timedelta) else float(per)
