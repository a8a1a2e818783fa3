"""OpenTelemetry sees each send and each run, and what belongs together; without a provider it is not imported."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq import pipeline
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from psycopg import AsyncConnection, Connection
from structlog.testing import capture_logs

from tests.factories import column
from tests.running import WAIT, RunningWorker, attempts, outcome
from tests.waiting import wait_until
from worker import ArgumentError, Context, PostgresBroker, bind, job, secrecy, tracing
from worker.schedule.declaration import Schedule
from worker.schedule.sending import Firing, send
from worker.schedule.trigger import Every


class Spans:
    """What was recorded, oldest end first."""

    def __init__(self, exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
        self._exporter = exporter
        self.tracer = provider.get_tracer("application")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def wait(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """The spans of this name, when there are *count*: a run's ends after its outcome can be seen."""
        wait_until(lambda: len(self.named(name)) >= count, WAIT, f"{count} spans {name!r}")
        return self.named(name)

    def one(self, name: str) -> ReadableSpan:
        [span] = self.wait(name)
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # an application's can be set only once
    yield Spans(exporter, provider)
    provider.shutdown()


def context_of(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.parent.span_id == context_of(of).span_id
        and context_of(span).trace_id == context_of(of).trace_id
    )


def said(span: ReadableSpan, *names: str) -> list[Any]:
    return [(span.attributes or {}).get(f"messaging.{name}") for name in names]


@pytest.fixture
def nothing(broker: PostgresBroker) -> Any:
    @job(broker=broker, queue="billing")
    def nothing(number: int = 0) -> None: ...

    return nothing


def test_a_run_is_a_child_of_its_send_in_the_senders_trace(
    spans: Spans, nothing: Any, worker: RunningWorker, db: psycopg.Connection
) -> None:
    with spans.tracer.start_as_current_span("request"):
        sent = nothing.send()

    outcome(db, sent)
    run, send, request = spans.one("process billing"), spans.one("send billing"), spans.one("request")
    assert is_child(send, request)
    assert is_child(run, send)
    assert [link.context.span_id for link in run.links] == [context_of(send).span_id]


def test_both_say_what_the_conventions_ask_for(
    spans: Spans, nothing: Any, worker: RunningWorker, db: psycopg.Connection
) -> None:
    sent = nothing.send(41)

    outcome(db, sent)
    run, send = spans.one("process billing"), spans.one("send billing")
    assert (run.kind, send.kind) == (SpanKind.CONSUMER, SpanKind.PRODUCER)
    assert dict(send.attributes or {}) == {
        "messaging.system": "carpool",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "billing",
        "messaging.message.id": sent.message_id,
        "messaging.carpool.actor": "nothing",
    }
    assert dict(run.attributes or {}) == {
        "messaging.system": "carpool",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "billing",
        "messaging.message.id": sent.message_id,
        "messaging.client.id": str(worker.dispatcher.lease.worker_id),
        "messaging.carpool.actor": "nothing",
        "messaging.carpool.attempt": 1,
        "messaging.carpool.outcome": "done",
    }


