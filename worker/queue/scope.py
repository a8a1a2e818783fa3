"""The scope: what a run has borrowed, and how each of it is given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any


class Scope:
    """A small ExitStack, which knows nothing of exceptions: that one costs as much as a short job's body."""

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def callback(self, undo: Callable[..., object], *args: Any) -> None:
        """Call *undo* with *args* at the end."""
        self._undo.append((undo, args))

    def enter(self, context: AbstractContextManager[object]) -> None:
        """Be in *context* until the end."""
        context.__enter__()
        self._undo.append((context.__exit__, (None, None, None)))

    def close(self) -> None:
        """Give back, the last first; what raises keeps none of the others. Twice is harmless."""
        try:
            while self._undo:
                undo, args = self._undo.pop()
                undo(*args)
        finally:
            if self._undo:
                self.close()
