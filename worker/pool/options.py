"""How the pool is sized, timed and connected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from psycopg import pq

from worker.config import Config, refuse
from worker.pool.connection import Connection
from worker.pool.hygiene import HygieneMode
from worker.secrecy import parsed, redacted, shown

# A dead peer is noticed in about 30 + 3 x 10 s instead of hours, and unsent data is given up after 30 s.
_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_APPLICATION_NAME = "carpool"
_CONNECT_TIMEOUT = 5.0
_LIBPQ = frozenset(parameter.keyword.decode() for parameter in pq.Conninfo.get_defaults())
_PSYCOPG = frozenset({"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"})


class AsyncMode(StrEnum):
    """How coroutines use the connections of the pool, which is a pool for threads."""

    VIEW = "view"
    """As an `AsyncConnection` over the same session. It rests on private names of psycopg."""
    THREAD = "thread"
    """Each call in a thread of the loop's executor; for a psycopg with which the view does not work."""


@dataclass(frozen=True)
class ConnectOptions:
    """
    Where connections lead and how they are made.

    Args:
        conninfo: Any libpq connection string; its secrets never appear in `repr`.
        parameters: Keyword arguments of `psycopg.connect`, which win over the string's.

    Raises:
        ConfigError: One message that lists everything that cannot work, and quotes no part of the string.
    """

    conninfo: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse([*_unreadable(self.conninfo), *_unknown(self.parameters)])

    def __repr__(self) -> str:
        given = {name: value for name, value in self.parameters.items() if name in _LIBPQ and value is not None}
        return f"ConnectOptions({shown({**parsed(self.conninfo), **given})!r})"


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """
    How the pool is sized, timed and connected; every duration in seconds.

    Args:
        conninfo: Any libpq connection string.
        direct: The same database without the pooler through which *conninfo* leads, for the runtime's own session; None
            when there is no pooler. With one, a session is lent for a transaction at a time: nothing is prepared in it.
        application_name: What `pg_stat_activity` shows; also how a dead worker's sessions are found. That of
            *conninfo*, or else "carpool", when None.
        max_size: The most sessions that exist at any time.
        min_size: How many are kept although nobody needs them.
        idle_timeout: After which one that nobody used is closed, below `min_size` too: it is replaced by a fresh one.
        max_lifetime: After which one is replaced, as soon as nobody uses it; a twentieth less for some, so that they
            do not all end together.
        acquire_timeout: How long a caller waits for a connection.
        connect_timeout: How long one attempt to connect may take. That of *conninfo*, or else 5, when None.
        warn_after: How long somebody may keep a connection before the log names them, once.
        hygiene: What is looked for when a connection comes back, beyond what is free to see.
        async_mode: How coroutines use the connections.
        after_connect: Called with each new connection, to set it up; one for which it raises is closed.
        before_acquire: Called with a connection before it is handed out; False or an error closes it, and another is
            taken.
        after_release: Called with a connection that came back, is clean and idle; False or an error closes it.
        alone: Refuse to open beside another open pool of this process, because the cap on sessions is the process's.

    Raises:
        ConfigError: One message that lists every option that cannot work.
    """

    conninfo: str
    direct: str | None = None
    application_name: str | None = None
    max_size: int = 20
    min_size: int = 1
    idle_timeout: float = 120.0
    max_lifetime: float = 600.0
    acquire_timeout: float = 5.0
    connect_timeout: float | None = None
    warn_after: float = 60.0
    hygiene: HygieneMode = HygieneMode.OFF
    async_mode: AsyncMode = AsyncMode.VIEW
    after_connect: Callable[[Connection], object] | None = None
    before_acquire: Callable[[Connection], bool | None] | None = None
    after_release: Callable[[Connection], bool | None] | None = None
    alone: bool = True

    def __post_init__(self) -> None:
        for name, kind in (("hygiene", HygieneMode), ("async_mode", AsyncMode)):
            # As text it is what the variables say.
            if getattr(self, name) in list(kind):
                object.__setattr__(self, name, kind(getattr(self, name)))
        refuse(list(_mistakes(self)))

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> PoolOptions:
        """The options that *config* sets, each replaced by its keyword if given."""
        settings: dict[str, Any] = {
            "conninfo": config.database_url,
            "direct": config.direct_url or None,
            "max_size": config.pool_size,
            "hygiene": HygieneMode(config.hygiene),
            "async_mode": AsyncMode(config.async_mode),
        }
        return cls(**{**settings, **options})

    def connect_options(self) -> ConnectOptions:
        """
        Where connections lead and how they are made.

        What the string says wins over the defaults, and what the options say wins over the string.
        """
        pooled = {} if self.direct is None else {"prepare_threshold": None}
        return self._options_of(self.conninfo, pooled)

    def direct_options(self) -> ConnectOptions | None:
        """The same for the runtime's own session; None when that leads where all do."""
        return None if self.direct is None else self._options_of(self.direct, {})

    def _options_of(self, conninfo: str, more: dict[str, Any]) -> ConnectOptions:
        parameters: dict[str, Any] = {
            "application_name": _APPLICATION_NAME, "connect_timeout": _whole_seconds(_CONNECT_TIMEOUT), **_KEEPALIVES,
            **more,
        }  # fmt: skip
        for name in parameters.keys() & parsed(conninfo).keys():
            del parameters[name]
        if self.application_name is not None:
            parameters["application_name"] = self.application_name
        if self.connect_timeout is not None:
            parameters["connect_timeout"] = _whole_seconds(self.connect_timeout)
        return ConnectOptions(conninfo, parameters)

    def __repr__(self) -> str:
        return f"PoolOptions({redacted(self.conninfo)!r}, {self.min_size}..{self.max_size})"