@pytest.mark.parametrize("kind", ["plain", "connected", "coroutine", "connected coroutine", "actor"])
def test_what_a_job_does_and_sends_belongs_to_its_run(
    kind: str, spans: Spans, nothing: Any, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    def work() -> None:
        with spans.tracer.start_as_current_span("work"):
            nothing.send()

    @job(broker=broker)
    def plain() -> None:
        work()

    @job(broker=broker)
    def connected(conn: Connection) -> None:
        work()

    @job(broker=broker)
    async def coroutine() -> None:
        with spans.tracer.start_as_current_span("work"):
            await nothing.send_async()

    @job(broker=broker)
    async def connected_coroutine(conn: AsyncConnection) -> None:
        await asyncio.to_thread(work)

    @dramatiq.actor(broker=broker)
    def actor() -> None:
        work()

    actors: dict[str, Any] = {
        "plain": plain, "connected": connected, "coroutine": coroutine, "connected coroutine": connected_coroutine,
        "actor": actor,
    }  # fmt: skip

    actors[kind].send()

    run, sent, second = spans.one("process default"), spans.one("send billing"), spans.one("process billing")
    assert is_child(run, spans.one("send default"))
    assert is_child(spans.one("work"), run)
    assert is_child(sent, spans.one("work"))
    assert is_child(second, sent)


def test_dramatiqs_own_worker_has_the_same_runs(spans: Spans, database: str, db: psycopg.Connection) -> None:
    broker = PostgresBroker(database, schema="worker")

    @dramatiq.actor(broker=broker, max_retries=0)
    def work(well: bool) -> None:
        with spans.tracer.start_as_current_span("work"):
            assert well

    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    try:
        sent = [work.send(True), work.send(False)]
        runs = {run.attributes["messaging.message.id"]: run for run in spans.wait("process default", 2)}  # type: ignore[index]
    finally:
        worker.stop()
        broker.close()

    assert [said(runs[each.message_id], "carpool.outcome") for each in sent] == [["done"], ["dead"]]
    sends, works = spans.named("send default"), spans.named("work")
    assert {is_child(runs[each.message_id], send) for each, send in zip(sent, sends, strict=True)} == {True}
    assert sum(is_child(work, run) for work in works for run in runs.values()) == 2


def test_every_attempt_is_a_run_of_the_same_send_and_says_why_it_failed(
    spans: Spans, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, min_backoff=1, max_backoff=1, max_retries=1)
    def fail(word: str) -> None:
        raise LookupError("not there")

    assert outcome(db, fail.send("private")) == "dead"

    runs, send = spans.wait("process default", 2), spans.one("send default")
    assert sorted(said(run, "carpool.attempt", "carpool.outcome") for run in runs) == [[1, "retry"], [2, "dead"]]
    for run in runs:
        assert is_child(run, send)
        assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "LookupError: not there")
        assert (run.attributes or {})["error.type"] == "LookupError"
        [event] = run.events
        assert event.name == "exception"
        assert "private" not in str(event.attributes)


