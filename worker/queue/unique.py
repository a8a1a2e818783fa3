"""Unique keys: which jobs are the same, for how long, and what a send of another one does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import msgspec

from worker.errors import ArgumentError
from worker.queue.keys import are_words

Scope = Literal["queued", "running"] | timedelta
Conflict = Literal["skip", "replace", "debounce"]

_SCOPES = ("queued", "running")
_CONFLICTS = ("skip", "replace", "debounce")
MAX_KEY = 500
# Longer ones made of arguments become a digest; shorter ones stay readable in the table.
_READABLE = 200


@dataclass(frozen=True)
class Unique:
    """
    At most one job of an actor with the same key.

    Args:
        key: What makes two sends the same; the arguments when None.
        by: Names of the arguments that count, instead of all.
        scope: How long the key is held: while the job is "queued" (waits, also for a retry), while it is queued or
            "running", or for a timedelta from the send, whatever becomes of the job.
        on_conflict: What a send does that meets a job with its key. "skip": nothing. "replace": gives the waiting job
            the new arguments and options; it keeps its place. "debounce": the same, and it waits anew for the new
            delay. A job that runs already, or has run within the window, is never changed: then it is a skip.

    Raises:
        ArgumentError: A value cannot work; says which and what was expected.
    """

    key: str | None = None
    by: Sequence[str] | None = None
    scope: Scope = "queued"
    on_conflict: Conflict = "skip"

    def __post_init__(self) -> None:
        if self.key is not None:
            _check_key(self.key)
        if self.key is not None and self.by is not None:
            raise ArgumentError(f"unique key {self.key!r}: give a key, or by={self.by!r}, not both")
        if self.by is not None and not are_words(self.by):
            raise ArgumentError(f"unique by={self.by!r}: expected a list of names of arguments")
        if isinstance(self.scope, timedelta):
            if self.scope <= timedelta(0):
                raise ArgumentError(f"unique scope={self.scope!r}: expected a timedelta of more than nothing")
        elif self.scope not in _SCOPES:
            raise ArgumentError(f"unique scope={self.scope!r}: expected 'queued', 'running' or a timedelta")
        if self.on_conflict not in _CONFLICTS:
            raise ArgumentError(f"unique on_conflict={self.on_conflict!r}: expected one of {', '.join(_CONFLICTS)}")

    @classmethod
    def read(cls, value: object) -> Unique | None:
        """
        What stands behind `unique=`: a Unique, a key, True for the arguments; None and False for none.

        Raises:
            ArgumentError: It is something else.
        """
        if value is None or value is False:
            return None
        if isinstance(value, Unique):
            return value
        if value is True:
            return cls()
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping):
            return cls._of_options(value)
        raise ArgumentError(f"unique={value!r}: expected a key, a worker.Unique, or True for one made of the arguments")

    @property
    def as_options(self) -> dict[str, Any]:
        """As it travels among the options of a message that is not enqueued yet, which are plain JSON."""
        window = isinstance(self.scope, timedelta)
        return {
            "key": self.key,
            "by": None if self.by is None else list(self.by),
            "scope": self.scope.total_seconds() if isinstance(self.scope, timedelta) else self.scope,
            "window": window,
            "on_conflict": self.on_conflict,
        }

    @classmethod
    def _of_options(cls, options: Mapping[str, Any]) -> Unique:
        given = dict(options)
        if given.pop("window", False):
            given["scope"] = timedelta(seconds=given["scope"])
        try:
            return cls(**given)
        except TypeError as exc:
            raise ArgumentError(f"unique={dict(options)!r}: {exc}") from None

    def holding(self, args: str | None) -> JobKey:
        """
        The key of a job with *args*, a JSON object.

        Raises:
            ArgumentError: It is made of arguments, and there are none by name.
        """
        key = self.key or self._of_arguments(args)
        if isinstance(self.scope, timedelta):
            return JobKey(key, "window", self.scope.total_seconds(), self.on_conflict)
        return JobKey(key, self.scope, None, self.on_conflict)

    def _of_arguments(self, args: str | None) -> str:
        if args is None:
            raise ArgumentError("unique: a plain actor's arguments have no names to make a key of: give a key")
        given = msgspec.json.decode(args)
        if self.by is not None:
            given = {name: given.get(name) for name in self.by}
        text = msgspec.json.encode(given, order="deterministic").decode()
        if len(text) <= _READABLE:
            return text
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class JobKey(NamedTuple):
    """The unique key of one job; *window* in seconds, for the scope of that name."""

    key: str
    scope: str
    window: float | None
    on_conflict: str


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not key:
        raise ArgumentError(f"unique key {key!r}: expected text")
    if len(key) > MAX_KEY:
        raise ArgumentError(
            f"unique key {key[:20]!r}...: it has {len(key)} characters, expected at most {MAX_KEY}: send a digest of it"
        )
    if "\0" in key or (not key.isprintable() and "\ud800" <= max(key) <= "\udfff"):
        raise ArgumentError(f"unique key {key!r}: it holds a character that Postgres cannot store")
