"""What comes from outside: killed sessions, cancelled statements, restarts of the server, quiet times."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import LiteralString

import psycopg

from tests.chaos.sampler import NAME, observing
from tests.chaos.scene import Scene
from tests.chaos.server import Server

_SESSIONS: LiteralString = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> %s
"""
_KILL: LiteralString = "SELECT pg_terminate_backend(%s)"
_CANCEL: LiteralString = "SELECT pg_cancel_backend(%s)"

RESTART_EVERY = 11.0
CALM_EVERY = 13.0
CALM = 3.0


def kill(scene: Scene, rng: random.Random, url: str) -> None:
    """Terminate sessions and cancel statements at random until the noise is over."""
    while not scene.over.is_set():
        with suppress(psycopg.OperationalError), observing(url) as conn:
            while not scene.over.wait(rng.expovariate(6)):
                pids = [row[0] for row in conn.execute(_SESSIONS, [NAME])]
                killing = rng.random() < 0.6
                for pid in rng.sample(pids, min(len(pids), rng.choice([1, 1, 1, 3]))):
                    conn.execute(_KILL if killing else _CANCEL, [pid])
                    scene.count("session killed" if killing else "statement cancelled")
        scene.over.wait(0.1)


def restart(scene: Scene, rng: random.Random, server: Server) -> None:
    """Restart the server, fast or immediately."""
    immediate = rng.random() < 0.5
    server.restart(immediate=immediate)
    scene.count("immediate restart" if immediate else "fast restart")
