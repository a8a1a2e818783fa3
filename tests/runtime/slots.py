"""Slots that start nothing: a feed of its own, and what it did with the claims that it was given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from worker import PostgresBroker
from worker.queue.claim import Claim
from worker.queue.settlement import Settlement
from worker.runtime.slot_feed import SlotFeed


def claim(actor: str, number: int, **others: Any) -> Claim:
    return Claim(UUID(int=number), 1, "default", actor, 1, None, "{}", None, None, **others)  # type: ignore[arg-type]


class Slots:
    """A feed of its own, with threads that start nothing and a loop that begins nothing."""

    def __init__(self, broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch, *, slots: int, checkouts: int) -> None:
        self.settled: list[Settlement] = []
        self.started: list[Claim] = []
        self.on_loop: list[Claim] = []
        monkeypatch.setattr(broker, "_pool", SimpleNamespace(checkouts=list))
        dispatcher: Any = SimpleNamespace(settle=self.settled.append, wake=lambda: None)
        broker.dispatcher = dispatcher
        threads: Any = SimpleNamespace(start=self.started.append, replace=lambda ident: ("job-1", "job-1.2"))
        loop: Any = SimpleNamespace(start=self.on_loop.append, take_back=self._take_back)
        self.feed = SlotFeed(broker, slots=slots, checkouts=checkouts)
        self.feed.connect(threads, loop, threads)

    def _take_back(self) -> list[Claim]:
        waiting, self.on_loop = self.on_loop, []
        return waiting
