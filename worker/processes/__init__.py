"""Several processes under one supervisor, which has no connection and runs no code of yours."""

from worker.processes.supervisor import supervise

__all__ = ["supervise"]
