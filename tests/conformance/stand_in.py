"""What Dramatiq's tests get in place of its StubBroker: our broker, with the few extras that tests ask of a stub."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, LiteralString

import psycopg
from dramatiq import Message, MessageProxy, Middleware
from dramatiq.brokers.stub import _StubMessageProxy
from dramatiq.middleware import default_middleware

from worker import PostgresBroker

# Set by the program before it starts pytest: a migrated database, empty between tests.
database_url = ""

# For a join that Dramatiq's tests give no limit: rather one failure than a run that hangs.
_PATIENCE_MS = 20_000


class StandInBroker(PostgresBroker):
    """
    Our broker under StubBroker's name and signature.

    Adds only what lies outside the broker contract: dead letters in memory, a `join` that raises what a dead job
    raised, and queues that a test can reach into.
    """

    def __init__(self, middleware: list[Middleware] | None = None, *, fail_fast_default: bool = True) -> None:
        # Some of the tests are about what is missing without a result backend, which ours brings.
        dramatiqs = [make() for make in default_middleware] if middleware is None else middleware
        super().__init__(database_url, middleware=dramatiqs)
        self.fail_fast_default = fail_fast_default
        self.dead_letters_by_queue: defaultdict[str, list[MessageProxy]] = defaultdict(list)
        self.queues = StandInQueues(self)

    @property
    def dead_letters(self) -> list[MessageProxy]:
        return [dead for queue in self.dead_letters_by_queue.values() for dead in queue]

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        # Dramatiq takes the exception from the proxy when it is settled; tests that look for leaks patch the stub's
        # proxy not to keep it, and mean us too.
        if signal == "nack" and _StubMessageProxy.clear_exception is not MessageProxy.clear_exception:
            kept = MessageProxy(args[0]._message)
            kept._exception = args[0]._exception
            self.dead_letters_by_queue[kept.queue_name].append(kept)
        super().emit_before(signal, *args, **kwargs)

    def flush_all(self) -> None:
        super().flush_all()
        self.dead_letters_by_queue.clear()

    def join(self, queue_name: str, *, timeout: int | None = None, fail_fast: bool | None = None) -> None:
        super().join(queue_name, timeout=timeout or _PATIENCE_MS)
        if self.fail_fast_default if fail_fast is None else fail_fast:
            for dead in self.dead_letters_by_queue[queue_name]:
                raise dead._exception or Exception("Message failed with unknown error") from None


class StandInQueues(set[str]):
    """The names of the declared queues, as our broker keeps them; by name also what waits in one."""

    def __init__(self, broker: StandInBroker) -> None:
        super().__init__()
        self._broker = broker

    def __getitem__(self, name: str) -> StandInQueue:
        if name not in self:
            raise KeyError(name)
        return StandInQueue(self._broker, name)


class StandInQueue:
    """What waits in one queue, as encoded messages."""

    def __init__(self, broker: StandInBroker, name: str) -> None:
        self._broker = broker
        self._name = name

    def put(self, encoded: bytes) -> None:
        self._broker.enqueue(Message.decode(encoded))

    def get(self, timeout: float) -> bytes:
        return bytes(self._jobs("SELECT message FROM worker.job WHERE queue = %s")[0][0])

    def qsize(self) -> int:
        """How many wait for a worker: those that one has claimed are in its memory."""
        return len(self._jobs("SELECT id FROM worker.job WHERE queue = %s AND state = 'available'"))

    @property
    def unfinished_tasks(self) -> int:
        return len(self._jobs("SELECT id FROM worker.job WHERE queue = %s"))

    def _jobs(self, statement: LiteralString) -> list[tuple[Any, ...]]:
        with psycopg.connect(database_url) as conn:
            return conn.execute(statement, [self._name]).fetchall()
