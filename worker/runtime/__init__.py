"""The process: boot, run, drain, close."""

from worker.runtime.reload import Reload, command_line
from worker.runtime.run import rehearse, run

__all__ = ["Reload", "command_line", "rehearse", "run"]
