"""What a person sees meanwhile, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from worker.cli.demo.watch import Counts

LINE_EVERY = 2.0
RECENT = 10.0  # seconds over which the rate is taken


class Display:
    """
    The progress towards *files*.

    Args:
        max_sessions: The most connections the worker may hold.
    """

    def __init__(self, files: int, *, max_sessions: int) -> None:
        self._files = files
        self._max_sessions = max_sessions
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} files"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=files, words="")
        self._started_at = time.monotonic()
        self._next_line_at = self._started_at + LINE_EVERY
        self._seen: deque[tuple[float, int]] = deque([(self._started_at, 0)])

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Counts, sessions: int) -> None:
        """How far it is."""
        now = time.monotonic()
        rate = self._rate(now, counts.files)
        words = f"{rate:,.0f} files/s, {counts.waiting:,} jobs waiting, {sessions}/{self._max_sessions} connections"
        if rate > 0 and counts.files < self._files:
            words += f", about {(self._files - counts.files) / rate:,.0f} s left"
        if self._console.is_terminal:
            self._progress.update(self._task, completed=counts.files, words=words)
        elif now >= self._next_line_at:
            self._next_line_at = now + LINE_EVERY
            self.say(f"{now - self._started_at:6.1f} s  {counts.files:,} of {self._files:,} files, {words}")

    def _rate(self, now: float, files: int) -> float:
        """Files a second, lately."""
        self._seen.append((now, files))
        while self._seen[0][0] < now - RECENT:
            self._seen.popleft()
        then, before = self._seen[0]
        return (files - before) / (now - then) if now > then else 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()
