"""What is to know about one file: its status, and for one that could be read its size, digest and media type."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from mimetypes import MimeTypes

from jobs.paths import to_text

CHUNK = 256 * 1024

# Built-in types only: /etc/mime.types differs from machine to machine.
_MEDIA_TYPES = MimeTypes(())
_MEDIA_TYPES_OF_ENCODINGS = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
# The worker's trouble, not the file's: the job must fail and run again.
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """
    One file as it was found.

    Args:
        status: "ok" (all other fields but *detail* are set), "link", "special" (pipe, socket, device or folder),
            "unreadable", "vanished", or "changed" (while it was read).
        inode: Device and inode number, the same for hard links to one file.
        detail: The link's target, the kind of special file, or why the file was not read.
    """

    status: str
    size: int | None = None
    digest: bytes | None = None
    media_type: str | None = None
    inode: str | None = None
    detail: str | None = None


def examine(path: bytes) -> Content:
    """
    Read the file at *path* in chunks; never follows a symbolic link, never waits for a pipe or a device.

    Raises:
        OSError: Out of memory or file handles; anything that is wrong with the file itself is a status.
    """
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return Content(status="link", detail=to_text(os.readlink(path)))
        if not stat.S_ISREG(mode):
            return Content(status="special", detail=_kind(mode))
        return _read(path)
    except OSError as exc:
        return unread(exc)


def unread(error: OSError) -> Content:
    """The status of a file or folder that gave *error*; raises the error again when it is not the file's."""
    if error.errno in _OURS:
        raise error
    return Content(status="vanished" if error.errno in _GONE else "unreadable", detail=error.strerror)


def _read(path: bytes) -> Content:
    # The file may have been replaced since it was looked at: still no link is followed and no pipe waited for.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        before = os.fstat(file)
        if not stat.S_ISREG(before.st_mode):
            return Content(status="special", detail=_kind(before.st_mode))
        digest, size = hashlib.sha256(), 0
        head = chunk = os.read(file, CHUNK)
        # A file that grows as fast as it is read has no end: past the size it began with it is known to change.
        while chunk and size <= before.st_size:
            digest.update(chunk)
            size += len(chunk)
            chunk = os.read(file, CHUNK)
        after = os.fstat(file)
    finally:
        os.close(file)
    if (size, size, before.st_mtime_ns) != (before.st_size, after.st_size, after.st_mtime_ns):
        return Content(status="changed", detail="Written to while it was read")
    return Content(
        status="ok",
        size=size,
        digest=digest.digest(),
        media_type=_media_type(path, head),
        inode=f"{before.st_dev}:{before.st_ino}",
    )


def _media_type(path: bytes, head: bytes) -> str:
    guess, encoding = _MEDIA_TYPES.guess_type(os.fsdecode(path))
    if encoding:
        return _MEDIA_TYPES_OF_ENCODINGS.get(encoding, "application/octet-stream")
    if guess:
        return guess
    return "text/plain" if _is_text(head) else "application/octet-stream"


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        # Incremental, because the chunk may end in the middle of a character.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "folder" if stat.S_ISDIR(mode) else "unknown")
