"""The statements of these jobs."""

from __future__ import annotations

from typing import LiteralString

# The last one to look at a file is right: a second run of the same job writes the same row again.
RECORD_FILE: LiteralString = """
    INSERT INTO inventory.file (path, status, size, digest, media_type, inode, detail)
    VALUES (%(path)s, %(status)s, %(size)s, %(digest)s, %(media_type)s, %(inode)s, %(detail)s)
    ON CONFLICT ON CONSTRAINT file_path_once DO UPDATE
    SET status = excluded.status,
        size = excluded.size,
        digest = excluded.digest,
        media_type = excluded.media_type,
        inode = excluded.inode,
        detail = excluded.detail,
        seen_at = excluded.seen_at"""

# By primary key.
FORGET_FILE: LiteralString = """
    DELETE FROM inventory.file
    WHERE path_hash = sha256(decode(%(path)s, 'escape'))"""

# Pages through the table in the order of its primary key.
LIST_FILES: LiteralString = """
    SELECT path, path_hash, seen_at
    FROM inventory.file
    WHERE path_hash > %(after)s
    ORDER BY path_hash
    LIMIT %(limit)s"""

# Only rows that are still as they were read: a file that came back has been recorded again meanwhile.
# Sorted and skipping what is locked, so that it never waits in a circle with the jobs that record files.
FORGET_FILES: LiteralString = """
    DELETE FROM inventory.file
    WHERE path_hash IN (
        SELECT file.path_hash
        FROM inventory.file
        JOIN unnest(%(hashes)s::bytea[], %(seen)s::timestamptz[]) AS missing (path_hash, seen_at)
            USING (path_hash, seen_at)
        ORDER BY file.path_hash
        FOR UPDATE OF file SKIP LOCKED
    )"""

# Two reports at once: the second waits here for the first. Readers do not wait.
LOCK_REPORT: LiteralString = "LOCK TABLE inventory.duplicate IN SHARE ROW EXCLUSIVE MODE"

CLEAR_REPORT: LiteralString = "DELETE FROM inventory.duplicate"

WRITE_REPORT: LiteralString = """
    INSERT INTO inventory.duplicate (digest, size, copies, wasted, paths)
    SELECT
        digest,
        size,
        count(DISTINCT inode),
        (count(DISTINCT inode) - 1) * size::numeric,
        array_agg(path ORDER BY path)
    FROM inventory.file
    WHERE status = 'ok' AND size > 0
    GROUP BY digest, size
    HAVING count(DISTINCT inode) > 1"""

# Nothing is written while nothing changes, so an idle deployment gathers no rows.
SAMPLE_PROGRESS: LiteralString = """
    INSERT INTO inventory.progress (files, bytes)
    SELECT now.files, now.bytes
    FROM (SELECT count(*) AS files, coalesce(sum(size), 0) AS bytes FROM inventory.file) AS now
    WHERE NOT EXISTS (
        SELECT
        FROM (SELECT files, bytes FROM inventory.progress ORDER BY sampled_at DESC LIMIT 1) AS last
        WHERE last.files = now.files AND last.bytes = now.bytes
    )
    ON CONFLICT ON CONSTRAINT progress_sampled_once DO NOTHING"""

FORGET_PROGRESS: LiteralString = """
    DELETE FROM inventory.progress
    WHERE sampled_at < now() - interval '1 day'"""
