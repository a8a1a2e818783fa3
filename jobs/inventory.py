"""
The inventory: `scan` a folder, and one row per file says what it holds.

Why a job per folder, rather than one that walks the whole tree: each transaction stays short however many files
there are, all slots work from the first second, a crash repeats one folder instead of everything, and a folder that
cannot be listed is the trouble of its own job. A folder with very many files is worked off in slices.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from heapq import nsmallest

import psycopg

from jobs.content import Content, examine, unread
from jobs.paths import to_bytes, to_text
from jobs.statements import FORGET_FILE, FORGET_FILES, LIST_FILES, RECORD_FILE
from worker import cron, job

SLICE = 2_000

# Byte-code caches come and go with every Python that runs.
CACHES = b"__pycache__"
CACHED = b".pyc"


@job(queue="inventory", throws=(FileNotFoundError, NotADirectoryError, PermissionError, ValueError))
def scan(conn: psycopg.Connection, folder: str) -> None:
    """
    Start an inventory of *folder*; the jobs that do it exist once this one has committed.

    Args:
        folder: Absolute path, as `jobs.paths.to_text` writes it (most paths are written as they are).
            A folder named by a symbolic link is found, links inside it are recorded and not followed.

    Raises:
        ValueError: The path is relative or not written that way; not tried again.
        OSError: There is no such folder; not tried again.
    """
    path = to_bytes(folder)
    if not os.path.isabs(path):
        raise ValueError(f"folder {folder!r} is relative: a worker runs in a folder of its own, send the whole path")
    path = os.path.realpath(path, strict=True)
    if not os.path.isdir(path):
        raise NotADirectoryError(f"{folder} is not a folder")
    list_folder.send(to_text(path))


@job(queue="inventory")
def list_folder(conn: psycopg.Connection, folder: str, after: str = "") -> None:
    """
    Send a job for each entry of *folder*, for the first `SLICE` of them past the name *after*, and then for the rest.

    A folder that cannot be listed becomes a row; one that was replaced by something else is taken for a file.
    """
    path = to_bytes(folder)
    try:
        entries = _entries(path, to_bytes(after))
    except NotADirectoryError:
        fingerprint.send(folder)
        return
    except OSError as exc:
        _record(conn, folder, unread(exc))
        return
    if not after:
        conn.execute(FORGET_FILE, {"path": folder})  # of a time when this folder was a file, or could not be listed
    with conn.pipeline():  # sends without waiting for the answer to each: twice as fast
        if len(entries) > SLICE:  # first, so that the next slice is sent while this one's files are read
            list_folder.send(folder, to_text(entries[SLICE - 1][0]))
        for name, is_folder in entries[:SLICE]:
            follow_up = list_folder if is_folder else fingerprint
            follow_up.send(to_text(os.path.join(path, name)))


@job(queue="inventory")
def fingerprint(conn: psycopg.Connection, path: str) -> None:
    """Record what the file at *path* holds, or why it could not be read; a second run writes the same row again."""
    _record(conn, path, examine(to_bytes(path)))


@cron("15 * * * *", tz="UTC", missed="last", overlap="skip")
@job(queue="inventory")
def forget_missing(conn: psycopg.Connection, after: str = "") -> None:
    """
    Remove the rows of files that are gone, `SLICE` rows past the hash *after* (hexadecimal), then send the rest.

    A file on a disk that cannot be reached is not gone.
    """
    rows = conn.execute(LIST_FILES, {"after": bytes.fromhex(after), "limit": SLICE}).fetchall()
    missing = [row for row in rows if _is_gone(to_bytes(row[0]))]
    conn.execute(FORGET_FILES, {"hashes": [row[1] for row in missing], "seen": [row[2] for row in missing]})
    if len(rows) == SLICE:
        forget_missing.send(rows[-1][1].hex())


def _entries(folder: bytes, after: bytes) -> list[tuple[bytes, bool]]:
    """Up to `SLICE` + 1 names past *after*, in order, and whether each is a folder; byte-code caches left out."""
    # Opened as what it must be: a folder that became a link since its parent was listed is not followed.
    folder_file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(folder_file) as listing:
            names = ((os.fsencode(entry.name), _is_folder(entry)) for entry in listing)
            return nsmallest(SLICE + 1, (entry for entry in names if entry[0] > after and not _is_cache(*entry)))
    finally:
        os.close(folder_file)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # then the job for the file says what is wrong with it


def _is_cache(name: bytes, is_folder: bool) -> bool:
    return name == CACHES if is_folder else name.endswith(CACHED)


def _is_gone(path: bytes) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _record(conn: psycopg.Connection, path: str, content: Content) -> None:
    conn.execute(RECORD_FILE, {"path": path, **asdict(content)})
