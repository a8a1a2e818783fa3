"""The checks, in the order in which one depends on the other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg import sql

from worker import clock
from worker.cli.database import connect
from worker.cli.doctor.statements import (
    READ_BACKEND,
    READ_BLOAT,
    READ_CLOCK,
    READ_ORPHANS,
    READ_RIGHTS,
    READ_SCHEDULES,
    READ_UNKNOWN,
    READ_VERSION,
    READ_WORKERS,
)
from worker.config import Config, as_text
from worker.errors import DatabaseUnavailable, SchemaError, WorkerError
from worker.queue.broker import postgres_broker
from worker.queue.horizon import find_holders
from worker.queue.schema import Schema
from worker.runtime.budget import Budget
from worker.runtime.modules import load
from worker.secrecy import redacted
from worker.settings import DEFAULT, Settings

_OLDEST, _NEWEST = 14, 18
_LISTEN_TIMEOUT = 2.0
_SKEW, _GREAT_SKEW = 1.0, 30.0
_LONG, _VERY_LONG = 300.0, 3600.0
_DEAD_ROWS = 50_000
# A live worker confirms its schedules every few seconds.
_UNCONFIRMED = 60.0


class Finding(NamedTuple):
    """What one check says, and what to do about it."""

    check: str
    state: Literal["ok", "warn", "fail"]
    says: str
    remedy: str = ""


class Patient(NamedTuple):
    """What is looked at: a connection of the doctor's own, and the settings of a worker that would start here."""

    conn: psycopg.Connection
    config: Config
    schema: Schema

    def ask(self, statement: Any, **parameters: Any) -> tuple[Any, ...]:
        return self.all(statement, **parameters)[0]

    def all(self, statement: Any, **parameters: Any) -> list[tuple[Any, ...]]:
        return self.conn.execute(self.schema.render(statement).encode(), parameters or None).fetchall()

    def another(self) -> psycopg.Connection:
        return connect(self.config.session_url, name="worker doctor")


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding; after one that makes the next checks pointless, those are left out."""
    config = settings.config
    yield look_at_settings(settings)
    yield look_at_jobs(config)
    schema = Schema(config.schema)
    started = clock.monotonic()
    try:
        conn = connect(config.session_url, name="worker doctor")
    except DatabaseUnavailable as exc:
        remedy = "check host, port, user and password, and that the server lets this machine in (pg_hba.conf)"
        yield Finding("database", "fail", " ".join(str(exc).split()), remedy)
        return
    took = (clock.monotonic() - started) * 1000
    yield Finding("database", "ok", f"{redacted(config.session_url)} answers in {took:.0f} ms")
    with conn:
        patient = Patient(conn, config, schema)
        for check in (look_at_version, look_at_pooler, look_at_listen, look_at_clock):
            yield _guarded(check, patient)
        yield (found := _guarded(look_at_schema, patient))
        yield _guarded(look_at_horizon, patient)
        if found.state == "ok":
            for check in (
                look_at_rights,
                look_at_budget,
                look_at_workers,
                look_at_bloat,
                look_at_orphans,
                look_at_actors,
                look_at_schedules,
            ):
                yield _guarded(check, patient)


def _guarded(check: Callable[[Patient], Finding], patient: Patient) -> Finding:
    """A check that fails by itself is a finding, not the end of the visit."""
    try:
        return check(patient)
    except psycopg.Error as exc:
        name = check.__name__.removeprefix("look_at_")
        return Finding(name, "fail", f"could not be looked at: {' '.join(str(exc).split())}")


def look_at_settings(settings: Settings) -> Finding:
    given = [row for row in settings.shown() if row["origin"] != DEFAULT]
    told = "; ".join(f"{row['setting']} = {as_text(row['value'])} ({row['origin']})" for row in given)
    return Finding("settings", "ok", f"{told}; the rest are defaults, see 'worker config show'")


def look_at_jobs(config: Config) -> Finding:
    modules = ", ".join(config.jobs)
    try:
        load(config.jobs)
        actors, queues = len(set(postgres_broker().actors.values())), sorted(postgres_broker().get_declared_queues())
    except WorkerError as exc:
        return Finding("jobs", "fail", str(exc), "correct the module, or name others with --jobs or WORKER_JOBS")
    if not actors:
        return Finding("jobs", "fail", f"no job is declared in {modules}", "name others with --jobs or WORKER_JOBS")
    return Finding("jobs", "ok", f"{actors} actors in {modules}, on the queues {', '.join(queues)}")


def look_at_version(patient: Patient) -> Finding:
    number, version, standby = patient.ask(READ_VERSION)
    if standby:
        return Finding("version", "fail", f"PostgreSQL {version}, a standby that takes no writes", "name the primary")
    major = number // 10_000
    if major < _OLDEST:
        return Finding("version", "fail", f"PostgreSQL {version}: too old", f"upgrade to {_OLDEST} or newer")
    if major > _NEWEST:
        return Finding("version", "warn", f"PostgreSQL {version}: newer than what was tested ({_OLDEST} to {_NEWEST})")
    return Finding("version", "ok", f"PostgreSQL {version}")


def look_at_pooler(patient: Patient) -> Finding:
    """A pooler makes up the number of the session; in transaction mode it lends one server session to two clients."""
    (mine,) = patient.ask(READ_BACKEND)
    if mine == patient.conn.info.backend_pid and patient.config.direct_url:
        return _look_through_pooler(patient.config.database_url)
    if mine == patient.conn.info.backend_pid:
        return Finding("pooler", "ok", "none between here and the server")
    with patient.another() as other, other.transaction():
        (others,) = other.execute(READ_BACKEND).fetchone() or (None,)
    remedy = "set WORKER_DIRECT_URL, for the runtime's own session, to a URL that leads to the server itself"
    if others == mine:
        says = "a pooler in transaction mode, through which no session can listen, hold a lease or be closed properly"
        return Finding("pooler", "fail", says, remedy)
    return Finding("pooler", "warn", "a pooler: how many sessions exist, and when they end, is its decision", remedy)


def _look_through_pooler(url: str) -> Finding:
    """WORKER_DIRECT_URL leads to the server itself; jobs take the other way."""
    try:
        connect(url, name="worker doctor").close()
    except DatabaseUnavailable as exc:
        return Finding("pooler", "fail", " ".join(str(exc).split()), "correct WORKER_DATABASE_URL, which jobs use")
    return Finding("pooler", "ok", f"jobs use {redacted(url)}, the runtime's own session leads to the server itself")


def look_at_listen(patient: Patient) -> Finding:
    channel = sql.Identifier(f"worker_doctor_{secrets.token_hex(8)}")
    patient.conn.execute(sql.SQL("LISTEN {}").format(channel))
    started = clock.monotonic()
    try:
        with patient.another() as other:
            other.execute(sql.SQL("NOTIFY {}").format(channel))
        heard = list(patient.conn.notifies(timeout=_LISTEN_TIMEOUT, stop_after=1))
    finally:
        patient.conn.execute(sql.SQL("UNLISTEN {}").format(channel))
    if not heard:
        says = f"a notification did not arrive within {_LISTEN_TIMEOUT:g} s; jobs start up to 2 s late"
        return Finding("listen", "fail", says, "use a URL that leads to the server itself, without a pooler")
    return Finding("listen", "ok", f"a notification takes {(clock.monotonic() - started) * 1000:.0f} ms")


def look_at_clock(patient: Patient) -> Finding:
    before = clock.now()
    (theirs,) = patient.ask(READ_CLOCK)
    after = clock.now()
    half = (after - before) / 2
    skew = (theirs - (before + half)) / timedelta(seconds=1)
    says = f"the server's clock differs by {abs(skew):.3f} s"
    sure = abs(skew) - half / timedelta(seconds=1)
    if sure < _SKEW:
        return Finding("clock", "ok", says)
    ahead = "ahead of" if skew > 0 else "behind"
    says = f"the server is {abs(skew):.1f} s {ahead} this machine: schedules look at their ticks that much off"
    return Finding("clock", "fail" if sure > _GREAT_SKEW else "warn", says, "let both be set by NTP")


def look_at_schema(patient: Patient) -> Finding:
    try:
        patient.schema.check(patient.conn)
    except SchemaError as exc:
        says, _, remedy = str(exc).rpartition(": ")
        return Finding("schema", "fail", says, remedy)
    version, serves = patient.schema.version(patient.conn)
    return Finding("schema", "ok", f"{patient.schema.name!r} has version {version}, for workers from {serves} on")


def look_at_rights(patient: Patient) -> Finding:
    role, usage, create, foreign = patient.ask(READ_RIGHTS, schema=patient.schema.name)
    name = patient.schema.name
    if not (usage and create):
        lacks = "USAGE" if not usage else "CREATE"
        return Finding("rights", "fail", f"role {role} lacks {lacks} on schema {name!r}",
                       f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role}")  # fmt: skip
    if foreign:
        says = f"role {role} does not own {', '.join(foreign[:3])}{' and others' if len(foreign) > 3 else ''}"
        return Finding("rights", "fail", says, "run workers and 'worker migrate' as one role, or make it a member")
    return Finding("rights", "ok", f"role {role} owns the tables and may make partitions")


def look_at_budget(patient: Patient) -> Finding:
    budget = Budget.read(patient.conn, patient.schema)
    mine = patient.config.pool_size
    says = (
        f"{budget.workers} live workers hold up to {budget.pools} sessions, one more of pool size {mine} makes"
        f" {budget.pools + mine} of {budget.limit} that the server gives"
    )
    if mine > budget.limit:
        return Finding("budget", "fail", says, "make the pool smaller, or max_connections larger")
    if budget.pools + mine > budget.limit:
        return Finding("budget", "warn", says, "make the pools smaller, run fewer workers, or raise max_connections")
    return Finding("budget", "ok", says)


def look_at_workers(patient: Patient) -> Finding:
    (alive,) = patient.ask(READ_WORKERS)
    if not alive:
        return Finding("workers", "warn", "no worker is alive", "start one with 'worker run'")
    return Finding("workers", "ok", f"{alive} alive")


def look_at_horizon(patient: Patient) -> Finding:
    holders = [one for one in find_holders(patient.conn) if one.seconds is None or one.seconds > _LONG]
    if not holders:
        return Finding("horizon", "ok", f"nobody has kept dead rows from being vacuumed for {_LONG:g} s")
    oldest = holders[0]
    age = f" for {oldest.seconds:.0f} s" if oldest.seconds is not None else ""
    more = f", and {len(holders) - 1} more" if len(holders) > 1 else ""
    says = (
        f"{oldest} keeps dead rows from being vacuumed{age}, through {oldest.transactions} transactions{more}:"
        " the tables grow"
    )
    state: Literal["warn", "fail"] = "fail" if oldest.seconds is not None and oldest.seconds > _VERY_LONG else "warn"
    return Finding("horizon", state, says, oldest.remedy)


def look_at_bloat(patient: Patient) -> Finding:
    live, dead, size, vacuumed = patient.ask(READ_BLOAT, table=f"{patient.schema.name}.job")
    ago = "never vacuumed" if vacuumed is None else f"vacuumed {vacuumed:.0f} s ago"
    says = f"{live} live and {dead} dead rows in {size / 2**20:.1f} MiB, {ago}"
    if dead > _DEAD_ROWS and dead > 2 * live:
        remedy = f"look at 'horizon' first, then VACUUM {patient.schema.name}.job"
        return Finding("bloat", "warn", says, remedy)
    return Finding("bloat", "ok", says)


def look_at_orphans(patient: Patient) -> Finding:
    orphans, seconds = patient.ask(READ_ORPHANS)
    if not orphans:
        return Finding("orphans", "ok", "every running job has a worker that lives")
    (alive,) = patient.ask(READ_WORKERS)
    says = f"{orphans} running jobs, the oldest for {seconds:.0f} s, belong to no live worker"
    if not alive:
        return Finding("orphans", "warn", says, "start a worker: it takes them over within seconds")
    remedy = "if this stays for a minute, look for 'worker.rescued' and errors in the log of the workers"
    return Finding("orphans", "fail", says, remedy)


def look_at_schedules(patient: Patient) -> Finding:
    still = patient.all(READ_SCHEDULES, seconds=_UNCONFIRMED)
    if not still:
        return Finding("schedules", "ok", "every schedule is declared by a worker that lives, and none is paused")
    told = ", ".join(f"{name} (paused)" if paused else f"{name} (for {ago:.0f} s)" for name, paused, ago in still[:5])
    more = f" and {len(still) - 5} more" if len(still) > 5 else ""
    says = f"schedules that do not tick, paused or declared by no worker: {told}{more}"
    return Finding("schedules", "warn", says, "resume them, or start a worker whose modules declare them")


def look_at_actors(patient: Patient) -> Finding:
    try:
        known = list(postgres_broker().actors)
    except WorkerError:
        known = []
    unknown = patient.all(READ_UNKNOWN, actors=known)
    if not unknown:
        return Finding("actors", "ok", "every waiting job is one that the modules here declare")
    told = ", ".join(f"{actor} ({number})" for actor, number in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    says = f"waiting jobs that the modules here do not declare: {told}{more}"
    return Finding("actors", "warn", says, "deploy or name the modules that declare them, or delete the jobs")
