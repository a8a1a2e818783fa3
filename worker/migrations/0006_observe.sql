-- serves: 1
-- What scalers and dashboards read: a view whose columns stay, whatever becomes of the tables below it.

-- What is due counts as available from that instant on, although a worker has yet to promote it: there may be none.
CREATE VIEW {schema}.queue_depth AS
SELECT
    queue,
    count(*) FILTER (WHERE state = 'available' OR (state = 'scheduled' AND due_at <= now())) AS available,
    count(*) FILTER (WHERE state = 'scheduled' AND due_at > now()) AS scheduled,
    count(*) FILTER (WHERE state = 'running') AS running,
    coalesce(
        extract(
            epoch FROM now() - min(due_at) FILTER (
                WHERE state = 'available' OR (state = 'scheduled' AND due_at <= now())
            )
        ),
        0
    )::double precision AS oldest_seconds -- how long the oldest of the available has waited
FROM {schema}.job
GROUP BY queue;
