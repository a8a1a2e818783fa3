"""Stuck jobs: what becomes of the job of a body that does not heed its interrupt, or of hooks that never return."""

from __future__ import annotations

from dramatiq.middleware import TimeLimitExceeded

from worker.errors import HookStuck
from worker.queue.broker import PostgresBroker
from worker.queue.conclusion import conclude
from worker.queue.settlement import Settlement
from worker.runtime.guard import Guard
from worker.runtime.hook_watch import HookRun


def abandon(broker: PostgresBroker, stuck: Guard | HookRun) -> Settlement | None:
    """
    What becomes of the job of a run that nothing ends: the same as if its interrupt, or an error, had ended it.

    Made from a delivery of its own, since the run may still come back; then the tokens decide who is late.
    """
    delivery, error = broker.deliver(stuck.delivery.claim), stuck.verdict()
    if delivery is None or error is None:
        return None
    if isinstance(error, TimeLimitExceeded | HookStuck):
        delivery.fail_after_hooks(error, broker.encode)
    return conclude(delivery, error)
