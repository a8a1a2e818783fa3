-- What the jobs of this folder write. Safe to run again: it only adds what is missing.

CREATE SCHEMA IF NOT EXISTS inventory;

-- One row per file, symbolic link, special file, and folder that could not be listed.
CREATE TABLE IF NOT EXISTS inventory.file (
    path       text        NOT NULL, -- as jobs.paths writes it; decode(path, 'escape') gives the name's own bytes
    path_hash  bytea       NOT NULL GENERATED ALWAYS AS (sha256(decode(path, 'escape'))) STORED,
    status     text        NOT NULL,
    size       bigint,               -- bytes that were read
    digest     bytea,                -- SHA-256 of the content
    media_type text,
    inode      text,                 -- device:inode, the same for hard links to one file
    detail     text,                 -- a link's target, the kind of a special file, or why it was not read
    seen_at    timestamptz NOT NULL DEFAULT now(),
    -- By hash, because a path may be longer than an index takes (2,704 bytes).
    CONSTRAINT file_path_once PRIMARY KEY (path_hash),
    CONSTRAINT file_status_is_known CHECK (
        status IN ('ok', 'link', 'special', 'unreadable', 'vanished', 'changed')
    ),
    CONSTRAINT file_ok_was_read CHECK (
        (status = 'ok') = (size IS NOT NULL)
        AND (size IS NULL) = (digest IS NULL)
        AND (size IS NULL) = (media_type IS NULL)
        AND (size IS NULL) = (inode IS NULL)
    ),
    CONSTRAINT file_size_is_positive CHECK (size >= 0)
);

-- The last report of identical files, replaced as a whole.
CREATE TABLE IF NOT EXISTS inventory.duplicate (
    digest      bytea       NOT NULL,
    size        bigint      NOT NULL, -- of each copy
    copies      bigint      NOT NULL, -- how many times the content is on the disk; hard links count once
    wasted      numeric     NOT NULL, -- bytes that all copies but one take
    paths       text[]      NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT duplicate_digest_once PRIMARY KEY (digest),
    CONSTRAINT duplicate_is_one CHECK (copies > 1 AND wasted = (copies - 1) * size)
);

-- How the inventory grew: a sample every two seconds in which something had changed.
CREATE TABLE IF NOT EXISTS inventory.progress (
    sampled_at timestamptz NOT NULL DEFAULT now(),
    files      bigint      NOT NULL, -- rows of inventory.file, whatever their status
    bytes      numeric     NOT NULL,
    CONSTRAINT progress_sampled_once PRIMARY KEY (sampled_at)
);
