"""A job's signature: what is injected, what travels as JSON, and whether that can work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_origin, get_type_hints

import msgspec
import msgspec.inspect
import psycopg

from worker.errors import ArgumentError, SignatureError, UnreadableJob
from worker.pool import Connection, Pool
from worker.queue.context import Context
from worker.queue.json_values import NUL_ESCAPE, exact_floats, is_finite, is_plain, is_same

_INJECTED: dict[type, str] = {
    psycopg.Connection: "Connection",
    Connection: "Connection",
    psycopg.AsyncConnection: "AsyncConnection",
    Pool: "Pool",
    Context: "Context",
}
_CONNECTIONS = ("Connection", "AsyncConnection")
_BY_PLACE = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


@dataclass(frozen=True)
class Signature:
    """
    What a job's function takes.

    Args:
        injected: Kinds of the leading parameters: Connection, AsyncConnection, Pool or Context.
        arguments: A Struct with the others by name: what travels.
        unchecked: Names of arguments without an annotation; they take plain JSON only.
        loose: Names of arguments whose annotation leaves something open, such as `dict` or `list[Any]`.
        aliases: Parameters' present names by the names they had.
    """

    name: str
    is_async: bool
    injected: tuple[str, ...]
    arguments: type[msgspec.Struct]
    unchecked: frozenset[str]
    loose: frozenset[str]
    aliases: Mapping[str, str]
    _binding: inspect.Signature
    _decoder: msgspec.json.Decoder[Any]

    @classmethod
    def read(cls, fn: Callable[..., Any], name: str, *, aliases: Mapping[str, str] | None = None) -> Signature:
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
        binding = inspect.Signature(parameters)
        unchecked = frozenset(parameter.name for parameter in parameters if parameter.name not in hints)
        loose = frozenset(key for key, hint in hints.items() if key in binding.parameters and _is_open(hint))
        _check_aliases(aliases or {}, binding, where)
        return cls(name, is_async, tuple(injected), arguments, unchecked, loose, aliases or {}, binding, decoder)

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

    def check_names(self, names: Iterable[str]) -> None:
        """
        Refuse *names* that are not arguments of the job.

        Raises:
            SignatureError: Names the first, and the arguments there are.
        """
        for name in names:
            if name not in self._binding.parameters:
                raise SignatureError(
                    f"job {self.name!r}: {name!r} is none of its arguments ({', '.join(self._binding.parameters)})"
                )

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """
        The arguments of one send as a JSON object by name.

        Raises:
            ArgumentError: They do not fit; the message names the parameter and what was expected.
        """
        given = self._by_name(args, kwargs)
        for parameter in self.unchecked and self.unchecked & given.keys():
            if not is_plain(given[parameter]):
                raise ArgumentError(
                    f"job {self.name!r}: argument {parameter!r} is a {type(given[parameter]).__name__}, which JSON"
                    " would change: annotate the parameter with its type, or send plain JSON"
                )
        try:
            text = exact_floats(msgspec.json.encode(given))
            arrives = self._decoder.decode(text)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as exc:
            raise ArgumentError(f"job {self.name!r}: {exc}") from None
        for parameter in self.loose and self.loose & given.keys():
            if not is_same(given[parameter], getattr(arrives, parameter)):
                raise ArgumentError(
                    f"job {self.name!r}: argument {parameter!r} holds what JSON would change where its annotation"
                    " leaves the type open: annotate what it holds, or send plain JSON"
                )
        if b"null" in text and not is_finite(msgspec.to_builtins(given)):
            raise ArgumentError(f"job {self.name!r}: an argument holds a NaN or an infinity, which JSON cannot carry")
        if b"u0000" in text and NUL_ESCAPE.search(text):
            raise ArgumentError(
                f"job {self.name!r}: an argument holds the character U+0000, which Postgres cannot store"
            )
        return text.decode()

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._by_place is not None and not kwargs and len(args) == len(self._by_place):
            return dict(zip(self._by_place, args, strict=True))
        try:
            return self._binding.bind(*args, **kwargs).arguments
        except TypeError as exc:
            raise ArgumentError(f"job {self.name!r}: {exc}") from None

    @cached_property
    def _by_place(self) -> tuple[str, ...] | None:
        """Names of the parameters if all of them take arguments by their place: then there is nothing to find out."""
        kinds = {parameter.kind for parameter in self.parameters.values()}
        return tuple(self.parameters) if kinds <= _BY_PLACE else None

    def parse(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """
        Arguments that a person has typed, as the types they have: `42` is a number for an int and text for a str.

        Raises:
            ArgumentError: One does not fit its parameter; an unknown one is left for the send to refuse.
        """
        types = {field.name: field.type for field in msgspec.structs.fields(self.arguments)}
        return {name: self._parse(name, text, types.get(name, Any)) for name, text in texts.items()}

    def _parse(self, name: str, text: str, hint: Any) -> Any:
        if hint is not Any:
            try:
                return msgspec.convert(text, hint, strict=False)
            except msgspec.ValidationError as exc:
                reason = exc
        try:
            return msgspec.json.decode(text, type=hint)
        except msgspec.ValidationError as exc:
            raise ArgumentError(f"job {self.name!r}: argument {name!r}: {exc}") from None
        except msgspec.DecodeError:
            if hint is Any:
                return text
            raise ArgumentError(f"job {self.name!r}: argument {name!r} is {text!r}: {reason}") from None

    def from_json(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """
        Arguments of plain JSON, or of their types already, as the types they have.

        Raises:
            ArgumentError: One does not fit its parameter; an unknown one is left for the send to refuse.
        """
        types = {field.name: field.type for field in msgspec.structs.fields(self.arguments)}
        try:
            return {name: msgspec.convert(value, types.get(name, Any)) for name, value in given.items()}
        except msgspec.ValidationError as exc:
            raise ArgumentError(f"job {self.name!r}: {exc}") from None

    def convert(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """
        The arguments of one run, from plain JSON to the annotated types, defaults filled in.

        Raises:
            UnreadableJob: They do not fit, say because they were sent by an older or newer version of the job.
        """
        try:
            # What was stored was bound when it was sent, so it has names already.
            given = self._renamed(kwargs)
            if args:
                given = self._binding.bind(*args, **given).arguments
            struct = msgspec.convert(given, self.arguments)
        except (TypeError, OverflowError, msgspec.ValidationError) as exc:
            raise UnreadableJob(
                f"job {self.name!r}: {self._misfit(args, kwargs) or exc}: it was sent by another version of the job,"
                f" or by hand; it takes {self._binding}"
            ) from None
        return msgspec.structs.asdict(struct)

    def _misfit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TypeError | None:
        """Which argument is missing or too much, in Python's words."""
        try:
            self._binding.bind(*args, **self._renamed(kwargs))
        except TypeError as exc:
            return exc
        return None

    def _renamed(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self.aliases or not any(old in kwargs for old in self.aliases):
            return kwargs
        renamed = dict(kwargs)
        for old, new in self.aliases.items():
            if old in renamed:
                renamed.setdefault(new, renamed.pop(old))
        return renamed


def takes_connection_first(fn: Callable[..., Any], where: str) -> bool:
    """
    Whether the first parameter of *fn*, any callable, is annotated with a connection.

    Raises:
        SignatureError: An annotation is not known at run time, or is of the wrong kind of connection; begins with
            *where*.
    """
    try:
        first = next(iter(inspect.signature(fn).parameters), None)
        hint = None if first is None else _hints(fn, where).get(first)
    except (TypeError, ValueError):
        return False  # of a built-in, or a callable object, nothing is known
    if (kind := _injected_kind(hint)) not in _CONNECTIONS:
        return False
    if inspect.iscoroutinefunction(fn) != (kind == "AsyncConnection"):
        raise SignatureError(f"{where}: `async def` takes psycopg.AsyncConnection, a plain function psycopg.Connection")
    return True


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


def _is_open(hint: Any) -> bool:
    """Whether *hint* leaves the type of something open, so that JSON may change it unnoticed."""

    def any_types(node: Any) -> bool:
        if isinstance(node, msgspec.inspect.AnyType):
            return True
        if isinstance(node, msgspec.inspect.StructType):
            return False
        if isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
            return any(any_types(getattr(node, name)) for name in node.__struct_fields__)
        return isinstance(node, tuple) and any(map(any_types, node))

    return any_types(msgspec.inspect.type_info(hint))


def _check_aliases(aliases: Mapping[str, str], binding: inspect.Signature, where: str) -> None:
    for old, new in aliases.items():
        if old in binding.parameters:
            raise SignatureError(f"{where}: alias {old!r}: it is the name of a parameter; give it as {{'old': 'new'}}")
        if new not in binding.parameters:
            raise SignatureError(f"{where}: alias {old!r} of {new!r}, which is none of its arguments")
