"""
One stage of one side in a process of its own: `python -m tests.bench.side`, told by JSON on stdin, answers on stdout.

Stages: "sent" sends jobs one by one or in bulk; "filled" sends them beforehand; "ran" runs a worker until the store is
empty; "paced" sends one job each 50 ms to a worker that runs elsewhere; "described" tells versions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg

from tests.bench import peers
from tests.bench.peer import Peer, Places
from tests.bench.server import commits, cpu_seconds, statements
from tests.bench.tally import Tally
from tests.factories import scalar
from tests.waiting import wait_until

PATIENCE = 300.0
BULKS = (500, 5000)
PACE = 0.05
WARM_UP = 10
_IDLE = 20.0


def main() -> None:
    told = json.loads(sys.stdin.readline())
    peer = peers.find(told["peer"])(Places(**told["places"]), Tally())
    answer = STAGES[told["stage"]](peer, told["work"], told["jobs"])
    print(json.dumps(answer), flush=True)


def described(peer: Peer, work: str, number: int) -> dict[str, Any]:
    return {
        "title": peer.title,
        "store": peer.store,
        "guarantee": peer.guarantee.words,
        "settings": peer.settings,
        "versions": {name: _version(name, peer.places) for name in peer.packages},
    }


def filled(peer: Peer, work: str, number: int) -> dict[str, float]:
    with psycopg.connect(peer.places.postgres, autocommit=True) as db:
        db.execute("CREATE TABLE IF NOT EXISTS bench (number int)")
        peer.prepare()
        peer.fill(work.removeprefix("counted "), number)
        db.execute("VACUUM ANALYZE")
        db.execute("CHECKPOINT")
    return {}


def ran(peer: Peer, work: str, number: int) -> dict[str, Any]:
    """Until the store has none of *number* jobs any more; the clock starts with the first job."""
    with psycopg.connect(peer.places.postgres, autocommit=True) as db:
        watch = _Watch(peer, db)
        with peer.working(work):
            if work == "latency":
                print("ready", flush=True)
            _wait_for(lambda: peer.tally.num >= number // 2, "half of the jobs")
            connections = watch.num_connections()
            _wait_for(lambda: peer.tally.num >= number, "the jobs")
            _wait_for(lambda: peer.num_left() == 0, "the store to be empty")
            assert peer.tally.first_at is not None
            found = {"seconds": time.monotonic() - peer.tally.first_at, **watch.spent()}
        _check(peer, db, work, number)
    return {
        **found,
        **peer.counts(),
        "delays": peer.tally.delays,
        "connections": connections,
        "statements at the server": _statements_once_told(peer, work),
    }


def idled(peer: Peer, work: str, number: int) -> dict[str, float]:
    with psycopg.connect(peer.places.postgres, autocommit=True) as db:
        peer.prepare()
        watch = _Watch(peer, db)
        with peer.working(work):
            time.sleep(_IDLE)
            found = {"seconds": _IDLE, "connections": watch.num_connections(), **watch.spent()}
        time.sleep(1.5)  # what its sessions did is reported with a delay
        found["commits"] = commits(db) - watch.commits_before
    return found


def sent(peer: Peer, work: str, number: int) -> dict[str, float]:
    peer.prepare()
    if work == "enqueue":
        return {"per s": number / peer.enqueue(number)}
    found = {}
    for size in BULKS:
        rounded = max(1, number // size) * size
        seconds = peer.bulk(rounded, size)
        if seconds is not None:
            found[f"per s by {size}"] = rounded / seconds
    return found


def paced(peer: Peer, work: str, number: int) -> dict[str, float]:
    with peer.sending() as send:
        for _ in range(number):
            time.sleep(PACE)
            send(work, time.time())
    return {}


STAGES: dict[str, Callable[[Peer, str, int], Any]] = {
    stage.__name__: stage for stage in (described, filled, ran, idled, sent, paced)
}


class _Watch:
    """What the worker and its store spend, from the moment when it is made."""

    def __init__(self, peer: Peer, db: psycopg.Connection) -> None:
        self._peer = peer
        self._db = db
        self.commits_before = commits(db)
        self._before = self._now()

    def spent(self) -> dict[str, float]:
        return {name: value - self._before[name] for name, value in self._now().items()}

    def num_connections(self) -> int:
        """Of the worker to any store."""
        to_postgres = int(
            scalar(
                self._db,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'",
            )
        )
        return to_postgres + (len(self._redis().client_list()) - 1 if self._peer.store == "Redis" else 0)

    def _now(self) -> dict[str, float]:
        now = {"worker cpu": self._peer.cpu_seconds(), "server cpu": cpu_seconds(self._db)}
        if self._peer.store == "Redis":
            info = self._redis().info()
            now["server cpu"] += info["used_cpu_sys"] + info["used_cpu_user"]
            now["commands"] = info["total_commands_processed"]
        return now

    def _redis(self) -> Any:
        import redis  # only sides that use it need it

        assert self._peer.places.redis is not None
        return redis.Redis.from_url(self._peer.places.redis)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, PATIENCE, what)


def _check(peer: Peer, db: psycopg.Connection, work: str, number: int) -> None:
    """Every job did run; and not more of them, where nothing went wrong."""
    if peer.tally.num != number:
        raise RuntimeError(f"{peer.name} ran {peer.tally.num} jobs of {number}")
    if work.endswith("inserts") and (rows := scalar(db, "SELECT count(DISTINCT number) FROM bench")) != number:
        raise RuntimeError(f"{peer.name} wrote {rows} rows of {number}")


def _statements_once_told(peer: Peer, work: str) -> int | None:
    if not work.startswith("counted ") or peer.store != "Postgres":
        return None
    with psycopg.connect(peer.places.postgres, autocommit=True) as db:
        return statements(db)


def _version(package: str, places: Places) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if places.node_modules is None:
            raise
        return str(json.loads(Path(places.node_modules, package, "package.json").read_text())["version"])


if __name__ == "__main__":
    main()
