"""Logging: structlog for our events, everybody else's records through the same pipe, all of it on stderr."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from worker import tracing
from worker.secrecy import hide_passwords

# What every line of the running job carries. A call, because most jobs write no line and need no fields.
fields: ContextVar[Callable[[], dict[str, Any]] | None] = ContextVar("fields", default=None)

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


class _Handler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, each within *around*."""

    def __init__(self, stream: TextIO, around: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(stream)
        self._around = around

    def handle(self, record: logging.LogRecord) -> bool:
        with self._around():
            return bool(super().handle(record))


@contextmanager
def uncaught_in_threads() -> Iterator[None]:
    """While the block lasts, an exception that ends a thread is an event like others, and not a text on stderr."""
    before = threading.excepthook

    def log_uncaught(died: threading.ExceptHookArgs) -> None:
        name = died.thread.name if died.thread else None
        get_logger("worker.threads").critical("thread.died", thread=name, exc_info=died.exc_value)

    threading.excepthook = log_uncaught
    try:
        yield
    finally:
        threading.excepthook = before


def configure(
    log_format: str = "auto",
    log_level: str = "info",
    *,
    stream: TextIO | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    every: Mapping[str, Any] | None = None,
) -> None:
    """
    Send every log record of this process to *stream* (stderr when None); a second call replaces the first.

    Args:
        log_format: "console", "json", or "auto": console on a terminal, JSON elsewhere.
        log_level: Of our own events; others' are shown from "info" on, some only from "warning".
        around: Entered for each record. A worker keeps the interrupts of its jobs out of it: one that met the
            handler between taking its lock and giving it back would stop every thread that ever logs again.
        every: Fields of every line.
    """
    level = logging.getLevelNamesMapping()[log_level.upper()]
    stream = stream or sys.stderr
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        lambda _, __, event: {**(every or {}), **event},
        merge_contextvars,
        _merge_fields,
        lambda _, __, event: {**tracing.ids(), **event},
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(sort_keys=False, default=str)
    )
    # Tracebacks as text: structured and pretty ones carry every local variable, and with them the jobs' arguments.
    rendering: list[Processor] = [structlog.processors.format_exc_info, hide_passwords, renderer]
    handler = _Handler(stream, around)
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


def _merge_fields(_: object, __: str, event: EventDict) -> EventDict:
    make = fields.get()
    return event if make is None else {**make(), **event}
