"""The declaration of a job: what `@job` may say, in our words or in Dramatiq's, and what of it cannot work."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dramatiq import Actor

from worker.errors import ConfigError
from worker.queue.keys import are_words
from worker.queue.limit import Limit
from worker.queue.rate import Rate
from worker.queue.send_options import MAX_PRIORITY

# As Dramatiq has it.
_QUEUE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")
_FOLLOWERS = ("on_success", "on_failure", "on_retry_exhausted")


def check_values(name: str | None, queue: str, priority: int, timeout: float | None) -> None:
    """
    Refuse what every job has, where it cannot work.

    Raises:
        ConfigError: Says which and what was expected.
    """
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise ConfigError(f"job timeout {timeout!r}: expected more than 0 seconds, or None for no limit")
    if not (isinstance(priority, int) and -MAX_PRIORITY <= priority <= MAX_PRIORITY):
        raise ConfigError(f"job priority {priority!r}: expected a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    if not (isinstance(queue, str) and _QUEUE_NAME.fullmatch(queue)):
        raise ConfigError(
            f"job queue {queue!r}: expected a letter or an underscore, then letters, digits, dots, dashes or"
            " underscores"
        )
    if name is not None and not (isinstance(name, str) and name and "\0" not in name):
        raise ConfigError(f"job name {name!r}: expected text")


def check_kinds(options: Mapping[str, Any]) -> None:
    """
    Refuse an option of another kind than it must be, which would only be noticed when a job runs.

    Raises:
        ConfigError: Says which and what was expected.
    """
    for option, value in options.items():
        if option in _KINDS and value is not None:
            is_right, expected = _KINDS[option]
            if not is_right(value):
                raise ConfigError(f"job {option} {value!r}: expected {expected}")


def with_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """*options* with the names of the actors in them, by which Dramatiq looks for these when a job has ended."""
    return {
        option: value.actor_name if option in _FOLLOWERS and isinstance(value, Actor) else value
        for option, value in options.items()
    }


def by_dramatiqs_names(
    name: str | None, queue: str, timeout: float | None, options: dict[str, Any]
) -> tuple[str | None, str, float | None]:
    """
    Take those of *options* that Dramatiq calls otherwise than we do.

    Raises:
        ConfigError: One was given by both names, or cannot be given.
    """
    if "actor_class" in options:
        raise ConfigError(
            f"job option actor_class={options['actor_class']!r}: @job makes a class of its own; an actor of another"
            " class is declared by @dramatiq.actor, and runs beside the jobs"
        )
    limit_ms = options.pop("time_limit", None)
    if limit_ms is not None and not (isinstance(limit_ms, int | float) and limit_ms > 0):
        raise ConfigError(f"job time_limit {limit_ms!r}: expected more than 0 milliseconds, or say timeout= in seconds")
    limit = None if limit_ms is None or limit_ms == float("inf") else limit_ms / 1000
    return (
        _either("name", name, None, "actor_name", options.pop("actor_name", None)),
        _either("queue", queue, "default", "queue_name", options.pop("queue_name", None)),
        timeout if limit_ms is None else _either("timeout", timeout, 600.0, "time_limit", limit),
    )


def _either(ours: str, value: Any, default: Any, dramatiqs: str, given: Any) -> Any:
    """*value* of the option that we call *ours*, or the one *given* by Dramatiq's name of it."""
    if given is None and ours != "timeout":
        return value
    if value not in (default, given):
        raise ConfigError(
            f"job option {dramatiqs}: it is Dramatiq's name of {ours}=, which is {value!r} already: keep one of them"
        )
    return given


def _are_renamings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)


def _are_errors(value: Any) -> bool:
    try:
        isinstance(Exception(), value)  # as Dramatiq asks when a job has failed
    except TypeError:
        return False
    return True


def _is_actor(value: Any) -> bool:
    return isinstance(value, str | Actor)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "limit": (lambda value: isinstance(value, Limit), "a worker.Limit, such as Limit(5)"),
    "rate": (lambda value: isinstance(value, Rate), "a worker.Rate, such as Rate(10, per=60)"),
    "aliases": (_are_renamings, "names by names, as {'old': 'new'}"),
    "former_names": (are_words, "a list of names, as ['old']"),
    "transaction": (_is_flag, "True, or False for a connection that commits each statement"),
    "store_results": (_is_flag, "True or False"),
    "retry_when": (callable, "a function of the number of retries and the exception"),
    "throws": (_are_errors, "an exception class, or a tuple of some"),
    **dict.fromkeys(_FOLLOWERS, (_is_actor, "a job or its name")),
}
