"""What a running job can do through its context: end in a transaction, say how far it is, do a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from worker.queue.delivery import Delivery
from worker.queue.dispatcher import Dispatcher
from worker.queue.finish import Finish
from worker.queue.progress import check_progress
from worker.queue.schema import Schema
from worker.queue.steps import StepBlock, Steps
from worker.queue.stop_reason import StopReason


class Place(Protocol):
    """Where a run writes: a broker."""

    @property
    def schema(self) -> Schema: ...

    @property
    def dispatcher(self) -> Dispatcher | None: ...


class RunAbilities:
    """Those of one run; made when its context is."""

    def __init__(self, place: Place, delivery: Delivery) -> None:
        self._delivery = delivery
        self._place = place
        self._steps = Steps(delivery, place.schema)

    @property
    def stop_reason(self) -> StopReason | None:
        return self._delivery.stop_reason

    def wait(self, seconds: float) -> None:
        self._delivery.stopping.wait(seconds)

    def finish(self) -> Finish:
        return Finish(self._delivery, self._place.schema)

    def report(self, fraction: float | None, note: str | None) -> None:
        progress = check_progress(self._delivery.claim.actor, fraction, note)
        if self._place.dispatcher is not None:
            self._place.dispatcher.reports.say(self._delivery.claim.proof, progress)

    def step(self, name: str) -> StepBlock:
        return self._steps.begin(name)

    def do_step(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._steps.do(name, fn, args, kwargs)
