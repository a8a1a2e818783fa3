-- serves: 1
-- Which jobs were really running when their worker died, and which had only been claimed ahead of a slot.

ALTER TABLE {schema}.job
    -- Claimed before a slot was free; on a job that waits: was so when its worker died, so it is not claimed ahead again.
    ADD COLUMN ahead boolean NOT NULL DEFAULT false,
    -- Since when it is suspected of having taken its worker along; it runs alone until a run of it ends otherwise.
    ADD COLUMN suspect_since timestamptz;
