"""Two addresses, of which one at a time has the server; it can be restarted, and move to the other as in a failover."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, LiteralString

import psycopg

from worker.embedded import binaries, shelter
from worker.embedded.account import server_account
from worker.embedded.places import USER, Places
from worker.embedded.postgres import Postgres

_PATIENCE = 60.0
_LOOK = 0.02
_RECOVERS_WITHIN = 5.0
# What was committed must be there after a crash, and before a failover at the standby; only for the machine's own end,
# which nobody tests here, nothing is done. Little is kept, so that a small disk is enough.
_SETTINGS = {
    "synchronous_commit": "on",
    "max_connections": "40",
    "max_wal_size": "96MB",
    "min_wal_size": "32MB",
    "wal_retrieve_retry_interval": "200ms",
    "wal_receiver_status_interval": "1s",
}
_IS_SYNCHRONOUS: LiteralString = "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"


class Node(Postgres):
    """A server at one of the addresses."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        account = server_account()
        places = Places.of(folder, account)
        places.make(account)
        super().__init__(shelter.readable(binaries.find(), account), places, account, fast=True)
        self.url = places.url
        self._log = log

    def begin(self) -> None:
        self.start(self._log)

    def crash(self) -> None:
        """End at once, without a goodbye to anybody."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_PATIENCE)

    def copy(self, other: Node) -> None:
        """Become a standby of *other*: its data, from there on what it writes."""
        self.forget()
        self.places.data.mkdir(mode=0o700)
        if self.account.dropped:
            os.chown(self.places.data, self.account.uid, self.account.gid)
        command = [str(self.binaries.folder / "pg_basebackup"), "--wal-method=stream", "--write-recovery-conf"]
        command += ["--checkpoint=fast", "--no-sync", f"--host={other.places.sockets}", f"--username={USER}"]
        copying = self._spawn([*command, f"--pgdata={self.places.data}"], self._log)
        if copying.wait(_PATIENCE) != 0:
            raise AssertionError(f"pg_basebackup failed with exit code {copying.returncode}; see the server's log")

    def forget(self) -> None:
        shutil.rmtree(self.places.data, ignore_errors=True)

    def _arguments(self) -> list[str]:
        return [
            *super()._arguments(),
            *(part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")),
        ]


class Pair:
    """The server, at the one address or the other; all of it from the main thread, with whose end it ends too."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self._nodes = [Node(folder / name, log) for name in ("a", "b")]
        self._nodes[0].begin()

    @property
    def addresses(self) -> list[str]:
        return [node.url for node in sorted(self._nodes, key=lambda node: node.url)]

    @property
    def url(self) -> str:
        """Where it is now."""
        return self._nodes[0].url

    def start(self) -> None:
        self._nodes[0].begin()

    def stop(self) -> None:
        self._nodes[0].stop()

    def crash(self) -> None:
        self._nodes[0].crash()

    def restart(self, *, immediate: bool, down: float = 0.0) -> None:
        """Sessions get a goodbye from a fast shutdown; from an immediate one hardly. It is *down* for some seconds."""
        if immediate:
            self.crash()
        else:
            self.stop()
        time.sleep(down)
        self.start()

    def wait(self) -> None:
        """
        Until it takes connections again, as an operator would see to it.

        One whose crash recovery found no room ends, or stays as it is for ever: it is started anew.
        """
        try:
            _wait(self._answers, "the server to take connections", _RECOVERS_WITHIN)
        except AssertionError:
            self.crash()
            _wait(self._answers, "the server to take connections")

    def _answers(self) -> bool:
        if not self._nodes[0].running:
            self.start()
        with psycopg.connect(self.url):
            return True

    def prepare(self) -> None:
        """A standby at the other address, without which nothing is committed any more."""
        node, standby = self._nodes
        standby.copy(node)
        standby.begin()
        with psycopg.connect(node.url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            conn.execute("SELECT pg_reload_conf()")
            _wait(lambda: bool(_value(conn, _IS_SYNCHRONOUS)), "the standby to follow")

    def move(self) -> None:
        """The server of `prepare` dies, and its standby takes over."""
        self._nodes[0].crash()
        self._nodes.reverse()
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute("SELECT pg_promote()")
            _wait(lambda: not _value(conn, "SELECT pg_is_in_recovery()"), "the standby to take over")
        self._nodes[1].forget()

    def remove(self) -> None:
        for node in self._nodes:
            node.stop()
            node.places.remove()


@contextmanager
def pair(folder: Path, log: IO[bytes]) -> Iterator[Pair]:
    """A pair in *folder*, gone at the end."""
    both = Pair(folder, log)
    try:
        yield both
    finally:
        both.remove()


def _wait(look: Callable[[], object], what: str, patience: float = _PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with suppress(psycopg.OperationalError):
            if look():
                return
        time.sleep(_LOOK)
    raise AssertionError(f"waited {patience:g} s for {what}")


def _value(conn: psycopg.Connection, query: LiteralString) -> object:
    row = conn.execute(query).fetchone()
    return None if row is None else row[0]
