"""
Runs a command that ends when its parent ends, even by `kill -9`. A script of its own: it must be cheap to start.

    python leash.py PARENT_PID COMMAND ...
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec, see prctl(2)


def main() -> None:
    """Become the command (Linux), or watch over it (elsewhere)."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        become(parent, command)
    else:
        watch_over(parent, command)


def become(parent: int, command: list[str]) -> None:
    """Replace this process by *command*, which the kernel kills when the parent's thread that started it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() == parent:  # else it ended before it was watched
        os.execv(command[0], command)  # noqa: S606  (the demo's own command line)


def watch_over(parent: int, command: list[str]) -> None:
    """Run *command* below this process, pass SIGTERM on, end as it ends, and kill it when the parent is gone."""
    child = subprocess.Popen(command)  # noqa: S603  (the demo's own command line)

    def pass_on(signum: int, _: FrameType | None) -> None:
        child.send_signal(signum)

    signal.signal(signal.SIGTERM, pass_on)
    while os.getppid() == parent:
        try:
            code = child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        if code < 0:
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        sys.exit(code)
    child.kill()


if __name__ == "__main__":
    main()
