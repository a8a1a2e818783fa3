"""A checkout: a connection that is out of the pool, and who has had it since when and from where."""

from __future__ import annotations

import itertools
import sys
import threading
from asyncio import AbstractEventLoop, Task, current_task
from asyncio.events import _get_running_loop
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from weakref import ref

import psycopg_pool
from psycopg import sql
from psycopg.pq.abc import PGconn

from worker import clock
from worker.pool.connection import Connection
from worker.pool.mark import mark

# Set around each job, so that a checkout names the job and not just a thread of ours.
holder: ContextVar[str | None] = ContextVar("holder", default=None)

# How the running job's interrupts are put off for a moment, set by whoever may interrupt it. One that met the pool
# while it hands over a connection would lose that connection, or leave a lock taken for ever.
shield: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("shield", default=nullcontext)

_DEPTH = 4
_OURS = str(Path(__file__).parent)
_STDLIB = Path(threading.__file__).parent
_PLUMBING = (
    _OURS,
    str(Path(psycopg_pool.__file__).parent),
    str(_STDLIB / "contextlib.py"),
    str(_STDLIB / "threading.py"),
    str(_STDLIB / "asyncio"),
)
_SHOWN = 200


class Checkout:
    """
    A connection that is out of the pool; made when it is asked for, given when it is there.

    It holds the connection weakly, so that one which its user dropped is noticed, and the session behind it strongly,
    so that it can still be ended.
    """

    __slots__ = (
        "_conn", "_view", "holder", "lock", "loop", "mark", "pgconn", "since", "spans_job", "statement", "task",
        "thread", "thread_id", "warned", "where",
    )  # fmt: skip

    def __init__(self) -> None:
        self.holder = holder.get()
        self.mark = mark.get()
        self.thread = threading.current_thread()
        self.thread_id = self.thread.ident
        self.loop: AbstractEventLoop | None = _get_running_loop()
        self.task: Task[Any] | None = None if self.loop is None else current_task(self.loop)
        # Code and place only: keeping frames would keep the job's local variables alive.
        self.where = _callers()
        self.since = clock.monotonic()
        # Held to cancel its statement and to end it: a cancel must never meet the statement of the next holder.
        self.lock = threading.Lock()
        self.statement: object = None
        self.spans_job = False
        """Whether it is the job's own, returned only when all of the job is over."""
        self.warned = False
        self.pgconn: PGconn | None = None
        self._conn: ref[Connection] | None = None
        self._view: ref[object] | None = None

    def give_view(self, view: object) -> None:
        """It was given out as *view*: who drops that has dropped it, although others may still know the connection."""
        self._view = ref(view)

    @property
    def conn(self) -> Connection | None:
        """The connection; None when its user has dropped it."""
        return None if self._conn is None else self._conn()

    def used_here(self) -> None:
        """Whoever calls this has it now: a connection may be handed on, and must not be taken from its new user."""
        self.thread = threading.current_thread()
        self.thread_id = self.thread.ident
        loop = _get_running_loop()
        # A thread may as well be at work for the loop that has it.
        if loop is not None or self.loop is None or self.loop.is_closed():
            self.loop = loop
            self.task = None if loop is None else current_task(loop)

    @property
    def age(self) -> float:
        """Seconds since it was taken."""
        return clock.monotonic() - self.since

    @property
    def flow(self) -> object:
        """What waits when this one's user waits: a task, or a thread."""
        return self.task or self.thread

    @property
    def who(self) -> str:
        """The job, task or thread that has it."""
        if self.holder:
            return self.holder
        return f"task {self.task.get_name()}" if self.task else f"thread {self.thread.name}"

    @property
    def taken_at(self) -> str:
        """The place in the code, innermost first."""
        return " < ".join(
            f"{Path(code.co_filename).name}:{_line(code, place)} {code.co_name}" for code, place in self.where
        )

    @property
    def last_statement(self) -> str | None:
        """What was last run on it, without its parameters; None when nothing was."""
        if self.statement is None:
            return None
        try:
            text = " ".join(_text(self.statement).split())
        except Exception as exc:
            # Whatever its user has put together: what is shown of a leak must not keep it from being ended.
            text = f"<cannot be shown: {type(exc).__name__}>"
        # Nor must what no text may hold keep it from being told to the database: a NUL, half a character.
        shown = "".join(character if character.isprintable() else "\ufffd" for character in text[:_SHOWN])
        return shown if len(text) <= _SHOWN else f"{shown}..."

    @property
    def is_looped(self) -> bool:
        """Whether coroutines of a loop that is not closed may be in the middle of using it."""
        return not self._is_dropped and self.loop is not None and not self.loop.is_closed()

    @property
    def _is_dropped(self) -> bool:
        return self.conn is None or (self._view is not None and self._view() is None)

    def abandoned(self) -> str | None:
        """Why nobody will return it any more; None as long as somebody may."""
        if self._is_dropped:
            return "its connection was dropped without being returned"
        if self.loop is not None:
            if self.loop.is_closed():
                return "its event loop is closed"
            return None if self.thread.is_alive() or self.loop.is_running() else "the thread of its event loop is dead"
        return None if self.thread.is_alive() else "its thread is dead"

    def __str__(self) -> str:
        return f"{self.who} for {self.age:.1f} s, taken at {self.taken_at}"


