"""Shares: how one budget of connections and slots is divided among processes."""

from __future__ import annotations

from dataclasses import replace

from worker.config import Config


def shares(config: Config) -> list[Config]:
    """One for each of its processes, all of them together its pool size and its slots; the first ones have the rest."""
    number = config.processes
    slots = [None] * number if config.slots is None else _divided(config.slots, number)
    return [
        replace(config, processes=1, pool_size=size, slots=own, http=None, budget=config.pool_size)
        for size, own in zip(_divided(config.pool_size, number), slots, strict=True)
    ]


def _divided(total: int, number: int) -> list[int]:
    each, rest = divmod(total, number)
    return [each + (place < rest) for place in range(number)]
