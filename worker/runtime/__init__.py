"""The process: boot, run, drain, close."""

from worker.runtime.parent import Parent
from worker.runtime.reload import Reload, command_line
from worker.runtime.run import rehearse, run

__all__ = ["Parent", "Reload", "command_line", "rehearse", "run"]
