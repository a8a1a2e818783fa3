"""The account that the server runs as: ours, or an ordinary one when we are root, as Postgres refuses root."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from worker.errors import EmbeddedError

UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An ordinary account; `dropped` says that we are root and must become it."""

    name: str
    uid: int
    gid: int
    dropped: bool

    def can_enter(self, folder: Path) -> bool:
        """Whether every folder down to *folder* may be searched by this account, judged by mode bits."""
        return not self.dropped or all(self._allowed(part, stat.S_IXUSR) for part in (folder, *folder.parents))

    def can_read(self, file: Path) -> bool:
        return not self.dropped or (self._allowed(file, stat.S_IRUSR) and self.can_enter(file.parent))

    def _allowed(self, path: Path, owner_bit: int) -> bool:
        found = path.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & owner_bit)
        if found.st_gid == self.gid:
            return bool(found.st_mode & owner_bit >> 3)
        return bool(found.st_mode & owner_bit >> 6)


def server_account() -> Account:
    """
    Return the account for the server: the caller's, or for root the first of `postgres` and `nobody`.

    Raises:
        EmbeddedError: We are root and the system has neither.
    """
    uid = os.geteuid()
    if uid != 0:
        return Account(_name(uid), uid, os.getegid(), dropped=False)
    for name in UNPRIVILEGED:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, found.pw_uid, found.pw_gid, dropped=True)
    raise EmbeddedError(
        f"Postgres refuses to run as root, and this system has no account named {' or '.join(UNPRIVILEGED)};"
        " run as an ordinary user"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # usual in containers that run under a bare number
        return str(uid)
