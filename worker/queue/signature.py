"""A job's signature: what is injected, what travels as JSON, and whether that can work."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_origin, get_type_hints

import msgspec
import msgspec.inspect
import psycopg

from worker.errors import ArgumentError, SignatureError
from worker.pool import Connection, Pool
from worker.queue.context import Context

_INJECTED: dict[type, str] = {
    psycopg.Connection: "Connection",
    Connection: "Connection",
    psycopg.AsyncConnection: "AsyncConnection",
    Pool: "Pool",
    Context: "Context",
}
_CONNECTIONS = ("Connection", "AsyncConnection")

# An escape of U+0000 that is not itself the tail of an escaped backslash; jsonb refuses it.
NUL_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


@dataclass(frozen=True)
class Signature:
    """
    What a job's function takes.

    Args:
        injected: Kinds of the leading parameters: Connection, AsyncConnection, Pool or Context.
        arguments: A Struct with the others by name: what travels.
        unchecked: Names of arguments without an annotation; they take plain JSON only.
    """

    name: str
    is_async: bool
    injected: tuple[str, ...]
    arguments: type[msgspec.Struct]
    unchecked: frozenset[str]
    _binding: inspect.Signature
    _decoder: msgspec.json.Decoder[Any]

    @classmethod
    def read(cls, fn: Callable[..., Any], name: str) -> Signature:
        """
        Read the signature of the job *name*.

        Raises:
            SignatureError: It cannot work; the message names the function, the parameter and the remedy.
        """
        where = f"job {name!r} ({fn.__module__}.{fn.__qualname__})"
        hints = _hints(fn, where)
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise SignatureError(f"{where}: a function that yields would never run: return instead, or send more jobs")
        is_async = inspect.iscoroutinefunction(fn)
        parameters = list(inspect.signature(fn).parameters.values())
        injected: list[str] = []
        while parameters and (kind := _injected_kind(hints.get(parameters[0].name))):
            injected.append(kind)
            del parameters[0]
        _check_injected(injected, is_async, where)
        fields = [_field(parameter, hints, where) for parameter in parameters]
        try:
            arguments = msgspec.defstruct(f"{name}_arguments", fields, kw_only=True, forbid_unknown_fields=True)
            decoder = msgspec.json.Decoder(arguments)
        except (TypeError, ValueError) as exc:
            raise SignatureError(f"{where}: {exc}") from exc
        unchecked = frozenset(parameter.name for parameter in parameters if parameter.name not in hints)
        return cls(name, is_async, tuple(injected), arguments, unchecked, inspect.Signature(parameters), decoder)

    @cached_property
    def takes_connection(self) -> bool:
        """Whether the job runs inside one transaction on an injected connection."""
        return any(kind in _CONNECTIONS for kind in self.injected)

    @property
    def required_arguments(self) -> tuple[str, ...]:
        """Names of the arguments without a default."""
        empty = inspect.Parameter.empty
        return tuple(name for name, parameter in self._binding.parameters.items() if parameter.default is empty)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters that take arguments, by name."""
        return self._binding.parameters

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """
        The arguments of one send as a JSON object by name.

        Raises:
            ArgumentError: They do not fit; the message names the parameter and what was expected.
        """
        try:
            given = self._binding.bind(*args, **kwargs).arguments
        except TypeError as exc:
            raise ArgumentError(f"job {self.name!r}: {exc}") from None
        for parameter in self.unchecked & given.keys():
            if not _is_plain(given[parameter]):
                raise ArgumentError(
                    f"job {self.name!r}: argument {parameter!r} is a {type(given[parameter]).__name__}, which JSON"
                    " would change: annotate the parameter with its type, or send plain JSON"
                )
        try:
            text = msgspec.json.encode(given)
            self._decoder.decode(text)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as exc:
            raise ArgumentError(f"job {self.name!r}: {exc}") from None
        if b"null" in text and not _is_finite(msgspec.to_builtins(given)):
            raise ArgumentError(f"job {self.name!r}: an argument holds a NaN or an infinity, which JSON cannot carry")
        if NUL_ESCAPE.search(text):
            raise ArgumentError(
                f"job {self.name!r}: an argument holds the character U+0000, which Postgres cannot store"
            )
        return text.decode()

    def convert(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """
        The arguments of one run, from plain JSON to the annotated types, defaults filled in.

        Raises:
            ArgumentError: They do not fit, say because they were sent by an older or newer version of the job.
        """
        try:
            # What was stored was bound when it was sent, so it has names already.
            given = self._binding.bind(*args, **kwargs).arguments if args else kwargs
            struct = msgspec.convert(given, self.arguments)
        except (TypeError, msgspec.ValidationError) as exc:
            raise ArgumentError(f"job {self.name!r}: {self._misfit(args, kwargs) or exc}") from None
        return msgspec.structs.asdict(struct)

    def _misfit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TypeError | None:
        """Which argument is missing or too much, in Python's words."""
        try:
            self._binding.bind(*args, **kwargs)
        except TypeError as exc:
            return exc
        return None


def _hints(fn: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(fn, include_extras=True)
    except NameError as exc:
        raise SignatureError(
            f"{where}: annotation {exc.name!r} is not known at run time: import it outside `if TYPE_CHECKING`"
        ) from exc


def _injected_kind(hint: Any) -> str | None:
    kind = get_origin(hint) or hint
    return _INJECTED.get(kind) if isinstance(kind, type) else None


def _check_injected(injected: list[str], is_async: bool, where: str) -> None:
    for kind in _INJECTED.values():
        if injected.count(kind) > 1:
            raise SignatureError(f"{where}: {kind} is injected once, it is asked for {injected.count(kind)} times")
    if all(kind in injected for kind in _CONNECTIONS):
        raise SignatureError(f"{where}: a job has one connection: ask for Connection or AsyncConnection, not both")
    if is_async and "Connection" in injected:
        raise SignatureError(f"{where}: an async job takes psycopg.AsyncConnection; Connection would block its loop")
    if not is_async and "AsyncConnection" in injected:
        raise SignatureError(f"{where}: a plain job takes psycopg.Connection; AsyncConnection is for async def")


def _field(parameter: inspect.Parameter, hints: dict[str, Any], where: str) -> tuple[Any, ...]:
    name = parameter.name
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise SignatureError(f"{where}: parameter {parameter}: arguments travel by name, so each needs one of its own")
    hint = hints.get(name, Any)
    if kind := _injected_kind(hint):
        raise SignatureError(f"{where}: parameter {name!r}: injected parameters come first, move {kind} to the front")
    try:
        strange = next(_not_json(msgspec.inspect.type_info(hint)), None)
    except (TypeError, ValueError, NotImplementedError) as exc:
        raise SignatureError(f"{where}: parameter {name!r}: {exc}") from exc
    if strange is not None:
        raise SignatureError(
            f"{where}: parameter {name!r} is a {strange.__module__}.{strange.__qualname__}, which JSON cannot carry and"
            " which is not injected: send an id instead (injected are psycopg.Connection, psycopg.AsyncConnection,"
            " worker.Pool and worker.Context)"
        )
    if parameter.default is parameter.empty:
        return name, hint
    default = parameter.default
    return name, hint, msgspec.field(default_factory=lambda: default)


def _not_json(node: Any) -> Iterator[type]:
    """The classes within an inspected type that msgspec knows nothing about."""
    if isinstance(node, msgspec.inspect.CustomType):
        yield node.cls
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        # A class that holds itself would go on for ever; its fields were seen when it was entered.
        nested = () if isinstance(node, msgspec.inspect.StructType) else node.__struct_fields__
        for name in nested:
            yield from _not_json(getattr(node, name))
    elif isinstance(node, tuple):
        for item in node:
            yield from _not_json(item)


def _is_finite(value: Any) -> bool:
    """Whether no float within *value* became a null."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (str, int, bool)
