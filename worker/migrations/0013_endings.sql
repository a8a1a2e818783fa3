-- serves: 1
-- How a worker ended, told by the supervisor that saw it end: its exit code, or the signal that killed it.

ALTER TABLE {schema}.worker
    ADD COLUMN ended text;
