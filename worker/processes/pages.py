"""The pages of the whole: whether all processes live and are ready, and their numbers together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from worker import clock, log
from worker.observe.http import Page
from worker.observe.metrics import CONTENT_TYPE, Counter, Family, Sample, render, together
from worker.processes.child import Child

logger = log.get_logger(__name__)

# A page does not wait longer for the processes; a probe gives up after a few seconds.
_PATIENCE = 2.0


class Pages:
    """
    Asks the children that there are at this moment.

    Args:
        children: Makes their list, from any thread.
        vacant: Makes the list of numbers of those that should be there and are not.
    """

    def __init__(self, children: Callable[[], Sequence[Child]], vacant: Callable[[], Sequence[int]]) -> None:
        self._children = children
        self._vacant = vacant
        self._past: list[Family] = []
        self._ends = Counter("worker_process_ends_total", "Processes that have ended, by why.", "reason")

    def all(self) -> dict[str, Callable[[], Page]]:
        return {"/livez": self.live, "/readyz": self.ready, "/metrics": self.metrics}

    def ended(self, child: Child, reason: str) -> None:
        """Its counts stay: a sum that shrinks would look like a restart of the whole."""
        self._past = together([self._past, child.counted])
        self._ends.add(reason)

    def live(self) -> Page:
        """Whether every process that there is lives; to start all anew brings none back sooner that has ended."""
        told = self._ask("health")
        reasons: dict[str, str] = {}
        for child in told:
            health = told[child] or {}
            reasons |= {f"process {child.number}: {name}": said for name, said in health.get("troubles", {}).items()}
            if not health.get("troubles") and child.trouble is not None:
                reasons[f"process {child.number}"] = child.trouble
        return self._page(reasons, told)

    def ready(self) -> Page:
        """Whether jobs would run in every process."""
        told = self._ask("health")
        reasons = {f"process {number}": "it has ended, and is not back yet" for number in self._vacant()}
        for child, health in told.items():
            if health is None:
                reasons[f"process {child.number}"] = f"{child.stage}: it does not answer"
            else:
                reasons |= {f"process {child.number}: {name}": said for name, said in health["reasons"].items()}
        return self._page(reasons, told)

    def metrics(self) -> Page:
        # Before they are asked: the numbers of one that ends meanwhile are in its answer, and would be in both.
        past = self._past
        families: list[Sequence[Family]] = []
        for child, told in self._ask("families").items():
            if told is None:
                # What has been shown once must not shrink, although the process does not answer ...
                families.append(child.counted)
            else:
                families.append([Family.told(each) for each in told])
                # ... or is killed before it tells its last.
                child.has_counted(families[-1])
        running = Family("worker_processes", "gauge", "Processes that there are.", [Sample({}, len(self._children()))])
        return Page(200, CONTENT_TYPE, render([running, self._ends.family(), *together([past, *families])]))

    def _ask(self, subject: str) -> dict[Child, Any]:
        """By child, its answer; None of one that has none in time."""
        asked: dict[Child, Future[Any]] = {child: child.ask(subject) for child in self._children()}
        deadline = clock.monotonic() + _PATIENCE
        return {child: _answered(answer, deadline) for child, answer in asked.items()}

    def _page(self, reasons: dict[str, str], told: dict[Child, Any]) -> Page:
        processes = [
            {
                "process": child.number,
                "pid": child.pid,
                "worker": str(child.worker_id) if child.worker_id else None,
                "stage": child.stage,
                "running": (health or {}).get("running", 0),
                "stuck": (health or {}).get("stuck", 0),
            }
            for child, health in told.items()
        ]
        running, stuck = (sum(process[what] for process in processes) for what in ("running", "stuck"))
        body = {"ok": not reasons, "reasons": reasons, "running": running, "stuck": stuck, "processes": processes}
        return Page(503 if reasons else 200, "application/json", json.dumps(body) + "\n")


def _answered(answer: Future[Any], deadline: float) -> Any:
    try:
        return answer.result(max(0.0, deadline - clock.monotonic()))
    except (TimeoutError, ConnectionError):
        return None
