"""How a job author declares a schedule: `@cron` or `@every` above `@job`, checked when the module is imported."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args
from zoneinfo import ZoneInfo, available_timezones

from dramatiq import Actor

from worker.errors import ConfigError
from worker.schedule.crontab import parse
from worker.schedule.trigger import Cron, Every, Trigger

Missed = Literal["skip", "last", "all"]
Overlap = Literal["allow", "skip", "queue_one"]
ActorT = TypeVar("ActorT", bound=Actor[Any, Any])

_MAX_GRACE = 3650 * 86400.0
_MAX_INTERVAL = 366 * 86400.0

_registry: dict[str, Schedule] = {}


class Terms(NamedTuple):
    """What the database keeps of a declaration: a process whose terms differ from the row's must not fire."""

    spec: str
    tz: str
    actor: str
    missed: str
    overlap: str
    grace: float


@dataclass(frozen=True)
class Schedule:
    """
    A name, a trigger and the actor to send at each tick.

    Attributes:
        spec: When it ticks, as written: `0 3 * * *` or `every 2 seconds`.
        tz: The zone whose wall clock *spec* means.
        missed: What becomes of ticks that nobody fired in time: `skip` them, fire the `last`, fire `all`.
        overlap: When the job of an earlier tick still lives: `allow` another, `skip` this tick, or `queue_one` behind.
        grace: Seconds after which a missed tick is not worth firing any more.
        place: File and line of the declaration, for messages.
    """

    name: str
    spec: str
    tz: str
    missed: Missed
    overlap: Overlap
    grace: float
    trigger: Trigger
    actor: Actor[Any, Any]
    place: str

    @property
    def terms(self) -> Terms:
        """What must equal the database's row for this process to fire."""
        return Terms(self.spec, self.tz, self.actor.actor_name, self.missed, self.overlap, self.grace)


def cron(
    text: str,
    *,
    tz: str = "UTC",
    missed: Missed = "last",
    overlap: Overlap = "skip",
    grace: float = 3600.0,
    name: str | None = None,
    seconds: bool = False,
) -> Callable[[ActorT], ActorT]:
    """
    Send the job below at every tick of the crontab *text*, read by the wall clock of *tz*.

    `missed="all"` sends one job per missed tick at once, so it wants `overlap="allow"`: else only the first one
    passes, and the ledger says `overlap` for the others.

    Args:
        text: Five fields (minute hour day month weekday) or a macro such as `@daily`; see `crontab.parse`.
        missed: Which ticks to make up for after a downtime: "skip" none, the "last", or "all".
        overlap: While the job of an earlier tick lives: "allow", "skip", or "queue_one" (one may wait behind it).
        grace: Seconds a missed tick stays worth firing. A lateness of a few seconds is not missed, whatever the grace.
        name: Names the schedule; the actor's name when None.
        seconds: *text* has a sixth field, the second, in front.

    Raises:
        ConfigError: Text, zone, policy, name or actor cannot work; or the name is taken. Raised at import.
    """
    place = _caller()

    def declare(actor: ActorT) -> ActorT:
        title = _title(actor, name, "cron", place)
        try:
            trigger = Cron(parse(text, seconds=seconds), _zone(tz))
        except ConfigError as exc:
            raise ConfigError(f"schedule {title!r}: {exc}, in {place}") from None
        spec = trigger.crontab.text
        _add(Schedule(title, spec, tz, missed, overlap, grace, trigger, actor, place))
        return actor

    return declare


def every(
    *,
    seconds: float = 0.0,
    minutes: float = 0.0,
    hours: float = 0.0,
    missed: Missed = "last",
    overlap: Overlap = "skip",
    grace: float = 3600.0,
    name: str | None = None,
) -> Callable[[ActorT], ActorT]:
    """
    Send the job below at whole multiples of an interval since 1970 (UTC), the same instants in every process.

    The interval is the sum of *seconds*, *minutes* and *hours*: at least 1 second, at most 366 days. The other
    arguments are those of `cron`.

    Raises:
        ConfigError: Interval, policy, name or actor cannot work; or the name is taken. Raised at import.
    """
    place = _caller()

    def declare(actor: ActorT) -> ActorT:
        title = _title(actor, name, "every", place)
        interval = _seconds(seconds, title, "seconds", place)
        interval += _seconds(minutes, title, "minutes", place) * 60
        interval += _seconds(hours, title, "hours", place) * 3600
        if not 1 <= interval <= _MAX_INTERVAL:
            raise ConfigError(
                f"schedule {title!r}: an interval of {interval:g} s, expected 1 second to 366 days"
                f" such as @every(minutes=5), in {place}"
            )
        number = int(interval) if interval.is_integer() else interval
        spec = f"every {number} second{'' if number == 1 else 's'}"
        _add(Schedule(title, spec, "UTC", missed, overlap, grace, Every(interval), actor, place))
        return actor

    return declare


