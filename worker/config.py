"""The settings of one worker: read once, validated whole, frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from worker.errors import ConfigError

NO_DATABASE = (
    "no database: set WORKER_DATABASE_URL (postgresql://user@host/name),"
    " or use --embedded for a throw-away Postgres on this machine"
)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def _seconds(text: str) -> float:
    """a number of seconds, 0 or more"""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _names(text: str) -> tuple[str, ...]:
    """names separated by commas"""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError(text)
    return names


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    parse.__doc__ = f"one of {', '.join(allowed)}"
    return parse


def _database_url(text: str) -> str:
    """a connection string such as postgresql://user@host/name"""
    try:
        conninfo_to_dict(text)
    except ProgrammingError:
        # libpq quotes what it could not read, and the password may be part of it.
        raise ValueError("it cannot be read") from None
    return text


@dataclass(frozen=True, kw_only=True)
class Config:
    """
    The settings of one worker.

    Args:
        database_url: Any libpq connection string; its password never appears in `repr`, logs or errors.
        schema: Name of the schema that holds the tables.
        jobs: Modules to import; a package is imported with its modules.
        queues: Which queues to serve; every declared one when None.
        pool_size: The most server sessions this process ever holds; 2 at least, one of them the runtime's own.
        slots: How many jobs run at once; as many as there are connections for jobs when None.
        grace: Seconds that running jobs get to finish when the worker is asked to stop.
        lease: Seconds without a heartbeat until other workers may rescue this worker's jobs.
        hygiene: What is looked for when a connection comes back to the pool: "off", "detect" or "discard".
        max_args: The most bytes that the encoded arguments of a job may have.
        async_mode: How `async def` jobs use the pool's connections: "view" or "thread".
        until_empty: Stop when no job is left to run.
        log_format: "auto" is console on a terminal and JSON elsewhere.
        log_level: "debug" shows every job that is done; "info", "warning" or "error".
    """

    database_url: str = ""
    schema: str = "worker"
    jobs: tuple[str, ...] = ("jobs",)
    queues: tuple[str, ...] | None = None
    pool_size: int = 20
    slots: int | None = None
    grace: float = 25.0
    lease: float = 10.0
    hygiene: str = "off"
    async_mode: str = "view"
    max_args: int = 1_048_576
    until_empty: bool = False
    log_format: str = "auto"
    log_level: str = "info"

    @classmethod
    def from_env(cls, env: Mapping[str, str], **overrides: Any) -> Config:
        """
        Settings from `WORKER_*` variables of *env*, each replaced by its override unless that is None.

        Raises:
            ConfigError: One message that lists every setting that cannot work, by name, value and source.
        """
        values: dict[str, Any] = {}
        wrong: list[str] = []
        for name, parse in _PARSERS.items():
            variable = f"WORKER_{name.upper()}"
            text = env.get(variable, "")
            if overrides.get(name) is not None or not text:
                continue
            try:
                values[name] = parse(text)
            except ValueError as exc:
                shown = f"{variable}={text!r}" if name != "database_url" else f"{variable}: {exc}"
                wrong.append(f"{shown}: expected {parse.__doc__} (from the environment)")
        values.update({name: value for name, value in overrides.items() if value is not None})
        if wrong:
            raise ConfigError("; ".join(wrong))
        return cls(**values)

    def __post_init__(self) -> None:
        wrong = []
        if self.pool_size < 2:
            wrong.append(
                f"pool size {self.pool_size}: expected at least 2, because the runtime keeps one connection"
                " for claims, heartbeats and schedules, and jobs need one more"
            )
        if self.slots is not None and self.slots < 1:
            wrong.append(f"slots {self.slots}: expected at least 1")
        if self.lease <= 0:
            wrong.append(f"lease {self.lease}: expected more than 0 seconds")
        if self.database_url:
            try:
                _database_url(self.database_url)
            except ValueError as exc:
                wrong.append(f"database URL: {exc}: expected {_database_url.__doc__}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    @property
    def checkouts(self) -> int:
        """How many connections jobs may hold: the pool less the one that the runtime pins."""
        return self.pool_size - 1

    @property
    def job_slots(self) -> int:
        """How many jobs run at once."""
        return self.checkouts if self.slots is None else self.slots

    def __repr__(self) -> str:
        shown = ((f.name, getattr(self, f.name)) for f in fields(self))
        parts = (f"{name}={redacted(value) if name == 'database_url' else value!r}" for name, value in shown)
        return f"Config({', '.join(parts)})"


def redacted(conninfo: str) -> str:
    """*conninfo* without its secrets, for people; never raises."""
    try:
        parameters = conninfo_to_dict(conninfo)
    except ProgrammingError:
        return "<unreadable connection string>"
    secrets = {"password", "sslpassword", "passfile", "oauth_client_secret"}
    return make_conninfo("", **{name: value for name, value in parameters.items() if name not in secrets})


_PARSERS: dict[str, Callable[[str], Any]] = {
    "database_url": _database_url,
    "schema": str,
    "jobs": _names,
    "queues": _names,
    "pool_size": _whole(1, 10_000),
    "slots": _whole(1, 100_000),
    "grace": _seconds,
    "lease": _seconds,
    "hygiene": _one_of("off", "detect", "discard"),
    "async_mode": _one_of("view", "thread"),
    "max_args": _whole(1, 100_000_000),
    "log_format": _one_of("auto", "console", "json"),
    "log_level": _one_of("debug", "info", "warning", "error"),
}
