"""Stacks: where a body is at this moment, for those who wonder why it does not end."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import traceback
from types import CoroutineType, FrameType
from typing import Any

_LINES = 30
# What asyncio's own loops call each step of a task, and each callback, by.
_STEP = asyncio.Handle._run.__code__


def stack_of_thread(ident: int | None) -> str:
    """The Python stack of a running thread, innermost last."""
    frame = sys._current_frames().get(ident or 0)
    return "".join(traceback.format_stack(frame, limit=-_LINES)) if frame is not None else "(it has ended)"


def stack_of_task(task: asyncio.Task[Any], loop_thread: int | None) -> str:
    """Where *task* waits; where its loop's thread is when it does not wait but keeps the loop."""
    frames: list[FrameType] = []
    waiting: Any = task.get_coro()
    while isinstance(waiting, CoroutineType) and waiting.cr_frame is not None:
        if waiting.cr_running:
            return stack_of_thread(loop_thread)
        frames.append(waiting.cr_frame)
        waiting = waiting.cr_await
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames[-_LINES:])
    return "".join(summary.format())


def context_in_loop(ident: int | None) -> contextvars.Context | None:
    """
    The context of the step that a thread's event loop is at; None when it is at none, or the loop is a foreign one.

    Tasks and callbacks that a job has made have the job's; `asyncio.current_task` would not lead there.
    """
    frame = sys._current_frames().get(ident or 0)
    while frame is not None and frame.f_code is not _STEP:
        frame = frame.f_back
    if frame is None:
        return None
    # There is no public way to it before Python 3.12, and then only for tasks.
    context: contextvars.Context | None = getattr(frame.f_locals.get("self"), "_context", None)
    return context
