"""The sampler: how many sessions the server itself counts, looked up all the time."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import LiteralString

import psycopg

NAME = "chaos-observer"
"""Application name of the sampler and the killer, which are no sessions of the pool."""

# Many looks in one round trip; pg_stat_activity's own function, without the joins that make the view slow.
_MAKE: LiteralString = """
    CREATE FUNCTION pg_temp.most_sessions(looks int, observer text) RETURNS int LANGUAGE plpgsql AS $$
    DECLARE most int := 0; seen int;
    BEGIN
        FOR i IN 1..looks LOOP
            PERFORM pg_stat_clear_snapshot();
            SELECT count(*) INTO seen FROM pg_stat_get_activity(NULL) AS session
            WHERE session.backend_type = 'client backend' AND session.application_name <> observer
                AND session.datid = (SELECT oid FROM pg_database WHERE datname = current_database());
            most := greatest(most, seen);
        END LOOP;
        RETURN most;
    END $$
"""
_LOOK: LiteralString = "SELECT pg_temp.most_sessions(%s, %s)"
_LOOKS = 20
_AGAIN = 0.05


class Sampler:
    """
    Counts the sessions of a database from a connection of its own, as fast as it can.

    All client sessions count but the observers': a session of the pool is one whatever it has come to be called.
    """

    def __init__(self, url: str) -> None:
        self.most = self.looks = 0
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            with suppress(psycopg.OperationalError), observing(self._url) as conn:
                conn.execute(_MAKE)
                while not self._over.is_set():
                    self._look(conn)
            self._over.wait(_AGAIN)  # the server is being restarted

    def _look(self, conn: psycopg.Connection) -> None:
        row = conn.execute(_LOOK, [_LOOKS, NAME]).fetchone()
        assert row is not None
        self.most = max(self.most, row[0])
        self.looks += _LOOKS


def observing(url: str) -> psycopg.Connection:
    """A connection that is not counted."""
    return psycopg.connect(url, autocommit=True, application_name=NAME, connect_timeout=5)
