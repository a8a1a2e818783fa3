"""The settings of one worker: what each is, what it allows; validated whole, frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from worker.errors import ConfigError
from worker.secrecy import keep_secret, parsed, redacted, without_passwords

NO_DATABASE = (
    "no database: set WORKER_DATABASE_URL (postgresql://user@host/name),"
    " or use --embedded for a throw-away Postgres on this machine"
)

# Postgres cuts identifiers at 63 bytes, and the channels' names are the schema's with a suffix.
SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,49}")

_ADDRESS = re.compile(r"unix:(?P<path>/.+)|(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")


class Address(NamedTuple):
    """Where health and metrics are served: a host and port, or the *path* of a socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return (
            f"unix:{self.path}" if self.path else f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        )


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


_MEMORY = re.compile(r"(?P<number>\d{1,15})(?P<unit>|KiB|MiB|GiB)")
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
# Less than a worker that has done nothing yet: it would be replaced for ever.
_LEAST_MEMORY = 64 * 1024**2


def _memory(text: str) -> int:
    match = _MEMORY.fullmatch(text)
    if match is None or (size := int(match["number"]) * _UNITS[match["unit"]]) < _LEAST_MEMORY:
        raise ValueError(text)
    return size


def _some_seconds(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise ValueError(text)
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError(text)
    return names


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return parse


def _schema(text: str) -> str:
    if not SCHEMA_NAME.fullmatch(text):
        raise ValueError(text)
    return text


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError(text)
    return Address((match["host"] or "").strip("[]"), int(match["port"] or 0), match["path"] or "")


def _database_url(text: str) -> str:
    keep_secret(text)
    parsed(text)
    return text


class Setting(NamedTuple):
    """How one setting is read from a text; `parse` raises ValueError for what is not *expected*."""

    parse: Callable[[str], Any]
    expected: str
    is_secret: bool = False


SETTINGS = {
    "database_url": Setting(_database_url, "a connection string such as postgresql://user@host/name", is_secret=True),
    "direct_url": Setting(_database_url, "a connection string that leads past the pooler", is_secret=True),
    "schema": Setting(_schema, "a lower-case name of letters, digits and _ (at most 50 characters)"),
    "jobs": Setting(_names, "names separated by commas"),
    "queues": Setting(_names, "names separated by commas"),
    "pool_size": Setting(
        _whole(2, 10_000),
        "a whole number from 2 to 10000, because the runtime keeps one connection for claims, heartbeats and"
        " schedules, and jobs need one more",
    ),
    "slots": Setting(_whole(1, 100_000), "a whole number from 1 to 100000"),
    "processes": Setting(_whole(1, 256), "a whole number from 1 to 256"),
    "grace": Setting(_seconds, "a number of seconds, 0 or more"),
    "lease": Setting(_some_seconds, "a number of seconds, more than 0"),
    "stuck": Setting(_seconds, "a number of seconds, 0 or more"),
    "max_jobs": Setting(_whole(1, 1_000_000_000), "a whole number from 1 to 1000000000"),
    "max_memory": Setting(_memory, "a size such as 512MiB, 2GiB or a number of bytes, at least 64MiB"),
    "http": Setting(_address, "HOST:PORT such as 127.0.0.1:9191, or unix:/PATH"),
    "hygiene": Setting(_one_of("off", "detect", "discard"), "one of off, detect, discard"),
    "async_mode": Setting(_one_of("view", "thread"), "one of view, thread"),
    "max_args": Setting(_whole(1, 100_000_000), "a whole number of bytes from 1 to 100000000"),
    "history_days": Setting(_whole(1, 3650), "a whole number of days from 1 to 3650"),
    "tick_days": Setting(_whole(1, 3650), "a whole number of days from 1 to 3650"),
    "log_format": Setting(_one_of("auto", "console", "json"), "one of auto, console, json"),
    "log_level": Setting(_one_of("debug", "info", "warning", "error"), "one of debug, info, warning, error"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """
    The settings of one worker.

    Args:
        database_url: Any libpq connection string; its password never appears in `repr`, logs or errors.
        direct_url: The same database without the pooler through which *database_url* leads; "" when there is none.
        schema: Name of the schema that holds the tables.
        jobs: Modules to import; a package is imported with its modules.
        queues: Which queues to serve; every declared one when None.
        pool_size: The most server sessions ever held, by all processes together; 2 at least for each, one of them the
            runtime's own.
        slots: How many jobs run at once, in all processes together; when None, as many as there are connections for
            jobs.
        processes: How many processes share this budget, under a supervisor if there are several.
        grace: Seconds that running jobs get to finish when the worker is asked to stop.
        lease: Seconds without a heartbeat until other workers may rescue this worker's jobs.
        stuck: Seconds after its interrupt when a job that still runs makes the worker end itself with exit code 70.
        max_jobs: How many jobs a process runs before it ends in order, to be replaced; no limit when None.
        max_memory: The bytes of memory (resident set) beyond which it does; no limit when None.
        http: Where health and metrics are served; nowhere when None.
        hygiene: What is looked for when a connection comes back to the pool: "off", "detect" or "discard".
        max_args: The most bytes that the encoded arguments of a job may have.
        history_days: How long finished jobs are kept.
        tick_days: How long the ledger of schedules keeps what became of each tick.
        async_mode: How `async def` jobs use the pool's connections: "view" or "thread".
        budget: The pool size of all processes together, when this is the share of one of them; 0 when it is not.
        until_empty: Stop when no job is left to run.
        log_format: "auto" is console on a terminal and JSON elsewhere.
        log_level: "debug" shows every job that is done; "info", "warning" or "error".

    Raises:
        ConfigError: One message that lists every setting that cannot work.
    """

    database_url: str = ""
    direct_url: str = ""
    schema: str = "worker"
    jobs: tuple[str, ...] = ("jobs",)
    queues: tuple[str, ...] | None = None
    pool_size: int = 20
    slots: int | None = None
    processes: int = 1
    grace: float = 25.0
    lease: float = 10.0
    stuck: float = 60.0
    max_jobs: int | None = None
    max_memory: int | None = None
    http: Address | None = None
    hygiene: str = "off"
    async_mode: str = "view"
    max_args: int = 1_048_576
    history_days: int = 14
    tick_days: int = 30
    budget: int = 0
    until_empty: bool = False
    log_format: str = "auto"
    log_level: str = "info"

    def __post_init__(self) -> None:
        mistakes = []
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if value is None or value == "":
                continue
            try:
                setting.parse(as_text(value))
            except ValueError as exc:
                mistakes.append(mistake(name, setting, value, exc))
        refuse(mistakes or list(self._too_little()))

    def _too_little(self) -> Iterator[str]:
        """What is not enough for so many processes."""
        if self.processes > 1 and self.pool_size < (least := 2 * self.processes):
            yield (
                f"pool_size={self.pool_size}: expected at least {least} for processes={self.processes}, which share it:"
                " each keeps one connection for claims, heartbeats and schedules, and its jobs need one more"
            )
        if self.slots is not None and self.slots < self.processes:
            yield f"slots={self.slots}: expected at least {self.processes}, one for each of processes={self.processes}"

    @property
    def session_url(self) -> str:
        """Where a session is one's own: what listens, holds a lease or migrates."""
        return self.direct_url or self.database_url

    @property
    def checkouts(self) -> int:
        """How many connections jobs may hold: the pool less the one that the runtime pins in each process."""
        return self.pool_size - self.processes

    @property
    def job_slots(self) -> int:
        """How many jobs run at once."""
        return self.checkouts if self.slots is None else self.slots

    def __repr__(self) -> str:
        shown = ((f.name, getattr(self, f.name)) for f in fields(self))
        parts = (
            f"{name}={redacted(value) if name in ('database_url', 'direct_url') else value!r}" for name, value in shown
        )
        return f"Config({', '.join(parts)})"


def as_text(value: Any) -> str:
    """A value as a person would write it into a variable."""
    if isinstance(value, list | tuple) and not isinstance(value, Address):
        return ",".join(str(item) for item in value)
    return str(value)


def mistake(name: str, setting: Setting, value: Any, exc: ValueError, source: str = "") -> str:
    """The sentence about a setting that cannot be read: its name, its value, what is allowed, where it stands."""
    # What is secret is not shown, not even as what could not be read.
    shown = f"{name}: {exc}" if setting.is_secret else f"{name}={as_text(value)!r}"
    return f"{shown}: expected {setting.expected}" + (f" ({source})" if source else "")


def refuse(mistakes: list[str]) -> None:
    """
    Raise if there are any.

    Raises:
        ConfigError: With every one of them, a line each.
    """
    if len(mistakes) == 1:
        raise ConfigError(without_passwords(mistakes[0]))
    if mistakes:
        lines = "".join(f"\n  {text}" for text in mistakes)
        raise ConfigError(without_passwords(f"{len(mistakes)} settings cannot work:{lines}"))
