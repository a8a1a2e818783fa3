"""The process: boot, run, drain, close."""

from worker.runtime.run import run

__all__ = ["run"]