def registered() -> tuple[Schedule, ...]:
    """Every schedule that the imported modules declared, in the order of their names."""
    return tuple(_registry[name] for name in sorted(_registry))


def _add(schedule: Schedule) -> None:
    _check_policy(schedule, "missed", schedule.missed, get_args(Missed))
    _check_policy(schedule, "overlap", schedule.overlap, get_args(Overlap))
    grace = _seconds(schedule.grace, schedule.name, "grace", schedule.place)
    if not 0 <= grace <= _MAX_GRACE:
        raise ConfigError(
            f"schedule {schedule.name!r}: grace {grace:g} is out of range, expected 0 to {_MAX_GRACE:g} seconds"
            f" (10 years), in {schedule.place}"
        )
    missing = _required_arguments(schedule.actor)
    if missing:
        raise ConfigError(
            f"schedule {schedule.name!r}: job {schedule.actor.actor_name!r} needs the argument {missing[0]!r}, expected"
            f" a job that needs none: a tick has no arguments to give, so give it a default, in {schedule.place}"
        )
    taken = _registry.get(schedule.name)
    if taken is not None:
        raise ConfigError(
            f"schedule {schedule.name!r} is declared twice, in {taken.place} and in {schedule.place}:"
            " pass a different name= to one of them"
        )
    _registry[schedule.name] = schedule


def _title(actor: object, name: object, decorator: str, place: str) -> str:
    if not isinstance(actor, Actor):
        called = getattr(actor, "__name__", repr(actor))
        raise ConfigError(f"@{decorator} above {called!r} found no job: put @job directly below it, in {place}")
    title = actor.actor_name if name is None else name
    if not isinstance(title, str) or not title.strip() or not title.isprintable():
        raise ConfigError(f"schedule {title!r}: the name cannot be read, expected a printable text, in {place}")
    return title


def _check_policy(schedule: Schedule, policy: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"schedule {schedule.name!r}: {policy}={value!r} is unknown, expected one of {', '.join(allowed)},"
            f" in {schedule.place}"
        )


def _seconds(value: object, title: str, argument: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"schedule {title!r}: {argument}={value!r}, expected a number, in {place}")
    return float(value)


def _zone(tz: object) -> tzinfo:
    # UTC by itself: a container without time zone files must not need them for it.
    if tz == "UTC":
        return UTC
    try:
        return ZoneInfo(tz)  # type: ignore[arg-type]  # what is no text ends below, as every other refused zone
    # ZoneInfo lets the errors of the file system through: a folder such as "Europe" is one of them.
    except (LookupError, OSError, TypeError, ValueError) as exc:
        known = available_timezones()
        close = [f"did you mean {match!r}?" for match in difflib.get_close_matches(str(tz), known, n=1)]
        hint = close or ([] if known else ["this machine has no zone files: install the package tzdata"])
        expected = "expected an IANA name such as 'Europe/Berlin'"
        raise ConfigError("; ".join([f"tz {tz!r} is not a known time zone, {expected}", *hint])) from exc


def _required_arguments(actor: Actor[Any, Any]) -> tuple[str, ...]:
    offered: tuple[str, ...] | None = getattr(actor, "required_arguments", None)
    if offered is not None:
        return offered
    # A plain Dramatiq actor: nothing is injected, so whatever has no default would be missing at each tick.
    return tuple(
        parameter.name
        for parameter in inspect.signature(actor.fn).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def _caller() -> str:
    frame = sys._getframe(2)
    file = Path(frame.f_code.co_filename)
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return f"{file} line {frame.f_lineno}"
