"""
One stage of one side in a process of its own: `python -m tests.bench.side`, told by JSON on stdin, answers on stdout.

Stages: "described" tells versions; "sent" sends jobs one by one or in bulk; "filled" sends them beforehand; "ran" runs
a worker until the store is empty; "awaited" does so with jobs that "paced" sends meanwhile; "idled" has nothing to do.
"served" runs a worker, and "flowed" sends so many jobs each second, until told to end; they answer each line they are
told with what they did since the last one.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.bench import peers
from tests.bench.peer import Peer, Places, Sender
from tests.bench.server import count_statements, cpu_seconds, num_tcp_connections, process_cpu_seconds, statements
from tests.bench.tally import Tally
from tests.factories import scalar
from tests.waiting import wait_until

PATIENCE = 300.0
BULKS = (500, 10_000)
_SETTLED = 3.0
_BEAT = 0.02
_SORTED = 20_000
_IDLE = 20.0


def main() -> None:
    told = json.loads(sys.stdin.readline())
    peer = peers.find(told["peer"])(Places(**told["places"]), Tally())
    answer = STAGES[told["stage"]](peer, told["work"], told["jobs"], **told["more"])
    _say(answer)


def described(peer: Sender, work: str, number: int) -> dict[str, Any]:
    return {
        "title": peer.title,
        "store": peer.store,
        "guarantee": peer.guarantee.words,
        "settings": peer.settings,
        "versions": peer.versions(),
        "only_sends": not isinstance(peer, Peer),
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
        "connections": connections,
        "statements at the server": _statements_once_told(peer, work),
    }


def awaited(peer: Peer, work: str, number: int) -> list[float]:
    """Seconds from the send of each of *number* jobs to its start, in the order of their starts."""
    with peer.working(work):
        _say("ready")
        _wait_for(lambda: peer.tally.num >= number, "the jobs")
        _wait_for(lambda: peer.num_left() == 0, "the store to be empty")
    return [*peer.tally.delays]


def idled(peer: Peer, work: str, number: int) -> dict[str, float]:
    with psycopg.connect(peer.places.postgres, autocommit=True) as db:
        counted = peer.store == "Postgres" and count_statements(db)
        peer.prepare()
        with peer.working(work):
            time.sleep(_SETTLED)
            watch = _Watch(peer, db)
            before = statements(db) if counted else 0
            time.sleep(_IDLE)
            found = {"seconds": _IDLE, "connections": watch.num_connections(), **watch.spent()}
            if counted:
                found["statements"] = statements(db) - before
    return found


def sent(peer: Sender, work: str, number: int) -> dict[str, float]:
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


def paced(peer: Sender, work: str, number: int, pace: float) -> dict[str, float]:
    """Send one job each *pace* seconds."""
    with peer.sending() as send:
        for _ in range(number):
            time.sleep(pace)
            send(work, time.time())
    return {}


def served(peer: Peer, work: str, number: int) -> dict[str, float]:
    with peer.working(work):
        _say("ready")
        begun = _Served(peer)
        since = begun
        for _ in sys.stdin:
            now = _Served(peer)
            _say(now - since)
            since = now
        return _Served(peer) - begun


class _Served:
    """What a worker has done, up to the moment when this is made."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._at = time.monotonic()
        self._jobs = peer.tally.num
        self._cpu = peer.cpu_seconds()
        self._delays = len(peer.tally.delays)

    def __sub__(self, before: _Served) -> dict[str, float]:
        # Of some only: to sort all of them would hold up the worker that is measured.
        every = max(1, (self._delays - before._delays) // _SORTED)
        delays = sorted(self._peer.tally.delays[before._delays : self._delays : every])
        waited = {f"p{part} ms": 1000 * delays[len(delays) * part // 100] for part in (50, 99)} if delays else {}
        return {
            "seconds": self._at - before._at,
            "jobs": self._jobs - before._jobs,
            "worker cpu": self._cpu - before._cpu,
            **waited,
        }


def flowed(peer: Peer, work: str, number: int, rate: float) -> dict[str, float]:
    """Send *rate* jobs a second, those of each 20 ms at once."""
    ended = threading.Event()
    threading.Thread(target=_await_the_end, args=[ended], daemon=True).start()
    due = sent = 0
    with peer.flowing() as send:
        _say("ready")
        started = began = time.monotonic()
        while not ended.wait(max(0.0, began + _BEAT - time.monotonic())):
            # Who was held up does not make up for it: the burst would be measured, not the flow.
            began = max(began + _BEAT, time.monotonic() - _BEAT)
            before, due = due, round(rate * (began - started))
            number = min(due - before, round(rate * _BEAT * 2))
            if number:
                send(work, [time.time()] * number)
            sent += number
        return {"seconds": time.monotonic() - started, "jobs": sent}


def _await_the_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


STAGES: dict[str, Callable[..., Any]] = {
    stage.__name__: stage for stage in (described, filled, ran, awaited, idled, sent, paced, served, flowed)
}


class _Watch:
    """What the worker and its store spend, from the moment when it is made."""

    def __init__(self, peer: Peer, db: psycopg.Connection) -> None:
        self._peer = peer
        self._db = db
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
        return to_postgres + self._num_elsewhere()

    def _num_elsewhere(self) -> int:
        if self._peer.store == "Redis":
            return len(self._redis().client_list()) - 1
        if self._peer.store == "RabbitMQ":
            return num_tcp_connections(urlsplit(self._peer.places.rabbitmq).port or 0)
        return 0

    def _now(self) -> dict[str, float]:
        now = {"worker cpu": self._peer.cpu_seconds(), "server cpu": cpu_seconds(self._db)}
        if self._peer.store == "RabbitMQ":
            now["server cpu"] += process_cpu_seconds(self._peer.places.rabbitmq_pid or 0)
        if self._peer.store == "Redis":
            info = self._redis().info()
            now["server cpu"] += info["used_cpu_sys"] + info["used_cpu_user"]
            now["commands"] = info["total_commands_processed"]
        return now

    def _redis(self) -> Any:
        import redis  # only sides that use it need it

        assert self._peer.places.redis is not None
        return redis.Redis.from_url(self._peer.places.redis)


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


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


if __name__ == "__main__":
    main()
