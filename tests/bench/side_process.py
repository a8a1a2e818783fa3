"""A side's process, as seen by who measures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.peer import Places

PATIENCE = 1000.0
"""Seconds; above what a side waits for by itself."""

_SIDE = (sys.executable, "-W", "ignore", "-m", "tests.bench.side")
_JSON = ("{", "[", '"')


class SideError(Exception):
    """A side could not do what was asked; the last line that it said."""


class SideProcess:
    """
    One stage of the side *name*, a context manager; killed if the block ends by an error.

    Args:
        more: What else the stage takes.
        under: A command that runs it.
    """

    def __init__(
        self,
        name: str,
        places: Places,
        stage: str,
        work: str = "",
        jobs: int = 0,
        *,
        more: Mapping[str, float] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        told: dict[str, Any] = {"peer": name, "places": asdict(places), "stage": stage, "work": work, "jobs": jobs}
        told["more"] = dict(more or {})
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in `__exit__`)
        self._process = subprocess.Popen(
            [*under, *_SIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        self.tell(told)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, what: object) -> None:
        """Say it to the side, as JSON."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """
        The next thing that it says.

        Raises:
            SideError: It ended without, or took too long.
        """
        assert self._process.stdout is not None
        patience = threading.Timer(PATIENCE, self._process.kill)
        patience.start()
        # What runs it may speak too, but no JSON.
        line = next((line for line in self._process.stdout if line.startswith(_JSON)), "")
        patience.cancel()
        if not line:
            self._process.wait(PATIENCE)
            self._said.seek(0)
            raise SideError(self._said.read().strip().rpartition("\n")[2] or "it said nothing")
        return json.loads(line)

    def end(self) -> Any:
        """
        Tell it that nothing more will be told, and return the last thing that it says.

        Raises:
            SideError: It ended without.
        """
        self._close()
        return self.answer()

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._close()
                self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._said.close()


def ask(name: str, places: Places, stage: str, work: str = "", jobs: int = 0, **more: float) -> Any:
    """
    What a stage answers that says one thing and ends.

    Raises:
        SideError: It could not.
    """
    with SideProcess(name, places, stage, work, jobs, more=more) as process:
        return process.answer()
