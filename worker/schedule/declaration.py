"""How a job author declares a schedule: `@cron`, `@every` or `@at` above `@job`, checked at import."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import msgspec
from dramatiq import Actor

from worker.errors import ArgumentError, ConfigError
from worker.queue.actor import Job
from worker.schedule import spec
from worker.schedule.trigger import EPOCH, Gap, Repeat, Trigger

Missed = Literal["skip", "last", "all"]
Source = Literal["code", "database"]
Overlap = Literal["allow", "skip", "queue_one"]
ActorT = TypeVar("ActorT", bound=Actor[Any, Any])
# By name, or in order.
Args = Mapping[str, Any] | Sequence[Any]
ArgsOf = Args | Callable[[datetime], Args]

_MAX_GRACE = 3650 * 86400.0
_MAX_JITTER = 86400.0

_registry: dict[str, Schedule] = {}


class Terms(NamedTuple):
    """What the database keeps of a declaration: a process whose terms differ from the row's must not fire."""

    spec: str
    tz: str
    actor: str
    missed: str
    overlap: str
    grace: float
    jitter: float
    args: Any


@dataclass(frozen=True)
class Schedule:
    """
    A name, a trigger and the actor to send at each tick.

    Attributes:
        spec: When it ticks, as text: `0 3 * * *`, `every 2 seconds` or `at 2026-01-01T00:00:00Z`.
        tz: The zone whose wall clock *spec* means.
        missed: What becomes of ticks that nobody fired in time: `skip` them, fire the `last`, fire `all`.
        overlap: When the job of an earlier tick still lives: `allow` another, `skip` this tick, or `queue_one` behind.
        grace: Seconds after which a missed tick is not worth firing any more.
        place: File and line of the declaration, for messages.
        jitter: The job is due up to so many seconds after the tick, always the same for the same tick.
        args: The job's arguments, by name or in order, or a function of the tick that returns them.
        module: The Python module that declares it.
        source: Who owns its terms: a declaration in code, or the row in the database.
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
    jitter: float = 0.0
    args: ArgsOf = ()
    module: str | None = None
    source: Source = "code"

    @property
    def terms(self) -> Terms:
        """What must equal the database's row for this process to fire."""
        args = None if callable(self.args) else _plain(self.args)
        return Terms(
            self.spec, self.tz, self.actor.actor_name, self.missed, self.overlap, self.grace, self.jitter, args
        )

    def args_of(self, tick: datetime) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments of the job of *tick*."""
        args = self.args(tick) if callable(self.args) else self.args
        return ((), dict(args)) if isinstance(args, Mapping) else (tuple(args), {})


def cron(
    text: str,
    *,
    tz: str = "UTC",
    gap: Gap | None = None,
    repeat: Repeat | None = None,
    missed: Missed = "last",
    overlap: Overlap = "skip",
    grace: float = 3600.0,
    jitter: float = 0.0,
    args: ArgsOf = (),
    name: str | None = None,
    seconds: bool = False,
) -> Callable[[ActorT], ActorT]:
    """
    Send the job below at every tick of the crontab *text*, read by the wall clock of *tz*.

    `missed="all"` sends one job per missed tick at once, so it wants `overlap="allow"`: else only the first one
    passes, and the ledger says `overlap` for the others.

    Args:
        text: Five fields (minute hour day month weekday) or a macro such as `@daily`; see `crontab.parse`.
        gap: A time that the clock skips: "run" moves it on by the gap, once; "skip" leaves it out.
        repeat: A time that the clock shows twice: the "first" or "both". Where *gap* or *repeat* is None, a text whose
            minute or hour begins with `*` follows elapsed time ("skip", "both"), any other the wall clock.
        missed: Which ticks to make up for after a downtime: "skip" none, the "last", or "all".
        overlap: While the job of an earlier tick lives: "allow", "skip", or "queue_one" (one may wait behind it).
        grace: Seconds a missed tick stays worth firing. A lateness of a few seconds is not missed, whatever the grace.
        jitter: The job becomes due up to so many seconds after the tick, at most a day; which, depends on schedule and
            tick alone.
        args: The job's arguments: a mapping by name, a sequence, or a function that takes the tick (aware UTC) and
            returns one of them.
        name: Names the schedule; the actor's name when None.
        seconds: *text* has a sixth field, the second, in front.

    Raises:
        ConfigError: Text, zone, policy, name, actor or arguments cannot work; or the name is taken. Raised at import.
    """
    place = _caller()

    def declare(actor: ActorT) -> ActorT:
        title = _title(actor, name, "cron", place)
        with _told(title, place):
            trigger = spec.crontab(text, tz, gap=gap, repeat=repeat, seconds=seconds)
        _add(_schedule(title, trigger, tz, missed, overlap, grace, actor, place, jitter, args))
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
    jitter: float = 0.0,
    args: ArgsOf = (),
    name: str | None = None,
) -> Callable[[ActorT], ActorT]:
    """
    Send the job below at whole multiples of an interval since 1970 (UTC), the same instants in every process.

    The interval is the sum of *seconds*, *minutes* and *hours*: at least 1 second, at most 366 days. The other
    arguments are those of `cron`.

    Raises:
        ConfigError: Interval, policy, name, actor or arguments cannot work; or the name is taken. Raised at import.
    """
    place = _caller()

    def declare(actor: ActorT) -> ActorT:
        title = _title(actor, name, "every", place)
        length = _seconds(seconds, title, "seconds", place)
        length += _seconds(minutes, title, "minutes", place) * 60
        length += _seconds(hours, title, "hours", place) * 3600
        with _told(title, place):
            trigger = spec.interval(length)
        _add(_schedule(title, trigger, "UTC", missed, overlap, grace, actor, place, jitter, args))
        return actor

    return declare


def at(
    instant: datetime,
    *,
    missed: Missed = "last",
    overlap: Overlap = "skip",
    grace: float = 3600.0,
    jitter: float = 0.0,
    args: ArgsOf = (),
    name: str | None = None,
) -> Callable[[ActorT], ActorT]:
    """
    Send the job below once, at *instant*, a datetime with a zone.

    Once over all processes and restarts, because the ledger remembers; an instant that is past when the schedule is
    first declared never fires. The other arguments are those of `cron`.

    Raises:
        ConfigError: Instant, policy, name, actor or arguments cannot work; or the name is taken. Raised at import.
    """
    place = _caller()

    def declare(actor: ActorT) -> ActorT:
        title = _title(actor, name, "at", place)
        with _told(title, place):
            trigger = spec.at_instant(instant)
        _add(_schedule(title, trigger, "UTC", missed, overlap, grace, actor, place, jitter, args))
        return actor

    return declare


def registered() -> tuple[Schedule, ...]:
    """Every schedule that the imported modules declared, in the order of their names."""
    return tuple(_registry[name] for name in sorted(_registry))


def check(schedule: Schedule) -> None:
    """
    Refuse a schedule whose policies or arguments cannot work.

    Raises:
        ConfigError: The message names the schedule, the value, what was expected, and the place.
    """
    _check_policy(schedule, "missed", schedule.missed, get_args(Missed))
    _check_policy(schedule, "overlap", schedule.overlap, get_args(Overlap))
    _check_seconds(schedule, "grace", schedule.grace, _MAX_GRACE, "10 years")
    _check_seconds(schedule, "jitter", schedule.jitter, _MAX_JITTER, "1 day")
    _check_args(schedule)


def _schedule(
    name: str,
    trigger: Trigger,
    tz: str,
    missed: Missed,
    overlap: Overlap,
    grace: float,
    actor: Actor[Any, Any],
    place: Place,
    jitter: float,
    args: ArgsOf,
) -> Schedule:
    text = spec.written(trigger)
    return Schedule(name, text, tz, missed, overlap, grace, trigger, actor, str(place), jitter, args, place.module)


def _add(schedule: Schedule) -> None:
    check(schedule)
    taken = _registry.get(schedule.name)
    if taken is not None:
        raise ConfigError(
            f"schedule {schedule.name!r} is declared twice, in {taken.place} and in {schedule.place}:"
            " pass a different name= to one of them"
        )
    _registry[schedule.name] = schedule


@contextmanager
def _told(title: str, place: Place) -> Iterator[None]:
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(f"schedule {title!r}: {exc}, in {place}") from None


def _check_seconds(schedule: Schedule, argument: str, value: object, most: float, called: str) -> None:
    number = _seconds(value, schedule.name, argument, schedule.place)
    if not 0 <= number <= most:
        raise ConfigError(
            f"schedule {schedule.name!r}: {argument} {number:g} is out of range, expected 0 to {most:g} seconds"
            f" ({called}), in {schedule.place}"
        )


def _check_args(schedule: Schedule) -> None:
    args, actor = schedule.args, schedule.actor
    if callable(args):
        return
    if isinstance(args, str | bytes) or not isinstance(args, Mapping | Sequence):
        raise ConfigError(
            f"schedule {schedule.name!r}: args={args!r}, expected a mapping by name, a sequence, or a function of the"
            f" tick that returns one, in {schedule.place}"
        )
    missing = () if args else _required_arguments(actor)
    if missing:
        raise ConfigError(
            f"schedule {schedule.name!r}: job {actor.actor_name!r} needs the argument {missing[0]!r}: give it a"
            f" default, or pass args={{{missing[0]!r}: ...}} to the schedule, in {schedule.place}"
        )
    try:
        _plain(args)
        positional, named = schedule.args_of(EPOCH)
        if isinstance(actor, Job):
            actor.signature.encode(positional, named)
        elif positional or named:
            inspect.signature(actor.fn).bind(*positional, **named)
    except (ArgumentError, TypeError, ValueError) as exc:
        raise ConfigError(f"schedule {schedule.name!r}: args={args!r}: {exc}, in {schedule.place}") from None


def _plain(args: Args) -> Any:
    """*args* as they come back out of JSON."""
    return json.loads(msgspec.json.encode(args))


def _title(actor: object, name: object, decorator: str, place: Place) -> str:
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


def _seconds(value: object, title: str, argument: str, place: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"schedule {title!r}: {argument}={value!r}, expected a number, in {place}")
    return float(value)


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


@dataclass(frozen=True)
class Place:
    """File and line of a declaration, as messages name it; and its module."""

    line: str
    module: str | None

    def __str__(self) -> str:
        return self.line


def _caller() -> Place:
    frame = sys._getframe(2)
    file = Path(frame.f_code.co_filename)
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return Place(f"{file} line {frame.f_lineno}", frame.f_globals.get("__name__"))
