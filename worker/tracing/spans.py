"""The spans, by the names of OpenTelemetry's conventions for messaging (1.45, where they are still in development)."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.secrecy import without_passwords
from worker.tracing import OPTION, M, Traceable, WithContext

_SYSTEM = "carpool"
_OURS = f"messaging.{_SYSTEM}."

# Not the application's: what else that carries, baggage, is anybody's data and would lie in the table.
_PROPAGATOR = TraceContextTextMapPropagator()


@contextmanager
def sending(messages: Sequence[M], with_context: WithContext[M], *, batch: bool) -> Iterator[Sequence[M]]:
    """See `worker.tracing.sending`."""
    queues = {message.queue_name for message in messages}
    said: dict[str, Any] = _operation("send", queues)
    said |= {"messaging.batch.message_count": len(messages)} if batch else _of_message(messages[0])
    links = [link for message in messages for link in _links(created_in(message.options))]
    # Of a span whose context no message has nobody is the consumer.
    kind = SpanKind.CLIENT if len(links) == len(messages) else SpanKind.PRODUCER
    name = _name("send", queues)
    with _tracer().start_as_current_span(
        name,
        kind=kind,
        attributes=said,
        links=links,
        record_exception=False,  # we do, without what must not be shown
        set_status_on_exception=False,
    ) as span:
        try:
            yield _with_context(messages, with_context)
        except Exception as exc:
            _record(span, exc)
            raise


def creating(message: M, with_context: WithContext[M], said: Mapping[str, str]) -> M:
    """See `worker.tracing.creating`."""
    queues = {message.queue_name}
    attributes = {**_operation("create", queues), **_of_message(message)}
    attributes |= {_OURS + name: value for name, value in said.items()}
    with _tracer().start_as_current_span(
        _name("create", queues), context=Context(), kind=SpanKind.PRODUCER, attributes=attributes
    ):
        [created] = _with_context([message], with_context)
        return created


class Run:
    """
    The span of a run: a child of the span that created its message, as long as it waited; without one, a root.

    Made where it begins, it is the current one until `end`.
    """

    def __init__(self, message: Traceable, *, queue: str, attempt: int, worker: str | None) -> None:
        created = created_in(message.options)
        said = {**_operation("process", {queue}), **_of_message(message), _OURS + "attempt": attempt}
        if worker is not None:
            said["messaging.client.id"] = worker
        # Whatever is current on this thread has nothing to do with it.
        parent = Context() if created is None else created
        self._span = _tracer().start_span(
            _name("process", {queue}), context=parent, kind=SpanKind.CONSUMER, attributes=said, links=_links(created)
        )
        self._token: Any = context.attach(trace.set_span_in_context(self._span))

    def end(self, outcome: str | None, error: BaseException | None) -> None:
        """
        It is over; called in the context in which it began.

        Args:
            outcome: done, retry, dead, released; lost, when the job was another worker's by then; None if not known.
            error: Why. What releases a job is none.
        """
        try:
            if outcome is not None:
                self._span.set_attribute(_OURS + "outcome", outcome)
            if error is not None and outcome != "released":
                _record(self._span, error)
            self._span.end()
        finally:
            context.detach(self._token)


def created_in(options: Mapping[str, Any]) -> Context | None:
    """The context among a message's *options*; None when there is none, or none that can be read."""
    carrier = options.get(OPTION)
    if not isinstance(carrier, dict):
        return None
    found = _PROPAGATOR.extract({str(name): str(value) for name, value in carrier.items()}, context=Context())
    return found if trace.get_current_span(found).get_span_context().is_valid else None


def _with_context(messages: Sequence[M], with_context: WithContext[M]) -> list[M]:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return [
        message if not carrier or OPTION in message.options else with_context(message, carrier) for message in messages
    ]


def _tracer() -> trace.Tracer:
    return trace.get_tracer(_SYSTEM)


def _name(operation: str, queues: set[str]) -> str:
    return " ".join([operation, *(queues if len(queues) == 1 else ())])


def _operation(kind: str, queues: set[str]) -> dict[str, Any]:
    said = {"messaging.system": _SYSTEM, "messaging.operation.name": kind, "messaging.operation.type": kind}
    return {**said, "messaging.destination.name": next(iter(queues))} if len(queues) == 1 else said


def _of_message(message: Traceable) -> dict[str, Any]:
    return {"messaging.message.id": message.message_id, _OURS + "actor": message.actor_name}


def _links(created: Context | None) -> list[Link]:
    return [] if created is None else [Link(trace.get_current_span(created).get_span_context())]


def _record(span: Span, error: BaseException) -> None:
    """Its traceback has lines of code, and no value of any variable."""
    kind = type(error)
    told = without_passwords(str(error))
    trail = without_passwords("".join(traceback.format_exception(error)))
    span.record_exception(error, {"exception.message": told, "exception.stacktrace": trail})
    span.set_attribute(
        "error.type", kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    )
    span.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {told}"))
