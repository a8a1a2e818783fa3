"""Start or attach to the embedded Postgres of a folder, and keep it alive by a socket held open."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import worker
from worker.embedded import postmaster
from worker.embedded.account import server_account
from worker.embedded.binaries import Binaries
from worker.embedded.places import Places
from worker.errors import EmbeddedError

START_TIMEOUT = 90.0  # longer than the supervisor's own deadlines, whose messages say more
STOP_TIMEOUT = 20.0
RETRY = 0.05
TAKEN = 75  # see `__main__`, which this module cannot import: it would run
TEMPORARY = "carpool-postgres-"
FORGOTTEN_AFTER = 600.0  # a temporary folder younger than this may be about to get its supervisor


class EmbeddedPostgres:
    """
    A running server that this process is attached to; it runs at least until `close`, or the end of this process.

    Processes that are only handed `url` do not keep the server alive: they attach by `start(folder)` of their own.
    """

    def __init__(self, places: Places, attached: socket.socket, greeting: dict[str, Any], *, temporary: bool) -> None:
        self._places = places
        self._attached = attached
        self._temporary = temporary
        self.url: str = greeting["url"]
        """URL for psycopg and for WORKER_DATABASE_URL: a superuser named `worker`, over a unix socket."""
        found = greeting["binaries"]
        self.binaries = Binaries(Path(found["folder"]), found["version"], found["source"], found["why"])
        """Which binaries serve, and why these."""

    @property
    def folder(self) -> Path:
        """Holds the server's log, and the data unless another account could not reach it there."""
        return self._places.folder

    @property
    def version(self) -> str:
        """PostgreSQL's version, for example `18.6`."""
        return self.binaries.version

    def close(self) -> None:
        """
        Detach. A temporary server that nobody else uses has ended, and its folder is gone, when this returns.

        A server on a named folder ends in the background, after its grace. A second call does nothing.
        """
        if self._attached.fileno() < 0:
            return
        with self._attached:
            # Said on the connection, as a forked child may hold a copy of the socket.
            with suppress(OSError):
                self._attached.shutdown(socket.SHUT_WR)
            if self._temporary:
                self._await_the_end()
        if self._temporary:
            _remove_unless_served(self._places)

    def _await_the_end(self) -> None:
        self._attached.settimeout(STOP_TIMEOUT)
        with suppress(OSError):
            while self._attached.recv(1024):
                pass

    def __enter__(self) -> EmbeddedPostgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self.version} in {self.folder}>"


def start(
    folder: Path | None = None,
    *,
    grace: float = 1.0,
    fast: bool = False,
    binaries: Path | None = None,
) -> EmbeddedPostgres:
    """
    Start a server on *folder*, or attach to the one that runs there; returns when it takes connections.

    Args:
        folder: Keeps data from one start to the next. None: a temporary one, deleted when the last user has gone.
        grace: Seconds that the server outlives its last user; the first starter's holds. A temporary one has none.
        fast: Skip what makes commits survive a power cut; for tests. The first starter's holds.
        binaries: Folder with `postgres` and `initdb` to use instead of the first found.

    Raises:
        EmbeddedError: No binaries, or the server did not start; the message has its log's last lines.
    """
    account = server_account()
    if folder is None:
        _remove_forgotten()
    places = Places.of(folder or Path(tempfile.gettempdir(), TEMPORARY + secrets.token_hex(6)), account)
    options = ["--temporary", "--grace=0"] if folder is None else [f"--grace={grace}"]
    options += ["--fast"] if fast else []
    options += [f"--binaries={binaries.absolute()}"] if binaries else []
    with _removed_if_it_fails(places, temporary=folder is None):
        places.make(account)
        attached, greeting = _attach(places, options)
    return EmbeddedPostgres(places, attached, greeting, temporary=folder is None)


def _attach(places: Places, options: list[str]) -> tuple[socket.socket, dict[str, Any]]:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        greeted = _greeted(places, deadline)
        if greeted is not None:
            return greeted
        if _launch(places, options, deadline) == TAKEN:
            time.sleep(RETRY)  # another starter's is not listening yet, or one is just leaving
    raise EmbeddedError(
        f"embedded Postgres in {places.folder} was not ready within {START_TIMEOUT:g} s; {places.log} may say why"
    )


def _greeted(places: Places, deadline: float) -> tuple[socket.socket, dict[str, Any]] | None:
    """Connect to the supervisor and wait for its word that the server is ready; None when there is none, or no more."""
    attached = socket.socket(socket.AF_UNIX)
    try:
        attached.settimeout(max(deadline - time.monotonic(), RETRY))
        attached.connect(str(places.supervisor))
        line = attached.makefile("rb").readline()
        attached.settimeout(None)
    except (FileNotFoundError, ConnectionError, TimeoutError):
        line = b""
    except OSError as exc:
        attached.close()
        raise EmbeddedError(
            f"cannot attach to the embedded Postgres in {places.folder}: {exc}; only the user that started it may"
        ) from exc
    except BaseException:
        attached.close()
        raise
    if not line:
        attached.close()
        return None
    greeting: dict[str, Any] = json.loads(line)
    if "error" in greeting:
        attached.close()
        raise EmbeddedError(greeting["error"])
    return attached, greeting


def _launch(places: Places, options: list[str], deadline: float) -> int:
    # -P and PYTHONPATH: this very package, and not a `worker` that happens to lie in the current folder.
    package = str(Path(worker.__path__[0]).parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "worker.embedded", "serve", str(places.folder), *options]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,  # Ctrl-C in our terminal must not end the server before we are done with it
            timeout=max(deadline - time.monotonic(), RETRY),
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EmbeddedError(f"the supervisor of {places.folder} could not be started: {exc}") from exc
    if done.returncode not in (0, TAKEN):
        raise EmbeddedError(f"embedded Postgres in {places.folder} did not start: {done.stderr.strip()}")
    return done.returncode


@contextmanager
def _removed_if_it_fails(places: Places, *, temporary: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if temporary:
            _remove_unless_served(places)
        raise


def _remove_forgotten() -> None:
    """Delete temporary folders whose supervisor was killed and whose starter could not clean up either."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError, EmbeddedError):
            found = folder.stat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > FORGOTTEN_AFTER:
                _remove_unless_served(Places.of(folder, server_account()))


def _remove_unless_served(places: Places) -> None:
    """Delete *places* if their supervisor is gone, once the server has gone as well."""
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            lock = stack.enter_context(places.lock.open("rb"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        postmaster.stop_leftover(places.data)
        places.remove()
