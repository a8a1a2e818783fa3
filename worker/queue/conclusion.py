"""The conclusion of a run: from how it ended, and what the middleware made of that, to its settlement."""

from __future__ import annotations

from dramatiq.middleware import SkipMessage

from worker.errors import Cancelled, UnreadableJob
from worker.queue.delivery import Delivery, describe
from worker.queue.enqueue import encode_options
from worker.queue.settlement import CANCELLED, Outcome, Settlement, storable
from worker.queue.snooze import Snooze


def conclude(delivery: Delivery, exception: BaseException | None) -> Settlement:
    """What becomes of *delivery* after the middleware has seen how its run ended, with *exception* or without."""
    proof = delivery.claim.id, delivery.claim.token
    if exception is None and delivery.is_sound:
        return Settlement(*proof, Outcome.DONE, following=tuple(delivery.following))
    if isinstance(exception, Cancelled):
        return Settlement(*proof, Outcome.DEAD, error=CANCELLED, following=tuple(delivery.following))
    if isinstance(exception, Snooze):
        return Settlement(*proof, Outcome.RELEASED, exception.seconds)
    if delivery.costs_no_attempt(exception):
        # Soon, but not at once: whatever cut it short may need a moment, and each time a longer one.
        delay = 0.0 if delivery.stop_reason is not None else 0.1 * 4**delivery.cuts
        if not delivery.was_cut(exception) or exception is None:
            return Settlement(*proof, Outcome.RELEASED, delay)
        options = encode_options({**delivery.sent_options, "cuts": delivery.cuts + 1}, delivery.claim.actor)
        return Settlement(*proof, Outcome.RELEASED, delay, storable(describe(exception)), options)
    following = tuple(delivery.following)
    if isinstance(exception, UnreadableJob):
        return Settlement(*proof, Outcome.DEAD, error=storable(f"quarantined: {exception}"), following=following)
    if delivery.broken is not None:
        # What should follow from the job cannot be stored, now or at any later attempt.
        return Settlement(*proof, Outcome.DEAD, error=storable(describe(delivery.broken)))
    error = None if exception is None else storable(describe(exception))
    if (new := delivery.rescheduled) is not None:
        return Settlement(*proof, Outcome.RETRY, new.delay, error, new.options, new.message, following)
    # What no middleware has dealt with is dead as well: Dramatiq's Worker would acknowledge it, and it would be gone.
    if delivery.failed or not (exception is None or isinstance(exception, SkipMessage)):
        return Settlement(*proof, Outcome.DEAD, error=error or "skipped by middleware", following=following)
    return Settlement(*proof, Outcome.DONE, following=following)
