"""A small disk of one's own, which can be filled to the last byte."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CLONE_NEWNS = 0x20000
_CHUNK = 1 << 20
_PAGE = 4096


class Disk:
    """What is under *folder*, of limited size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no free byte. Again takes what has become free since."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (_CHUNK, _PAGE):
                with suppress(OSError):
                    while filler.write(b"\0" * size) == size:
                        pass

    def free(self) -> None:
        """Give it all back."""
        self._filler.unlink(missing_ok=True)


def is_possible() -> bool:
    """Whether this process may mount a disk."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@contextmanager
def small_disk(folder: Path, *, mebibytes: int) -> Iterator[Disk]:
    """
    A disk of *mebibytes* mounted on *folder*, gone at the end.

    Only this process and those that it starts see it: the calling thread gets a view of the mounts of its own, as does
    every thread that it starts from here on. So nothing is left of it however they end.

    Raises:
        OSError: It is not allowed; see `is_possible`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "a view of the mounts of one's own is not allowed")
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", f"size={mebibytes}m,mode=711", "none", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(done.returncode, done.stderr.strip())
