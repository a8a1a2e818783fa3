"""Logging: structlog for our events, everybody else's records through the same pipe, all of it on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, merge_contextvars
from structlog.typing import FilteringBoundLogger, Processor

__all__ = ["bind_contextvars", "bound_contextvars", "configure", "get_logger"]

# Louder than their use: the pool logs each checkout, APScheduler each tick, Dramatiq each retry that we log ourselves.
_QUIET = {
    "psycopg.pool": logging.WARNING,
    "apscheduler": logging.WARNING,
    "dramatiq": logging.WARNING,
    "dramatiq.middleware.retries": logging.ERROR,
    "asyncio": logging.WARNING,
}


def get_logger(name: str) -> FilteringBoundLogger:
    """
    A logger of events: short fixed names with fields, such as `log.info("job.done", duration=0.21)`.

    It writes to the stdlib logger *name*, so an application that imports us decides what is shown; structlog's own
    default would print to its stdout.
    """
    logger: FilteringBoundLogger = structlog.wrap_logger(logging.getLogger(name))
    return logger


def configure(log_format: str = "auto", log_level: str = "info", *, stream: TextIO | None = None) -> None:
    """
    Send every log record of this process to *stream* (stderr when None); a second call replaces the first.

    Args:
        log_format: "console", "json", or "auto": console on a terminal, JSON elsewhere.
        log_level: Of our own events; others' are shown from "info" on, some only from "warning".
    """
    level = logging.getLevelNamesMapping()[log_level.upper()]
    stream = stream or sys.stderr
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if console
        # Tracebacks as text: structured ones carry every local variable, and with them the jobs' arguments.
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=False, default=str)]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("worker").setLevel(level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(quiet)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
