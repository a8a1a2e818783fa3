"""Traces of sends and runs, for applications that use OpenTelemetry; nothing of it is imported for the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from worker.tracing.spans import Run

# Among a message's options: the context of the span that it was created in, as W3C's headers say it.
OPTION = "trace"


class Traceable(Protocol):
    """A message."""

    @property
    def queue_name(self) -> str: ...
    @property
    def actor_name(self) -> str: ...
    @property
    def message_id(self) -> str: ...
    @property
    def options(self) -> dict[str, Any]: ...


M = TypeVar("M", bound=Traceable)
WithContext = Callable[[M, dict[str, str]], M]
"""Makes a copy of a message with a context among its options."""


def is_on() -> bool:
    """Whether the application has set a provider of traces: to do so, it has imported OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    try:
        return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    except Exception:
        # Another thread is just importing it, or the provider that its environment names cannot be had.
        return False


def sending(messages: Sequence[M], with_context: WithContext[M], *, batch: bool) -> AbstractContextManager[Sequence[M]]:
    """
    One span for the sending of *messages*; gives them with its context. Those that have one keep it.

    Args:
        batch: Whether they were sent by a call that takes many.
    """
    if not messages or not is_on():
        return nullcontext(messages)
    from worker.tracing import spans

    return spans.sending(messages, with_context, batch=batch)


def creating(message: M, with_context: WithContext[M], **said: str) -> M:
    """
    *message* with the context of a span of its own, a root: what is sent with others may have nothing to do with them.

    Args:
        said: More of our own attributes.
    """
    if not is_on():
        return message
    from worker.tracing import spans

    return spans.creating(message, with_context, said)


def running(message: Traceable, *, queue: str, attempt: int, worker: str | None = None) -> Run | None:
    """Begin the span of a run, the current one until its `end`; None when nobody wants it."""
    if not is_on():
        return None
    from worker.tracing.spans import Run

    return Run(message, queue=queue, attempt=attempt, worker=worker)


def ids() -> dict[str, str]:
    """What a line of the log says of the current span; nothing unless that is being recorded."""
    trace = sys.modules.get("opentelemetry.trace")
    # None as well while another thread is just importing it.
    current_span = getattr(trace, "get_current_span", None)
    if trace is None or current_span is None or not (span := current_span()).is_recording():
        return {}
    said = span.get_span_context()
    return {"trace_id": trace.format_trace_id(said.trace_id), "span_id": trace.format_span_id(said.span_id)}