def _whole_seconds(timeout: float) -> int:
    """As libpq takes them; it reads 1 as 2 anyway, and 0 as for ever."""
    return max(2, round(timeout))


def _unreadable(conninfo: object) -> Iterator[str]:
    expected = "a connection string such as postgresql://user@host/name"
    if not isinstance(conninfo, str):
        # Not shown, because whatever it is may hold the password.
        yield f"conninfo of type {type(conninfo).__name__}: expected {expected}"
        return
    try:
        parsed(conninfo)
    except ValueError as exc:
        yield f"conninfo: {exc}: expected {expected}"


def _unknown(parameters: object) -> Iterator[str]:
    if not isinstance(parameters, dict):
        yield f"parameters of type {type(parameters).__name__}: expected a dict of psycopg.connect's keyword arguments"
        return
    for name in parameters:
        if name not in _LIBPQ | _PSYCOPG:
            yield f"parameters: {name!r} is unknown: expected keyword arguments of psycopg.connect"


def _mistakes(options: PoolOptions) -> Iterator[str]:
    yield from _unreadable(options.conninfo)
    if options.direct is not None:
        yield from _unreadable(options.direct)
    for name, expected, works in _ALLOWED:
        value = getattr(options, name)
        if not works(value):
            yield f"{name}={value!r}: expected {expected}"
    low, high = options.min_size, options.max_size
    if _is_size(low) and _is_size(high) and low > high >= 1:
        yield f"min_size={low!r}: expected at most max_size, which is {high!r}"


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_hook(value: object) -> bool:
    return value is None or callable(value)


_Allowed = tuple[str, str, Callable[[Any], bool]]
_ALLOWED: tuple[_Allowed, ...] = (
    ("application_name", "a text, or None for the connection string's",
     lambda value: value is None or (isinstance(value, str) and "\x00" not in value)),
    ("max_size", "a whole number, 1 or more", lambda value: _is_size(value) and value >= 1),
    ("min_size", "a whole number, 0 or more", _is_size),
    ("idle_timeout", "a number of seconds, more than 0", lambda value: _is_duration(value) and value > 0),
    ("max_lifetime", "a number of seconds, more than 0", lambda value: _is_duration(value) and value > 0),
    ("acquire_timeout", "a number of seconds, 0 or more", _is_duration),
    ("connect_timeout", "a number of seconds, more than 0, or None for the connection string's",
     lambda value: value is None or (_is_duration(value) and value > 0)),
    ("warn_after", "a number of seconds, 0 or more", _is_duration),
    ("hygiene", "one of off, detect, discard", lambda value: isinstance(value, HygieneMode)),
    ("async_mode", "one of view, thread", lambda value: isinstance(value, AsyncMode)),
    ("after_connect", "a function that takes a connection, or None", _is_hook),
    ("before_acquire", "a function that takes a connection, or None", _is_hook),
    ("after_release", "a function that takes a connection, or None", _is_hook),
    ("alone", "True or False", lambda value: isinstance(value, bool)),
)  # fmt: skip
