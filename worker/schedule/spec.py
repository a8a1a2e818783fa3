"""When a schedule ticks as one line of text, complete enough to be read back: what the database keeps."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import get_args

from worker.errors import ConfigError
from worker.schedule.crontab import SIX, parse
from worker.schedule.trigger import NEVER, At, Cron, Every, Gap, Repeat, Trigger
from worker.schedule.zone import zone

MAX_INTERVAL = 366 * 86400.0

_EVERY = re.compile(r"every ([0-9.e+]+) seconds?")
_AT = re.compile(r"at (\S+)")
# Written behind the crontab when declared, so that a process which knows only the crontab cannot take it for its own.
_POLICY = re.compile(r"(?P<crontab>.*?)(?: gap=(?P<gap>\w+))?(?: repeat=(?P<repeat>\w+))?")


def written(trigger: Trigger) -> str:
    """
    *trigger* as text, without its zone; six fields begin with the second.

    Such as `0 3 * * *`, `0 3 * * * gap=skip`, `every 2 seconds`, `at 2026-01-01T00:00:00Z`.
    """
    if isinstance(trigger, Every):
        number = int(trigger.seconds) if float(trigger.seconds).is_integer() else trigger.seconds
        return f"every {number} second{'' if number == 1 else 's'}"
    if isinstance(trigger, At):
        return f"at {utc_text(trigger.instant)}"
    assert isinstance(trigger, Cron)  # noqa: S101  # for the type checker; there are three
    policies = (("gap", trigger.gap), ("repeat", trigger.repeat))
    return " ".join([trigger.crontab.text, *(f"{name}={value}" for name, value in policies if value is not None)])


def read(spec: str, tz: str) -> Trigger:
    """
    The trigger that *spec* was written for.

    Raises:
        ConfigError: It is not understood, or never ticks; the message says why.
    """
    if match := _EVERY.fullmatch(spec):
        return interval(float(match[1]))
    if match := _AT.fullmatch(spec):
        try:
            return at_instant(datetime.fromisoformat(match[1]))
        except ValueError as exc:
            raise ConfigError(f"spec {spec!r}: {exc}, expected such as 'at 2026-01-01T00:00:00Z'") from None
    match = _POLICY.fullmatch(spec)
    assert match is not None  # noqa: S101  # it matches any text
    text = match["crontab"]
    seconds = len(text.split()) == len(SIX)
    return crontab(text, tz, gap=match["gap"], repeat=match["repeat"], seconds=seconds)


def crontab(text: str, tz: str, *, gap: str | None = None, repeat: str | None = None, seconds: bool = False) -> Cron:
    """
    The trigger of a crontab in the zone *tz*.

    Raises:
        ConfigError: Text, zone or policy cannot work, or together they never tick.
    """
    for name, value, allowed in (("gap", gap, get_args(Gap)), ("repeat", repeat, get_args(Repeat))):
        if value is not None and value not in allowed:
            raise ConfigError(f"{name}={value!r} is unknown, expected one of {', '.join(allowed)}")
    trigger = Cron(parse(text, seconds=seconds), zone(tz), gap, repeat)  # type: ignore[arg-type]  # checked above
    if trigger.after(datetime(2026, 1, 1, tzinfo=UTC)) == NEVER:
        raise ConfigError(
            f"cron {trigger.crontab.text!r} would never run: the clocks of {tz} skip its time whenever it comes;"
            " choose another time, or gap='run' to run it after the gap"
        )
    return trigger


def interval(seconds: float) -> Every:
    """
    The trigger of an interval.

    Raises:
        ConfigError: Shorter than a second or longer than 366 days.
    """
    if not 1 <= seconds <= MAX_INTERVAL:
        raise ConfigError(f"an interval of {seconds:g} s, expected 1 second to 366 days such as @every(minutes=5)")
    return Every(seconds)


def at_instant(instant: object) -> At:
    """
    The trigger of a single tick.

    Raises:
        ConfigError: *instant* is no datetime with a time zone, or beyond what we can reckon with.
    """
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise ConfigError(
            f"at {instant!r} is not a point in time, expected a datetime with a zone such as"
            " datetime(2026, 1, 1, tzinfo=UTC)"
        )
    try:
        return At(instant.astimezone(UTC))
    except OverflowError:
        raise ConfigError(f"at {instant!r} is out of range, expected a year of four digits") from None


def utc_text(instant: datetime) -> str:
    """*instant* as `2026-03-08T05:00:00Z`."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
