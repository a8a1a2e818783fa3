"""The faults: what is done to a worker, to all of them, or to their server."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import NamedTuple

import psycopg

from tests.chaos.disk import Disk
from tests.chaos.faults.fleet import LEASE, Worker
from tests.chaos.pair import Pair
from tests.chaos.sampler import observing

# Everybody's sessions but those of who looks and who breaks.
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'carpool %'"
# Seconds for which a server or a disk is full, at least and at most.
_FILLED = (4.0, 8.0)
_CROWD = 4


class Place(NamedTuple):
    """Where it happens."""

    pair: Pair
    disk: Disk | None
    chance: random.Random

    def hold(self, least: float, most: float) -> None:
        time.sleep(self.chance.uniform(least, most))


class Fault(NamedTuple):
    """
    Something that goes wrong, and is right again when the call returns.

    Args:
        prepare: What has to be done before it, while all is well.
        spares_first: The first worker is not meant: the one whose memory is watched from beginning to end.
        over_the_cap: So many sessions, whose end nobody could confirm, count until their successors have ended them.
    """

    name: str
    to_worker: Callable[[Place, Worker], None] | None = None
    to_all: Callable[[Place], None] | None = None
    prepare: Callable[[Place], None] | None = None
    spares_first: bool = False
    over_the_cap: int = 0

    def strike(self, place: Place, workers: Sequence[Worker]) -> list[Worker]:
        """Let it happen; whom it has hit."""
        if self.prepare is not None:
            self.prepare(place)
        if self.to_all is not None:
            self.to_all(place)
        if self.to_worker is None:
            return list(workers)
        hit = place.chance.choice(workers[1:] or workers if self.spares_first else workers)
        self.to_worker(place, hit)
        return [hit]


def _kill(place: Place, worker: Worker) -> None:
    worker.end()
    worker.start()


def _freeze(place: Place, worker: Worker) -> None:
    """For longer than its lease: when it wakes, others have its jobs, and it may write nothing for them."""
    worker.signal(signal.SIGSTOP)
    place.hold(LEASE + 2, LEASE + 5)
    worker.signal(signal.SIGCONT)


def _cut(least: float, most: float, **directions: bool) -> Callable[[Place, Worker], None]:
    def cut(place: Place, worker: Worker) -> None:
        for cable in worker.cables:
            cable.cut(**directions)
        place.hold(least, most)
        _mend(worker)

    return cut


def _slow(place: Place, worker: Worker) -> None:
    for cable in worker.cables:
        cable.slow_down(0.1)
    place.hold(3, 6)
    _mend(worker)


def _pull(place: Place, worker: Worker) -> None:
    for cable in worker.cables:
        cable.pull()


def _forget(place: Place, worker: Worker) -> None:
    for cable in worker.cables:
        cable.forget()


def _refuse(place: Place, worker: Worker) -> None:
    for cable in worker.cables:
        cable.refuse()
    place.hold(2, 5)
    _mend(worker)


def _mend(worker: Worker) -> None:
    for cable in worker.cables:
        cable.mend()


def _terminate(place: Place) -> None:
    with observing(place.pair.url) as conn:
        conn.execute(_TERMINATE)


def _restart(*, immediate: bool = False, down: tuple[float, float] = (0.0, 0.0)) -> Callable[[Place], None]:
    return lambda place: place.pair.restart(immediate=immediate, down=place.chance.uniform(*down))


def _make_read_only(place: Place) -> None:
    # A session's own default cannot be changed under it, and with one session in three the pool is renewed too.
    with psycopg.connect(place.pair.url, autocommit=True, options="-c default_transaction_read_only=off") as conn:
        conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        conn.execute("SELECT pg_reload_conf()")
        if place.chance.random() < 0.5:
            conn.execute(_TERMINATE)
        place.hold(3, 6)
        conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
        conn.execute("SELECT pg_reload_conf()")


def _crowd_out(place: Place) -> None:
    """Others take every place under `max_connections`, and who has lost his gets none."""
    over = threading.Event()
    with ThreadPoolExecutor(_CROWD) as crowd, observing(place.pair.url) as conn:
        for _ in range(_CROWD):
            crowd.submit(_push_in, place.pair.url, over)
        ends_at = time.monotonic() + place.chance.uniform(*_FILLED)
        while time.monotonic() < ends_at:
            conn.execute(_TERMINATE)
            time.sleep(0.2)
        over.set()


def _push_in(url: str, over: threading.Event) -> None:
    with ExitStack() as stack:
        while not over.is_set():
            try:
                stack.enter_context(psycopg.connect(url, application_name="crowd"))
            except psycopg.OperationalError:
                time.sleep(0.005)


def _fill_the_disk(*, with_log: bool) -> Callable[[Place], None]:
    """
    No byte is left, for the tables alone or for the write-ahead log too.

    Without room for its log the server crashes and cannot start; it is started again when there is room.
    """

    def fill(place: Place) -> None:
        assert place.disk is not None
        ends_at = time.monotonic() + place.chance.uniform(*_FILLED)
        while time.monotonic() < ends_at:
            place.disk.fill()
            if with_log:
                with suppress(psycopg.Error), observing(place.pair.url) as conn:
                    conn.execute("SELECT pg_switch_wal()")
            time.sleep(0.2)
        place.disk.free()
        place.pair.wait()

    return fill


KINDS = (
    Fault("kill -9 and a new process", _kill, spares_first=True),
    Fault("frozen for longer than its lease", _freeze),
    Fault("cut for a moment", _cut(0.5, 3.0)),
    Fault("cut for longer than its lease", _cut(LEASE + 2, LEASE + 5), over_the_cap=1),
    Fault("cut towards the server", _cut(2.0, 6.0, to_worker=False), over_the_cap=1),
    Fault("cut towards the worker", _cut(2.0, 6.0, to_server=False), over_the_cap=1),
    Fault("0.1 s slower", _slow),
    Fault("connections reset", _pull),
    Fault("connections forgotten on the way", _forget, over_the_cap=1),
    Fault("connections refused", _refuse),
    Fault("all sessions terminated", to_all=_terminate),
    Fault("Postgres restarted, fast", to_all=_restart()),
    Fault("Postgres restarted, immediate", to_all=_restart(immediate=True)),
    Fault("Postgres down for 20 to 40 s", to_all=_restart(down=(20.0, 40.0))),
    Fault("too many clients", to_all=_crowd_out),
    Fault("read-only", to_all=_make_read_only),
    Fault("failover to the other address", to_all=lambda place: place.pair.move(), prepare=lambda p: p.pair.prepare()),
)
OF_THE_DISK = (
    Fault("disk full, tables", to_all=_fill_the_disk(with_log=False)),
    Fault("disk full, write-ahead log too", to_all=_fill_the_disk(with_log=True)),
)