def test_a_snooze_is_no_error(
    spans: Spans, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def later(ctx: Context) -> None:
        ctx.snooze(3600)

    later.send()

    run = spans.one("process default")
    assert said(run, "carpool.outcome") == ["released"]
    assert (run.status.status_code, run.events) == (StatusCode.UNSET, ())


def test_an_error_is_recorded_without_passwords(
    spans: Spans, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker, max_retries=0)
    def fail() -> None:
        raise RuntimeError("postgresql://shop:hunter2@db/shop is away")

    fail.send()

    run = spans.one("process default")
    assert "hunter2" not in f"{run.status.description} {[event.attributes for event in run.events]}"
    assert secrecy.BLOT in str(run.status.description)


def test_a_job_whose_commit_finds_it_lost_says_so(
    spans: Spans, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    @job(broker=broker)
    def lose(conn: Connection, ctx: Context) -> None:
        db.execute("UPDATE worker.job SET token = token + 1 WHERE id = %s", [ctx.job_id])

    lose.send()

    assert said(spans.one("process default"), "carpool.outcome") == ["lost"]


def test_many_are_one_send_with_a_context_in_each(
    spans: Spans, nothing: Any, worker: RunningWorker, db: psycopg.Connection
) -> None:
    nothing.send_many([(1,), (2,), (3,)])

    runs, send = spans.wait("process billing", 3), spans.one("send billing")
    assert said(send, "batch.message_count", "message.id") == [3, None]
    assert [is_child(run, send) for run in runs] == [True] * 3


def test_a_send_in_the_senders_own_transaction_carries_its_context(
    spans: Spans, nothing: Any, worker: RunningWorker, database: str
) -> None:
    with psycopg.connect(database) as conn, bind(conn):
        nothing.send()

    assert is_child(spans.one("process billing"), spans.one("send billing"))


def test_the_next_of_a_pipeline_is_sent_by_the_run_before(
    spans: Spans, nothing: Any, broker: PostgresBroker, worker: RunningWorker
) -> None:
    @job(broker=broker)
    def one() -> int:
        return 1

    pipeline([one.message(), nothing.message()], broker=broker).run()

    assert is_child(spans.one("send billing"), spans.one("process default"))
    assert is_child(spans.one("process billing"), spans.one("send billing"))


def test_a_tick_is_a_trace_of_its_own(spans: Spans, nothing: Any, worker: RunningWorker, database: str) -> None:
    tick = datetime(2026, 11, 30, 3, tzinfo=UTC)
    firings = [
        Firing(Schedule(name, "every 60 seconds", "UTC", "last", "allow", 0.0, Every(60), nothing, "a test"), tick)
        for name in ("sweep", "report")
    ]
    with psycopg.connect(database) as conn:
        send(conn, firings)

    runs, ticks = spans.wait("process billing", 2), spans.wait("create billing", 2)
    assert [said(span, "carpool.schedule", "carpool.tick") for span in ticks] == [
        ["sweep", tick.isoformat()],
        ["report", tick.isoformat()],
    ]
    for one in ticks:
        assert one.parent is None
        assert [is_child(run, one) for run in runs].count(True) == 1
    together = spans.one("send billing")
    assert (together.kind, {link.context.span_id for link in together.links}) == (
        SpanKind.CLIENT,
        {context_of(one).span_id for one in ticks},
    )


def test_a_job_that_plain_sql_has_sent_begins_a_trace(
    spans: Spans, nothing: Any, worker: RunningWorker, db: psycopg.Connection
) -> None:
    insert = "INSERT INTO worker.job (queue, actor, args) VALUES ('billing', 'nothing', '{}')"
    db.execute(insert)
    db.execute("NOTIFY worker")

    run = spans.one("process billing")
    assert (run.parent, run.links) == (None, ())


def test_a_context_that_cannot_be_read_begins_a_trace(spans: Spans, nothing: Any, worker: RunningWorker) -> None:
    broken: list[Any] = ["x", {"traceparent": 7}, {"traceparent": "00-nothing"}, None]
    for context in broken:
        nothing.broker.enqueue(nothing.message().copy(options={"trace": context}))

    assert [run.parent for run in spans.wait("process billing", len(broken))] == [None] * len(broken)


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
def test_a_provider_that_fails_spoils_no_job(
    spans: Spans, nothing: Any, worker: RunningWorker, db: psycopg.Connection, moment: str
) -> None:
    class Broken(SpanProcessor):
        def fail(self, span: Any, parent_context: Any = None) -> None:
            if span.kind is SpanKind.CONSUMER:
                raise RuntimeError("a bug")

    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    broken = Broken()
    setattr(broken, moment, broken.fail)
    provider.add_span_processor(broken)

    with capture_logs() as logs:
        assert [(outcome(db, each), attempts(db, each)) for each in (nothing.send(), nothing.send())] == [
            ("done", 1), ("done", 1),
        ]  # fmt: skip
        wait_until(lambda: worker.feed.idle.is_set(), WAIT, "the end of both")

    assert {each["event"] for each in logs if each["log_level"] in ("error", "critical")} == {"trace.failed"}


def test_a_send_that_fails_is_an_error(spans: Spans, nothing: Any) -> None:
    with pytest.raises(ArgumentError):
        nothing.send("no number")

    assert spans.one("send billing").status.status_code == StatusCode.ERROR


def test_the_same_message_sent_again_keeps_its_context(
    spans: Spans, nothing: Any, worker: RunningWorker, db: psycopg.Connection
) -> None:
    sent = nothing.send()
    outcome(db, sent)
    nothing.broker.enqueue(sent)

    runs, (first, second) = spans.wait("process billing", 2), spans.wait("send billing", 2)
    assert [is_child(run, first) for run in runs] == [True, True]
    assert second.kind == SpanKind.CLIENT
    assert [link.context.span_id for link in second.links] == [context_of(first).span_id]


def test_lines_of_the_log_tell_the_span(
    spans: Spans, broker: PostgresBroker, worker: RunningWorker, db: psycopg.Connection
) -> None:
    told: list[dict[str, str]] = []

    @job(broker=broker)
    def tell() -> None:
        told.append(tracing.ids())
        thread = threading.Thread(target=lambda: told.append(tracing.ids()))
        thread.start()
        thread.join()

    tell.send()

    run = context_of(spans.one("process default"))
    assert told == [{"trace_id": f"{run.trace_id:032x}", "span_id": f"{run.span_id:016x}"}, {}]
    assert tracing.ids() == {}


def test_the_context_lies_among_the_options_and_has_nothing_else(
    spans: Spans, nothing: Any, db: psycopg.Connection, database: str
) -> None:
    with psycopg.connect(database) as conn, bind(conn):
        nothing.send()

    [options] = column(db, "SELECT options FROM worker.job")
    assert [*options] == ["trace"]
    assert [*options["trace"]] == ["traceparent"]


def test_without_a_provider_nothing_is_added(nothing: Any, db: psycopg.Connection, database: str) -> None:
    with psycopg.connect(database) as conn, bind(conn):
        nothing.send()

    assert column(db, "SELECT options FROM worker.job") == [{}]


def test_opentelemetry_is_not_imported_by_us() -> None:
    program = (
        "import sys, worker, worker.runtime, worker.tracing as t; print(t.is_on(), 'opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)

    assert done.stdout.split() == ["False", "False"]
