"""The servers of the comparison, started for it alone: Postgres, and Redis where it is installed."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests.waiting import wait_until
from worker import embedded

_PATIENCE = 90.0


class Store(NamedTuple):
    store: str
    version: str
    url: str
    pid: int


REDIS_SETTINGS = {"appendonly": "yes", "appendfsync": "everysec"}


@contextmanager
def postgres() -> Iterator[Store]:
    """
    URL of a Postgres with fsync and synchronous_commit on, as they are by default.

    It can count statements but does not, unless a database asks for it.
    """
    with tempfile.TemporaryDirectory(prefix="carpool-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        data = Path(folder, "postgres")
        with embedded.start(data, grace=0) as server, psycopg.connect(server.url, autocommit=True) as conn:
            if conn.execute("SELECT name FROM pg_available_extensions WHERE name = 'pg_stat_statements'").fetchone():
                conn.execute("ALTER SYSTEM SET shared_preload_libraries = pg_stat_statements")
                conn.execute("ALTER SYSTEM SET pg_stat_statements.track = none")
            process = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert process is not None
        wait_until(lambda: not Path(f"/proc/{process[0]}").exists(), _PATIENCE, "the end of Postgres")
        with embedded.start(data, grace=0) as server:
            yield Store("Postgres", server.version, server.url, process[0])


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


OTHERS: dict[str, Callable[[], AbstractContextManager[Store | None]]] = {"redis": redis}


def flush_redis(url: str) -> None:
    client_module = importlib.import_module("redis")  # only needed where a side needs it too
    client_module.Redis.from_url(url).flushall()


def database_url(server: str, name: str) -> str:
    """The URL of the database *name* on *server*, whose URL has a user and no host: it is a socket's."""
    url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    return url if "://" in url else url.replace("postgresql:/", "postgresql:///", 1)


def _version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found.group() if found else said.strip()
