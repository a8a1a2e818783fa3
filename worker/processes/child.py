"""A child: one of the supervisor's processes, from its start to its end, as it tells of itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from worker import clock, log
from worker.config import Config
from worker.observe.metrics import Family, only_growing
from worker.runtime.link import Fields, Link
from worker.runtime.parent import config_told

logger = log.get_logger(__name__)

# Its main thread makes a round every half second; booting and closing have none, and take less than this.
_MAX_SILENCE = 30.0
# Of a service manager, which hears of all of them from the supervisor only.
_NOT_ITS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Child:
    """
    Starts with its making: a fresh interpreter, not a fork, so it shares nothing with its siblings.

    It has a process group of its own, so that Ctrl-C reaches it through the supervisor, and once.

    Raises:
        OSError: The system gives no process; nothing is left behind.
    """

    def __init__(self, number: int, config: Config) -> None:
        self.number = number
        self.config = config
        self.worker_id: UUID | None = None
        self.stage = "starting"
        self.hears_signals = False
        self.is_stopping = False
        """Whether it was asked to end, by us."""
        self.counted: Sequence[Family] = ()
        """Its counters when they were last told."""
        self.worked_since: float | None = None
        self._well = True
        self._heard_at = clock.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            env = {name: value for name, value in os.environ.items() if name not in _NOT_ITS}
            command = [sys.executable, "-m", "worker.cli.child", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(  # noqa: S603  (our own command line)
                    command, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0
                )
            except OSError:
                ours.close()
                raise
        self._link = Link(ours, f"link-{number}", self._hear, gone=lambda: None)
        try:
            self._link.start()
        except RuntimeError as exc:  # the system gives no thread either
            self._process.kill()
            self._process.wait()
            ours.close()
            raise OSError(f"no thread for the link to it: {exc}") from exc
        self._link.tell("order", number=number, config=config_told(config))
        self.ask = self._link.ask
        logger.info("process.started", process=number, pid=self.pid, pool_size=config.pool_size)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def works(self) -> bool:
        """Whether it has come to run jobs, and has not begun to end."""
        return self.stage in ("running", "paused") and not self.is_stopping

    @property
    def worked_for(self) -> float:
        """Seconds since it came to run jobs; 0 before."""
        return 0.0 if self.worked_since is None else clock.monotonic() - self.worked_since

    @property
    def trouble(self) -> str | None:
        """Why it cannot be taken for alive."""
        silence = clock.monotonic() - self._heard_at
        if silence > _MAX_SILENCE:
            return f"no word for {silence:.0f} s"
        return None if self._well else "something in it has died"

    def has_counted(self, families: Sequence[Family]) -> None:
        """These numbers of it have been seen."""
        self.counted = only_growing(families)

    def ended(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._link.close()
        return code

    def send(self, signum: int) -> None:
        """Pass a signal on; one that it does not hear yet, only if it is meant to end it."""
        if signum in (signal.SIGTERM, signal.SIGINT) or self.hears_signals:
            with suppress(ProcessLookupError):
                self._process.send_signal(signum)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Ask it to end."""
        self.is_stopping = True
        self.send(signum)

    def kill(self) -> None:
        """End it as it stands."""
        self._process.kill()
        self._process.wait()
        self._link.close()

    def _hear(self, subject: str, told: Fields) -> Any:
        self._heard_at = clock.monotonic()
        match subject:
            case "hello":
                self.hears_signals = True
            case "worker":
                self.worker_id = UUID(told["id"])
            case "stage":
                self.stage = told["stage"]
                if self.stage == "running" and self.worked_since is None:
                    self.worked_since = clock.monotonic()
            case "beat":
                self._well = told["well"]
            case "counted":
                self.has_counted([Family.told(each) for each in told["families"]])


def how_it_ended(code: int) -> str:
    """An exit code, or the signal behind a negative one, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
