"""The queue: a Dramatiq broker on Postgres, and everything that enqueues, claims and settles jobs."""
