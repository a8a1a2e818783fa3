"""Worker processes, each at the end of its own cables: one to each address that the server may have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.chaos.cable import Cable
from tests.chaos.faults.jobs import NAME

ROOT = Path(__file__).parents[3]
POOL_SIZE = 4
LEASE = 10.0
_PATIENCE = 60.0


class Worker:
    """
    A worker process; a context manager that ends it.

    Its URL names all addresses, and of these it takes the one that can be written.
    """

    def __init__(self, name: str, addresses: Sequence[str], folder: Path) -> None:
        self.name = name
        self.cables = [Cable(address) for address in addresses]
        self._stack = ExitStack()
        self._folder = folder
        self._num_started = 0
        self.num_ended = 0
        """How often it has ended by itself."""

    def __enter__(self) -> Self:
        for cable in self.cables:
            self._stack.enter_context(cable)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stack.close()

    @property
    def _url(self) -> str:
        ends = [conninfo_to_dict(cable.url) for cable in self.cables]
        hosts = {name: ",".join(str(end[name]) for end in ends) for name in ("host", "port")}
        return make_conninfo(self.cables[0].url, **hosts, target_session_attrs="read-write")

    def start(self) -> None:
        self._num_started += 1
        environment = {
            **os.environ, "WORKER_DATABASE_URL": self._url, "WORKER_LOG_FORMAT": "json", NAME: self.name,
            "WORKER_LEASE": f"{LEASE:g}",
        }  # fmt: skip
        command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.faults.jobs"]
        with Path(self._folder, f"worker-{self.name}-{self._num_started}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--pool-size", str(POOL_SIZE)], cwd=ROOT, stderr=log, env=environment
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def revive(self) -> None:
        """Start it anew if it has ended by itself, as a service manager would."""
        if self.process.poll() is not None:
            self.num_ended += 1
            self.start()

    def end(self) -> None:
        """It runs no more."""
        self.process.kill()
        self.process.wait(_PATIENCE)

    def stop(self) -> int:
        """End it in order; the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(_PATIENCE)

    @property
    def memory(self) -> float | None:
        """What it keeps in memory, in MiB; None when it has just ended."""
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 or None
        return None
