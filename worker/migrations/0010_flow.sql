-- serves: 1
-- What people have paused, and which actors each worker knows. An older worker goes on beside newer ones, but it does
-- not know of pauses and does not say what it knows.

CREATE TABLE {schema}.pause (
    kind      text        NOT NULL,
    name      text        NOT NULL, -- of a queue, or of an actor
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pause_once PRIMARY KEY (kind, name),
    CONSTRAINT pause_kind_is_known CHECK (kind IN ('queue', 'actor'))
);

ALTER TABLE {schema}.worker
    ADD COLUMN actors text[]; -- those it knows; NULL when it does not say