class Checkouts:
    """The books: which connections are out. For any thread."""

    def __init__(self) -> None:
        self._out: dict[int, Checkout] = {}
        self._settling: dict[int, Checkout] = {}  # off the books, and not back in the pool or ended yet
        self._changed = threading.Condition()
        self._awaited = False

    def __len__(self) -> int:
        return len(self._out)

    def begin(self, checkout: Checkout, conn: Connection) -> None:
        """*conn* is out."""
        checkout.pgconn = conn.pgconn
        checkout._conn = ref(conn)
        conn.checkout = checkout
        self._out[id(checkout)] = checkout

    def end(self, checkout: Checkout, *, revoking: bool = False) -> bool:
        """
        Take *checkout* off the books; False when it was off already. Who does calls `settled` afterwards.

        Args:
            revoking: Its user does not know, and may still return it: then that is let pass.
        """
        with checkout.lock:
            if id(checkout) not in self._out:
                return False
            self._settling[id(checkout)] = checkout
            del self._out[id(checkout)]
            if (conn := checkout.conn) is not None:
                conn.revoked |= revoking
                conn.checkout = None
        return True

    def settled(self, checkout: Checkout) -> None:
        """Its connection is back in the pool, or its session has ended."""
        self._settling.pop(id(checkout), None)
        if self._awaited:
            with self._changed:
                self._changed.notify_all()

    def wait_until_none(self, timeout: float) -> bool:
        """Wait for all to come back, and to be back in the pool or ended; whether they did."""
        self._awaited = True
        with self._changed:
            return self._changed.wait_for(lambda: not (self._out or self._settling), timeout)

    def listed(self) -> list[Checkout]:
        """All that are out, longest first."""
        return sorted(self._out.copy().values(), key=lambda checkout: checkout.since)

    def held_by(self, who: str) -> list[Checkout]:
        """Those of the job *who*."""
        # Asked at the end of each job, of which most have none.
        return [checkout for checkout in list(self._out.values()) if checkout.holder == who] if self._out else []

    def holds(self, checkout: Checkout) -> bool:
        """Whether *checkout* is still out."""
        return id(checkout) in self._out


def _text(query: object) -> str:
    """*query* without its values, which may be anybody's data."""
    if isinstance(query, sql.Composed):
        return "".join(_text(part) for part in query)
    if isinstance(query, sql.Literal):
        return "..."
    if isinstance(query, sql.Composable):
        return query.as_string(None)
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query)


def _line(code: CodeType, place: int) -> int | None:
    """The line of the instruction at *place*, which counts bytes; an instruction has two."""
    return next(itertools.islice(code.co_positions(), place // 2, None), (None,))[0]


def _callers() -> tuple[tuple[CodeType, int], ...]:
    callers: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(callers) < _DEPTH:
        code = frame.f_code
        # By its file, because the hash of a string is kept and that of code is not.
        if not _is_plumbing(code.co_filename):
            callers.append((code, frame.f_lasti))  # the line is looked up by who wants to read it
        frame = frame.f_back
    return tuple(callers)


@lru_cache(4096)
def _is_plumbing(filename: str) -> bool:
    return filename.startswith(_PLUMBING)
