"""Reload: on SIGHUP the new code and settings are tried in a process of their own before anything is given up."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, NoReturn

from worker import clock, log

logger = log.get_logger(__name__)

# Imports that take longer would be too long a gap anyway.
_PATIENCE = 60.0
_LAST_WORDS = 2000


def command_line() -> list[str]:
    """What this process was started as, to start it again."""
    return [sys.executable, *sys.orig_argv[1:]]


def reexecute(command: Sequence[str]) -> NoReturn:
    """Become *command* under the same process id; everything must have been closed, and signals held."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))  # noqa: S606  (our own command line)


def say_goodbye() -> None:
    """What the interpreter would do at its end for those who asked for it, such as reporters that hold events back."""
    atexit._run_exitfuncs()


class Reload:
    """
    Whether to go over to new code and settings; asked for any number of times.

    Args:
        command: The command line of this worker; None when it cannot be started again.
        refusal: Why it cannot.
    """

    def __init__(self, command: Sequence[str] | None = None, *, refusal: str = "it is part of a program") -> None:
        self.command = command
        self._refusal = refusal
        self._trial: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None
        self._deadline = 0.0

    def ask(self) -> None:
        """Begin to try the new code; a trial that is under way begins anew, because the code may have changed again."""
        if self.command is None:
            logger.warning("reload.refused", reason=self._refusal)
            return
        self.close()
        logger.info("reload.checking")
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the trial)
        # What speaks to the service manager is this process, not its trial.
        env = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
        try:
            self._trial = subprocess.Popen(  # noqa: S603  (our own command line)
                [*self.command, "--check"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                process_group=0,
            )
        except OSError as exc:
            self.close()
            logger.error("reload.refused", reason=f"it could not be checked: {exc}")  # noqa: TRY400  (the system's doing)
        self._deadline = clock.monotonic() + _PATIENCE

    def is_approved(self) -> bool:
        """Whether a trial has just ended well; why one did not is in the log, once."""
        if self._trial is None:
            return False
        code = self._trial.poll()
        if code is None and clock.monotonic() < self._deadline:
            return False
        reason = self._last_words() if code is not None else f"it was not checked within {_PATIENCE:g} s"
        self.close()
        if code != 0:
            logger.error("reload.refused", reason=reason, code=code)
        return code == 0

    def close(self) -> None:
        """End a trial that is under way; twice is harmless."""
        if self._trial is not None:
            self._trial.kill()
            self._trial.wait()
            self._trial = None
        if self._words is not None:
            self._words.close()
            self._words = None

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        return self._words.read()[-_LAST_WORDS:].decode(errors="replace").strip()
