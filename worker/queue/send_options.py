"""The options of a send: their names, what each may be, and how they travel with a message."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from worker.errors import ArgumentError
from worker.queue.unique import Unique

MAX_PRIORITY = 1_000_000
MAX_DELAY = 100 * 366 * 86400.0
_MAX_TAG = 100
_MAX_TAGS = 20

# Become columns of the job's row or rows beside it, instead of options that a run is told.
OF_THE_ROW = ("eta", "priority", "tags", "unique")
_OURS = ("args", "kwargs", "delay", "at", "priority", "tags", "unique", "connection", "timeout")
_NUMBERS = {"max_retries", "min_backoff", "max_backoff", "max_age", "time_limit", "result_ttl"}
# What Dramatiq's parts tell each other, and a schedule its jobs.
_OF_MESSAGES = (
    "schedule",
    "scheduled_for",
    "eta",
    "pipe_target",
    "pipe_ignore",
    "group_completion_uuid",
    "group_completion_callbacks",
)


def prepare(actor: str, options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """
    *options* of a send to *actor* as its message holds them: checked, and plain JSON where they are ours.

    Args:
        known: The names that the broker's middleware knows.

    Raises:
        ArgumentError: One is unknown, or its value cannot work; says which and what was expected.
    """
    for name in options:
        if name not in known and name not in _OURS and name not in _OF_MESSAGES:
            raise ArgumentError(f"job {actor!r}: option {name!r} is unknown{_nearest(name, {*known, *_OURS})}")
    check_numbers(actor, options)
    prepared = {name: value for name, value in options.items() if name not in _OURS}
    if (delay := options.get("delay")) is not None:
        check_delay(actor, delay)
        prepared["delay"] = milliseconds(delay)  # of the next step of a pipeline
    if (at := options.get("at")) is not None:
        prepared["eta"] = math.ceil(_instant(actor, at).timestamp() * 1000)
    if (priority := options.get("priority")) is not None:
        prepared["priority"] = check_priority(actor, priority)
    if (tags := options.get("tags")) is not None:
        prepared["tags"] = list(check_tags(actor, tags))
    if (timeout := options.get("timeout")) is not None:
        prepared["time_limit"] = _seconds(actor, "timeout", timeout) * 1000
    if (unique := options.get("unique")) is not None:
        chosen = read_unique(actor, unique)
        prepared["unique"] = chosen.as_options if chosen else False
    return prepared


def check_numbers(actor: str, options: Mapping[str, Any]) -> None:
    """
    Refuse numbers of Dramatiq's middleware that are none, of a send or a declaration: else each run would meet them.

    Raises:
        ArgumentError: Says which and what was expected.
    """
    for name in _NUMBERS & options.keys():
        value = options[name]
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0):
            continue
        expected = "a whole number" if name == "max_retries" else "a number of milliseconds"
        raise ArgumentError(f"job {actor!r}: {name}={value!r}: expected {expected}, 0 or more, or None")


def milliseconds(delay: timedelta | float | None) -> Any:
    """*delay* as Dramatiq counts; a timedelta of less than one is still a delay."""
    return math.ceil(delay / timedelta(milliseconds=1)) if isinstance(delay, timedelta) else delay


def check_delay(actor: str, delay: object) -> None:
    """Refuse what is no delay, while its sender can still be told."""
    if isinstance(delay, timedelta):
        good = delay >= timedelta(0)
    else:
        good = isinstance(delay, int | float) and not isinstance(delay, bool) and delay >= 0
    if not good:
        raise ArgumentError(
            f"job {actor!r}: delay={delay!r}: expected milliseconds from now, 0 or more, or a timedelta"
        )


def check_priority(actor: str, priority: object) -> int:
    """*priority* of a send."""
    if isinstance(priority, int) and not isinstance(priority, bool) and abs(priority) <= MAX_PRIORITY:
        return priority
    raise ArgumentError(
        f"job {actor!r}: priority={priority!r}: expected a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
    )


def check_tags(actor: str, tags: object) -> tuple[str, ...]:
    """*tags* of a send, each once."""
    good = isinstance(tags, Collection) and not isinstance(tags, str | bytes | Mapping) and len(tags) <= _MAX_TAGS
    if not good:
        raise ArgumentError(f"job {actor!r}: tags={tags!r:.200}: expected a list of at most {_MAX_TAGS} words")
    assert isinstance(tags, Collection)  # noqa: S101  # looked at above
    for tag in tags:
        if not isinstance(tag, str) or not 1 <= len(tag) <= _MAX_TAG or not tag.isprintable():
            raise ArgumentError(
                f"job {actor!r}: tag {tag!r:.200}: expected text of 1 to {_MAX_TAG} printable characters"
            )
    return tuple(dict.fromkeys(tags))


def read_unique(actor: str, unique: object) -> Unique | None:
    """What stands behind `unique=` of a send or a declaration."""
    try:
        return Unique.read(unique)
    except ArgumentError as exc:
        raise ArgumentError(f"job {actor!r}: {exc}") from None


def _instant(actor: str, at: object) -> datetime:
    if not isinstance(at, datetime):
        raise ArgumentError(f"job {actor!r}: at={at!r}: expected an aware datetime; for a pause from now, delay=")
    if at.tzinfo is None or at.utcoffset() is None:
        raise ArgumentError(
            f"job {actor!r}: at={at!r} is naive, so it is not known which instant it means: expected one with a time"
            " zone, such as datetime.now(UTC) or datetime(..., tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    return at


def _seconds(actor: str, name: str, value: object) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return value
    raise ArgumentError(f"job {actor!r}: {name}={value!r}: expected more than 0 seconds")


def _nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {near[0]!r}?" if near else f": expected some of {', '.join(sorted(names))}"
