"""The replacement: the slot of a job that is stuck goes to others, and its thread gets a successor."""

from __future__ import annotations

from worker import log
from worker.runtime.guard import Guard
from worker.runtime.slot_feed import SlotFeed
from worker.runtime.tally import Tally

logger = log.get_logger(__name__)


class Replacement:
    """Call it with the guard of a body that heeds no interrupt; it says, counts and returns whether it was replaced."""

    def __init__(self, feed: SlotFeed, tally: Tally) -> None:
        self._feed = feed
        self._tally = tally
        self._is_refused = False

    def __call__(self, guard: Guard) -> bool:
        claim = guard.delivery.claim
        try:
            aside = self._feed.put_aside(claim, guard.job_thread)
        except RuntimeError:
            if not self._is_refused:  # it is tried again and again
                logger.exception("slot.not_replaced", job_id=str(claim.id), actor=claim.actor)
            self._is_refused = True
            return False
        if aside is None:
            return False
        self._is_refused = False
        self._tally.replaced(claim)
        logger.warning(
            "slot.replaced", job_id=str(claim.id), actor=claim.actor, thread=aside.thread, successor=aside.successor,
            stuck=aside.number, max_stuck=self._feed.max_aside,
        )  # fmt: skip
        return True
