"""Where a server keeps its files: what the caller named, and what must lie elsewhere to work at all."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from worker.embedded import shelter
from worker.embedded.account import Account
from worker.errors import EmbeddedError

SUPERVISOR_SOCKET = "supervisor.sock"
USER = "worker"
DATABASE = "postgres"
PORT = 5432  # only a part of the socket's name: nothing listens on TCP

# sockaddr_un holds 103 bytes on macOS, 107 on Linux; what is left for the folder of `/supervisor.sock`.
MAX_SOCKETS_BYTES = 103 - len(f"/{SUPERVISOR_SOCKET}")
# Postgres and libpq read commas, quotes and blanks in a socket folder's name as syntax.
PLAIN_PATH = re.compile(r"[\w./+-]+", re.ASCII)
# The same for every process of the machine: TMPDIR and XDG_RUNTIME_DIR differ between sessions of one user.
SHORT = Path("/tmp")  # noqa: S108  (folders in it are made 0700 and checked, see `_make_private`)


@dataclass(frozen=True)
class Places:
    """The folders and files of one server. `folder` names it; the others are where they have to be."""

    folder: Path
    data: Path
    sockets: Path

    @classmethod
    def of(cls, folder: Path, account: Account) -> Places:
        """
        Return the places that belong to *folder*, the same for every caller with the same rights; makes *folder*.

        Raises:
            EmbeddedError: *folder* cannot be made or written.
        """
        folder = Path(os.path.realpath(folder))
        _make_folder(folder, account)
        home = folder if account.can_enter(folder) else shelter.folder() / shelter.digest(folder)
        sockets = home / "run"
        if len(os.fsencode(sockets)) > MAX_SOCKETS_BYTES or not PLAIN_PATH.fullmatch(str(sockets)):
            sockets = SHORT / f"carpool-run-{os.geteuid()}-{shelter.digest(folder)}"
        return cls(folder, home / "data", sockets)

    @property
    def lock(self) -> Path:
        """Whoever holds a flock on this is the folder's only supervisor."""
        return self.folder / "supervisor.lock"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def supervisor(self) -> Path:
        return self.sockets / SUPERVISOR_SOCKET

    @property
    def url(self) -> str:
        # Everything is said, so that PGPORT, PGUSER and the like of a caller's environment change nothing.
        return f"postgresql://{USER}@/{DATABASE}?host={quote(str(self.sockets))}&port={PORT}"

    def make(self, account: Account) -> None:
        """Make the folders of the server, private to *account*."""
        if self.data.parent != self.folder:
            shelter.make_passage(self.data.parent)
        _make_private(self.sockets, account)

    def remove_sockets(self) -> None:
        """Delete the socket folder, which may lie in a folder that everybody shares."""
        shutil.rmtree(self.sockets, ignore_errors=True)

    def remove(self) -> None:
        """Delete everything. Harmless when it is gone already."""
        for place in {self.sockets, self.data, self.data.parent, self.folder}:
            shutil.rmtree(place, ignore_errors=True)


def _make_folder(folder: Path, account: Account) -> None:
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if account.dropped:
                folder.chmod(0o711)  # the server passes through; its own folders inside are 0700
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as exc:
        raise EmbeddedError(
            f"folder {folder} for embedded Postgres cannot be made: {exc.strerror}; name a folder that you may write"
        ) from exc
    if not writable:
        raise EmbeddedError(f"folder {folder} for embedded Postgres cannot be written; name one that you may write")


def _make_private(folder: Path, account: Account) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    # Root's still, when it is new, or when the one who made it was killed before this line.
    if account.dropped and folder.lstat().st_uid == os.geteuid():
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    shelter.refuse_foreign(folder, account.uid, 0o077)
