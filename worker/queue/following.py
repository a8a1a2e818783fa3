"""What follows from a job that is done: Dramatiq's callbacks and pipelines, which may not go missing untold."""

from __future__ import annotations

from typing import Any

from dramatiq import middleware

from worker.queue.delivery import Delivery


class _Following:
    """Before one of Dramatiq's: hooks swallow errors, so the job is told that its next step cannot be made."""

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        try:
            super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[misc]  # of the middleware behind
        except Exception as exc:
            # A job that has failed has a reason of its own, and may be retried.
            if exception is None and isinstance(message, Delivery) and message.broken is None:
                message.broken = exc
            raise


class Callbacks(_Following, middleware.Callbacks):
    """Dramatiq's `on_success` and `on_failure`; a job whose `on_success` nobody knows here is dead, not done."""


class Pipelines(_Following, middleware.Pipelines):
    """Dramatiq's pipelines; a job whose next step cannot be read is dead, not done."""
