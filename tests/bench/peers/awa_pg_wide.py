"""Awa at its fastest: 256 jobs at once, where all others run ten."""

from __future__ import annotations

from typing import ClassVar

from tests.bench.peers.awa_pg import AwaPg

_WORKERS = 256


class AwaPgWide(AwaPg):
    name = "awa-pg-wide"
    title = f"Awa, {_WORKERS} at once"
    settings = f"asynchronous jobs, {_WORKERS} workers, queue storage, 50 connections, asyncpg for the jobs"

    workers: ClassVar[int] = _WORKERS
    connections: ClassVar[int] = 50


PEER = AwaPgWide
