"""A job with a rate, for workers in processes of their own."""

from __future__ import annotations

from worker import Rate, job


@job(queue="rated", rate=Rate(4, per=2))
def rated_visit() -> None: ...
