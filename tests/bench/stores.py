"""The servers of the comparison, started for it alone: Postgres, and Redis and RabbitMQ where they are installed."""

from __future__ import annotations

import importlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from tests.bench.network import free_port
from tests.waiting import wait_until
from worker import embedded

_PATIENCE = 90.0


class Store(NamedTuple):
    store: str
    version: str
    url: str
    pid: int
    log: Path | None = None


REDIS_SETTINGS = {"appendonly": "yes", "appendfsync": "everysec"}


@contextmanager
def postgres(**settings: str) -> Iterator[Store]:
    """
    URL of a Postgres with fsync and synchronous_commit on, as they are by default, and *settings*.

    It can count statements but does not, unless a database asks for it. From here on SIGTERM ends the program like
    Ctrl-C does, so that no server is left behind.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="carpool-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        data = Path(folder, "postgres")
        with embedded.start(data, grace=0) as server, psycopg.connect(server.url, autocommit=True) as conn:
            if conn.execute("SELECT name FROM pg_available_extensions WHERE name = 'pg_stat_statements'").fetchone():
                conn.execute("ALTER SYSTEM SET shared_preload_libraries = pg_stat_statements")
                conn.execute("ALTER SYSTEM SET pg_stat_statements.track = none")
            for name, value in settings.items():
                conn.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), value))
            process = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert process is not None
        wait_until(lambda: not Path(f"/proc/{process[0]}").exists(), _PATIENCE, "the end of Postgres")
        with embedded.start(data, grace=0) as server:
            yield Store("Postgres", server.version, server.url, process[0], server.folder / "server.log")


@contextmanager
def redis() -> Iterator[Store | None]:
    """URL of a Redis on a socket, which writes its log of commands to disk each second; None if not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="carpool-bench-") as folder:
        path = Path(folder, "redis.sock")
        settings = {"port": "0", "unixsocket": str(path), "dir": folder, "save": "", **REDIS_SETTINGS}
        command = [binary, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until(path.exists, _PATIENCE, "Redis")
            yield Store("Redis", _version([binary, "--version"]), f"unix://{path}", server.pid)
        finally:
            server.terminate()
            server.wait(_PATIENCE)


@contextmanager
def rabbitmq() -> Iterator[Store | None]:
    """
    A RabbitMQ as it comes, with folders, ports and a name service of its own; None if not installed.

    One that serves somebody else on this machine is neither asked nor touched.
    """
    binary, names = shutil.which("rabbitmq-server", path=_RABBITMQ), shutil.which("epmd")
    if binary is None or names is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="carpool-bench-", ignore_cleanup_errors=True) as folder:
        port, names_port = free_port(), free_port()
        node = {
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names_port),
            "RABBITMQ_NODENAME": "bench@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            # Those of the system's own server, which these keep out.
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/none",
        }
        naming = [names, "-address", "127.0.0.1", "-port", str(names_port)]
        with _own_group(naming, {}, folder), _own_group([binary], {**os.environ, **node}, folder):
            greeting = wait_until(lambda: _greeting(port), _PATIENCE, "RabbitMQ")
            pid = int(Path(folder, "pid").read_text())
            yield Store("RabbitMQ", _rabbitmq_version(greeting), f"amqp://guest:guest@127.0.0.1:{port}/", pid)


# Debian's command in the PATH changes to its own account and loses the environment; the script behind it does not.
_RABBITMQ = f"/usr/lib/rabbitmq/bin:{os.environ.get('PATH', '')}"


@contextmanager
def _own_group(command: list[str], environment: dict[str, str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """*command*, in *folder*, as the first of a group of processes, all of which end with the block."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=folder,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _greeting(port: int) -> bytes:
    """What a RabbitMQ says first; nothing while it only listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as conn:
            conn.sendall(b"AMQP\x00\x00\x09\x01")
            return conn.recv(4096)
    except OSError:
        return b""


def _rabbitmq_version(greeting: bytes) -> str:
    found = re.search(rb"versionS.{4}([\d.]+)", greeting, re.DOTALL)
    return found[1].decode() if found else "unknown"


OTHERS: dict[str, Callable[[], AbstractContextManager[Store | None]]] = {"redis": redis, "rabbitmq": rabbitmq}


@contextmanager
def database(db: psycopg.Connection, server: str) -> Iterator[str]:
    """URL of an empty database on *server*, whose administrator *db* is; dropped at the end."""
    name = f"bench_{secrets.token_hex(4)}"
    db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield _database_url(server, name)
    finally:
        db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def flush_redis(url: str) -> None:
    client_module = importlib.import_module("redis")  # only needed where a side needs it too
    client_module.Redis.from_url(url).flushall()


def _database_url(server: str, name: str) -> str:
    """The URL of the database *name* on *server*, whose URL has a user and no host: it is a socket's."""
    url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    return url if "://" in url else url.replace("postgresql:/", "postgresql:///", 1)


def _version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found.group() if found else said.strip()
