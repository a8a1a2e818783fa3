"""
Two workers behind a real PgBouncer in transaction mode: `python -m tests.chaos.pooled [--jobs N]`.

Needs `pgbouncer` (Debian's package of that name; its own daemon is not used). Jobs are sent through it, and one worker
is killed with -9 half way. At the end each job must be done, the effect of each that has a connection be there once,
and the server must never have had more sessions than the pooler's pool, one of each worker, and ours. Exit code 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.chaos.faults.jobs import KINDS, NAME, SCHEMA
from tests.chaos.faults.ledger import AUDITS, audit, count
from worker import bind, embedded
from worker.embedded.account import server_account
from worker.queue.schema import Schema

ROOT = Path(__file__).parents[2]
_SESSIONS = 4
_PATIENCE = 120.0
_LOOK = 0.1
_PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_AUDITED = ("effects missing", "effects doubled", "effects of nothing", "followers missing", "jobs dead", "jobs left")


@contextmanager
def pgbouncer(url: str, folder: Path) -> Iterator[str]:
    """A pooler before the server of *url*; its own URL."""
    server = conninfo_to_dict(url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Path(folder, "pgbouncer.ini")
    settings.write_text(
        f"[databases]\n{server['dbname']} = host={server['host']} port={server['port']} user={server['user']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = {_SESSIONS}\n"
    )
    settings.chmod(0o644)
    account = server_account()
    become = {"user": account.uid, "group": account.gid, "extra_groups": []} if account.dropped else {}
    pooler = subprocess.Popen([str(_PROGRAM), "--quiet", str(settings)], cwd="/", **become)  # type: ignore[call-overload]
    try:
        pooled = f"postgresql://{server['user']}@127.0.0.1:{port}/{server['dbname']}"
        _wait_for(pooled)
        yield pooled
    finally:
        pooler.terminate()
        pooler.wait(_PATIENCE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.pooled", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=1000)
    options = parser.parse_args()
    if _PROGRAM is None:
        sys.exit("pgbouncer is not there: install it")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carpool-pooled-")))
        folder.chmod(0o755)
        server = stack.enter_context(embedded.start(fast=True))
        pooled = stack.enter_context(pgbouncer(server.url, folder))
        conn = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        Schema().migrate(conn)
        conn.execute(SCHEMA)
        workers = [_start(str(number), pooled, server.url, folder, stack) for number in range(2)]
        _send(pooled, options.jobs)
        wrong = _watch(conn, workers[0], options.jobs, 1 + len(workers) + _SESSIONS)
        workers[1].terminate()
        wrong["workers that did not end in order"] = int(workers[1].wait(_PATIENCE) != 0)
        audited = audit(conn, confirmed=())
        wrong |= {name: audited[name] for name in _AUDITED}
    for name, number in wrong.items():
        print(f"{name}: {number}")
    print("something is wrong" if any(wrong.values()) else f"{options.jobs} jobs through the pooler")
    return 1 if any(wrong.values()) else 0


def _start(name: str, pooled: str, direct: str, folder: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "WORKER_DATABASE_URL": pooled, "WORKER_DIRECT_URL": direct, NAME: name}
    log = Path(folder, f"worker-{name}.log").open("wb")  # noqa: SIM115  # closed by the stack
    stack.callback(log.close)
    command = [sys.executable, "-m", "worker", "run", "--jobs", "tests.chaos.faults.jobs", "--pool-size", "8"]
    worker = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
    stack.callback(worker.wait, _PATIENCE)
    stack.callback(worker.kill)
    return worker


def _send(pooled: str, jobs: int) -> None:
    kinds = list(KINDS)
    with psycopg.connect(pooled, prepare_threshold=None) as conn, bind(conn):
        for number in range(1, jobs + 1):
            kind = kinds[number % len(kinds)]
            conn.execute("INSERT INTO sent VALUES (%s, %s)", [number, kind])
            KINDS[kind].send(number)


def _watch(conn: psycopg.Connection, victim: subprocess.Popen[bytes], jobs: int, most_allowed: int) -> dict[str, int]:
    """Until no job is left; half way the victim is killed."""
    deadline, most = time.monotonic() + _PATIENCE, 0
    while (left := count(conn, AUDITS["jobs left"])) and time.monotonic() < deadline:
        if left < jobs / 2:
            victim.kill()
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        most = max(most, count(conn, sessions))
        time.sleep(_LOOK)
    print(f"at most {most} sessions of {most_allowed}")
    return {"sessions over the cap": max(0, most - most_allowed), "workers not killed": int(victim.poll() is None)}


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with suppress(psycopg.OperationalError), psycopg.connect(url):
            return
        time.sleep(_LOOK)
    raise AssertionError(f"waited {_PATIENCE:g} s for the pooler")


if __name__ == "__main__":
    sys.exit(main())
