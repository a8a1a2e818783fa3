"""Stuck jobs: what becomes of the job of a body that does not heed its interrupt."""

from __future__ import annotations

from dramatiq.middleware import TimeLimitExceeded

from worker.queue.broker import PostgresBroker
from worker.queue.conclusion import conclude
from worker.queue.settlement import Settlement
from worker.runtime.watchdog import Guard


def abandon(broker: PostgresBroker, guard: Guard) -> Settlement | None:
    """
    What becomes of the job of a body that nothing ends: the same as if its interrupt had ended it.

    Made from a delivery of its own, since the body may still come back; then the tokens decide who is late.
    """
    delivery = broker.deliver(guard.delivery.claim)
    if delivery is None or guard.reason is None:
        return None
    error = guard.reason(f"it went on after its interrupt, so its process was ended\n{guard.where()}".rstrip())
    if isinstance(error, TimeLimitExceeded):
        delivery.fail_after_hooks(error, broker.encode)
    return conclude(delivery, error)
