"""Dramatiq's signals, given only to middleware that listens to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from dramatiq.middleware import (
    AgeLimit,
    GroupCallbacks,
    Middleware,
    MiddlewareError,
    ShutdownNotifications,
    TimeLimit,
)
from dramatiq.results import Results

from worker import log
from worker.queue.backends import PostgresGroups
from worker.queue.broker import PostgresBroker, overrides
from worker.queue.delivery import Delivery
from worker.queue.following import Callbacks, Pipelines
from worker.queue.retries import Retries
from worker.queue.transaction import Transaction

logger = log.get_logger(__name__)

# The watchdog does their work: it also reaches the database, and never interrupts a hook.
_SUPERSEDED = (TimeLimit, ShutdownNotifications)
# None of these waits for anything, or runs code of others. A class made of one of them is not meant.
_QUICK = frozenset({AgeLimit, Retries, Transaction, *_SUPERSEDED})
# Nor does one of these in a run that has none of the options behind them: they store what came of it, or send what
# follows from it.
_ASKED = frozenset({Callbacks, GroupCallbacks, Pipelines, PostgresGroups, Results})
_ASKS = ("store_results", "group_completion_uuid", "on_success", "pipe_target")


class Hooks:
    """
    The hooks of a broker's middleware, in its order for `before` and reversed for `after`.

    Same rules as the broker's own `emit_before` and `emit_after`, but a base class's empty hook is never called:
    they were half the cost of a short job.
    """

    def __init__(self, broker: PostgresBroker) -> None:
        self._broker = broker
        self._listeners: defaultdict[str, list[Callable[..., None]]] = defaultdict(list)
        for middleware in broker.middleware:
            if type(middleware) not in _SUPERSEDED:
                self._listen(middleware)
        self._are_known = all(_is_known(middleware) for middleware in broker.middleware)

    def _listen(self, middleware: Middleware) -> None:
        for name in dir(Middleware):
            if name.startswith("before_"):
                if overrides(middleware, name):
                    self._listeners[name].append(getattr(middleware, name))
            elif name.startswith("after_") and overrides(middleware, name):
                self._listeners[name].insert(0, getattr(middleware, name))

    def are_quick(self, delivery: Delivery) -> bool:
        """Whether none of them waits for anything in this run, but for the connection that its job may take."""
        options = {} if delivery.actor is None else delivery.actor.options
        return self._are_known and not any(delivery.options.get(name, options.get(name)) for name in _ASKS)

    def before(self, signal: str, *args: Any) -> None:
        """
        Call everybody's `before_` hook.

        Raises:
            MiddlewareError: As a hook raised it; any other exception is logged and goes no further.
        """
        for hook in self._listeners["before_" + signal]:
            try:
                hook(self._broker, *args)
            except MiddlewareError:
                raise
            except Exception:
                logger.exception("middleware.failed", hook=f"{type(hook.__self__).__name__}.before_{signal}")  # type: ignore[attr-defined]  # bound methods

    def after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call everybody's `after_` hook; an exception is logged and goes no further."""
        for hook in self._listeners["after_" + signal]:
            try:
                hook(self._broker, *args, **kwargs)
            except Exception:
                logger.exception("middleware.failed", hook=f"{type(hook.__self__).__name__}.after_{signal}")  # type: ignore[attr-defined]  # bound methods


def _is_known(middleware: Middleware) -> bool:
    kind = type(middleware)
    return kind in _QUICK or (kind in _ASKED and not getattr(middleware, "store_results", False))
