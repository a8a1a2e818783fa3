"""One Postgres server as a direct child process: make its data, start it, stop it, and stop what a crash left."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any

from worker.embedded import postmaster
from worker.embedded.account import Account
from worker.embedded.binaries import Binaries
from worker.embedded.places import PORT, USER, Places
from worker.errors import EmbeddedError

INITDB_TIMEOUT = 40.0
READY_TIMEOUT = 40.0  # a crash recovery of a small database, on a slow disk
FAST_STOP_TIMEOUT = 10.0
IMMEDIATE_STOP_TIMEOUT = 5.0
POLL = 0.02

INITDB = ["--auth=trust", f"--username={USER}", "--no-locale", "--encoding=UTF8"]
SETTINGS = {
    "listen_addresses": "",  # whoever can enter the socket folder may connect; nobody else, as there is no TCP
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",  # the log is our standard error
}
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# Looked up before any fork: once the child has become `nobody`, it cannot import from a Python in a closed home.
_prctl: Callable[..., int] | None = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class Postgres:
    """A server on *places*, run as *account*. `start` from the main thread of a process that lives on."""

    def __init__(self, binaries: Binaries, places: Places, account: Account, *, fast: bool) -> None:
        self.binaries = binaries
        self.places = places
        self.account = account
        self.fast = fast
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, log: IO[bytes]) -> None:
        """
        Make the data folder if there is none, start the server and wait until it takes connections.

        Raises:
            EmbeddedError: It did not start; the server's own reason is in *log*.
        """
        self._check_owner()
        postmaster.stop_leftover(self.places.data)
        if not self.places.data.exists():
            self._make_data(log)
        self._process = self._spawn([str(self.binaries.folder / "postgres"), *self._arguments()], log)
        self._wait_ready()

    def stop(self) -> None:
        """Fast shutdown: clients are disconnected, everything is on disk. Harder after a while. Twice is harmless."""
        if self._process is None:
            return
        for how, patience in ((signal.SIGINT, FAST_STOP_TIMEOUT), (signal.SIGQUIT, IMMEDIATE_STOP_TIMEOUT)):
            self._process.send_signal(how)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            return
        self._process.kill()
        self._process.wait(IMMEDIATE_STOP_TIMEOUT)

    def _check_owner(self) -> None:
        data = self.places.data
        if data.exists() and data.stat().st_uid != self.account.uid:
            raise EmbeddedError(
                f"data folder {data} belongs to user id {data.stat().st_uid}, but this server would run as"
                f" {self.account.name} ({self.account.uid}); name another folder, or remove {self.places.folder}"
            )

    def _make_data(self, log: IO[bytes]) -> None:
        # Beside its place and renamed when complete, so that a kill in the middle leaves no half-made data folder.
        unfinished = self.places.data.with_name("data.unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        if self.account.dropped:
            os.chown(unfinished, self.account.uid, self.account.gid)
        command = [str(self.binaries.folder / "initdb"), *INITDB, f"--pgdata={unfinished}"]
        initdb = self._spawn([*command, "--no-sync"] if self.fast else command, log)
        try:
            code = initdb.wait(INITDB_TIMEOUT)
        except subprocess.TimeoutExpired as exc:
            initdb.kill()
            initdb.wait(IMMEDIATE_STOP_TIMEOUT)
            raise EmbeddedError(f"initdb did not finish {unfinished} within {INITDB_TIMEOUT:g} s") from exc
        if code != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise EmbeddedError(f"initdb failed with exit code {code}")
        unfinished.rename(self.places.data)

    def _arguments(self) -> list[str]:
        settings = {"unix_socket_directories": str(self.places.sockets), **SETTINGS, **(FAST if self.fast else {})}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return ["-D", str(self.places.data), "-p", str(PORT), *options]

    def _spawn(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        become: dict[str, Any] = {}
        if self.account.dropped:
            become = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        try:
            return subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",  # the server's account may not be allowed where we are
                env=_environment(),
                preexec_fn=_die_with_this_process(),  # runs after `user`, which would clear the death signal
                **become,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise EmbeddedError(f"{command[0]} could not be run as {self.account.name}: {exc}") from exc

    def _wait_ready(self) -> None:
        assert self._process is not None  # noqa: S101  (for mypy)
        deadline = time.monotonic() + READY_TIMEOUT
        while not postmaster.is_ready(self.places.data, self._process.pid):
            if not self.running:
                raise EmbeddedError(f"the server ended at once with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"the server was not ready within {READY_TIMEOUT:g} s")
            time.sleep(POLL)


def _environment() -> dict[str, str]:
    # PGPORT, PGDATA and their like are meant for another server. macOS refuses to start one without a valid locale.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C"}


def _die_with_this_process() -> Callable[[], None] | None:
    """
    Have the kernel send the child a fast shutdown when this process dies, however it dies (Linux only, prctl(2)).

    The signal follows the *thread* that forked, so that thread must live as long as the process. Elsewhere a server
    outlives a killed supervisor until the next start on its folder, see `postmaster.stop_leftover`.
    """
    if _prctl is None:
        return None
    prctl, parent, getppid, leave = _prctl, os.getpid(), os.getppid, os._exit

    def ask_for_the_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if getppid() != parent:  # died before we could ask
            leave(1)

    return ask_for_the_signal
