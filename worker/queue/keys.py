"""Keys of limits and rates: which jobs are counted together, by the values of their arguments."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import msgspec

from worker.errors import ConfigError, SignatureError

_LONGEST = 300


class Counting(Protocol):
    """What counts jobs: a limit or a rate."""

    @property
    def name(self) -> str | None: ...

    @property
    def arguments(self) -> tuple[str, ...]: ...

    @property
    def numbers(self) -> str: ...


def names(by: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the arguments that *by* means."""
    return (by,) if isinstance(by, str) else tuple(by)


def are_words(value: object) -> TypeGuard[Collection[str]]:
    """Whether *value* is a list of names, or the like; a text is none, although it has letters."""
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(one, str) for one in value)


def check_words(what: str, by: object, name: object) -> None:
    """
    Refuse what cannot be the names of arguments, or the name of *what* is counted.

    Raises:
        ConfigError: Says which.
    """
    words = [by] if isinstance(by, str) else by
    if not are_words(words) or not all(words):
        raise ConfigError(f"{what} by {by!r}: expected the name of an argument, or a list of names")
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigError(f"{what} name {name!r}: expected text")


def check(what: str, actor: str, by: Sequence[str], parameters: Mapping[str, inspect.Parameter]) -> None:
    """
    Refuse an argument that the job does not have; *what* asks for it.

    Raises:
        SignatureError: Says which.
    """
    for name in by:
        if name not in parameters:
            has = ", ".join(parameters) or "none"
            raise SignatureError(f"job {actor!r}: {what} by {name!r}: it has no such argument (it has: {has})")


def check_shared(what: str, actor: str, mine: Counting, other: str, theirs: Counting) -> None:
    """
    Refuse *what* of *actor* when its jobs are counted together with those of the *other* actor, up to other numbers.

    Raises:
        ConfigError: Names both, and both numbers.
    """
    name = mine.name or actor
    if name != (theirs.name or other) or mine.arguments != theirs.arguments or mine.numbers == theirs.numbers:
        return
    raise ConfigError(
        f"job {actor!r}: {what} {name!r} is {mine.numbers}, and that of job {other!r} is {theirs.numbers}: they are"
        f" counted together: expected the same numbers, as with one worker.{what.capitalize()} for both, or another"
        " name="
    )


def key(name: str, by: Sequence[str], args: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    """What a job with *args*, JSON by name, is counted in: *name* and the values of its arguments *by*."""
    given = msgspec.json.decode(args)
    values = [given.get(each, _default(parameters[each])) for each in by]
    name += "".join(f" {each}={_text(value)}" for each, value in zip(by, values, strict=True))
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 65]} {hashlib.sha256(name.encode()).hexdigest()}"
    return name


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is inspect.Parameter.empty else parameter.default


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
