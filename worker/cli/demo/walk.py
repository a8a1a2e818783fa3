"""The truth about a folder: a plain walk that shares no code with the jobs it is compared with."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """What one path is: "ok" with size and SHA-256, or "link", "special" or "unreadable" without."""

    status: str
    size: int | None = None
    digest: bytes | None = None


def walk(folder: bytes) -> Iterator[bytes]:
    """Every path that the inventory must hold: all but folders that can be listed and byte-code caches."""
    unlistable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unlistable.append):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if name not in links and name != b"__pycache__"]
        yield from (os.path.join(parent, name) for name in files + links if not name.endswith(b".pyc"))
    for error in unlistable:
        yield os.fsencode(error.filename)


def look(path: bytes) -> Found:
    """What *path* is now."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return Found("link")
        if stat.S_ISDIR(mode):
            return Found("unreadable")
        if not stat.S_ISREG(mode):
            return Found("special")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            return Found("ok", file.tell(), digest)
    except OSError:
        return Found("unreadable")


def truth(folder: bytes) -> dict[bytes, Found]:
    """What every path of *folder* is now."""
    return {path: look(path) for path in walk(folder)}
