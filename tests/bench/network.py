"""
A network in between: `python -m tests.bench.network SECONDS FROM=TO...` passes bytes on, later, until stdin ends.

FROM and TO are paths of sockets, or ports of 127.0.0.1. What passes waits for half of SECONDS in either direction, so
that a round trip takes SECONDS longer, however much is sent and by however many connections. One thread that waits in
`select`, whose timeout is exact enough for it; a piece costs it some 20 us.
"""

from __future__ import annotations

import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg

from tests.bench.peer import Places

MORE = 0.001
"""Seconds that a round trip takes longer."""

_PIECE = 65536
_PATIENCE = 20.0
_LOOKS = 50


class Distance(NamedTuple):
    """A way to the stores that is longer."""

    pid: int
    from_places: Places
    to_places: Places

    def places(self, near: Places) -> Places:
        """*near*, which is on the same servers, reached by the longer way."""
        changed = {name: getattr(self.to_places, name) for name in ("redis", "rabbitmq")}
        return replace(near, postgres=_with_host(near.postgres, _host(self.to_places.postgres)), **changed)

    def milliseconds(self) -> float:
        """What a round trip to Postgres takes longer, measured."""
        far, near = (_round_trip(places.postgres) for places in (self.to_places, self.from_places))
        return 1000 * (far - near)


@contextmanager
def distant(places: Places, more: float = MORE) -> Iterator[Distance]:
    """The stores of *places* behind a network whose round trip takes *more* seconds."""
    with tempfile.TemporaryDirectory(prefix="carpool-bench-") as folder:
        file = f".s.PGSQL.{_port(places.postgres)}"
        ways = {f"{folder}/{file}": f"{_host(places.postgres)}/{file}"}
        far = replace(places, postgres=_with_host(places.postgres, folder))
        if places.redis is not None:
            ways[f"{folder}/redis"] = urlsplit(places.redis).path
            far = replace(far, redis=f"unix://{folder}/redis")
        if places.rabbitmq is not None:
            near_port, far_port = urlsplit(places.rabbitmq).port, free_port()
            ways[str(far_port)] = str(near_port)
            far = replace(far, rabbitmq=places.rabbitmq.replace(f":{near_port}", f":{far_port}"))
        command = [sys.executable, "-m", "tests.bench.network", str(more), *(f"{a}={b}" for a, b in ways.items())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            if not process.stdout.readline():
                raise RuntimeError("the network between did not begin")
            try:
                yield Distance(process.pid, places, far)
            finally:
                process.stdin.close()
                process.wait(_PATIENCE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class _Way:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    rest: bytearray
    """What the target did not take yet."""
    ended: bool = False


def forward(ways: dict[str, str], seconds: float) -> None:
    """Pass on what comes, half of *seconds* later, until stdin ends."""
    listeners = {_listen(start): end for start, end in ways.items()}
    print("ready", flush=True)
    open_ways: dict[socket.socket, _Way] = {}
    full: dict[socket.socket, _Way] = {}
    stdin: Any = sys.stdin
    late: deque[tuple[float, _Way, bytes]] = deque()  # in order, as all wait for the same time
    while True:
        timeout = max(0.0, late[0][0] - time.monotonic()) if late else None
        readable, writable, _ = select.select([stdin, *listeners, *open_ways], [*full], [], timeout)
        if stdin in readable:
            return
        for source in readable:
            if source in listeners:
                _open(source, listeners[source], open_ways)
                continue
            piece = _received(source)
            late.append((time.monotonic() + seconds / 2, open_ways[source], piece))
            if not piece:
                del open_ways[source]
        now = time.monotonic()
        while late and late[0][0] <= now:
            _, way, piece = late.popleft()
            way.rest += piece
            way.ended = not piece
            if way.target not in full:
                _pass_on(way, full)
        for target in writable:
            _pass_on(full[target], full)


def _pass_on(way: _Way, full: dict[socket.socket, _Way]) -> None:
    full.pop(way.target, None)
    with suppress(OSError):  # the other end has gone: what was for it has nowhere to go
        if way.rest:
            with suppress(BlockingIOError):
                del way.rest[: way.target.send(way.rest)]
            if way.rest:
                full[way.target] = way
                return
        if way.ended:
            way.target.shutdown(socket.SHUT_WR)


def _open(listener: socket.socket, end: str, open_ways: dict[socket.socket, _Way]) -> None:
    client, _ = listener.accept()
    server = _socket(end)
    server.connect(_address(end))
    for source, target in ((client, server), (server, client)):
        source.setblocking(False)
        if source.family == socket.AF_INET:
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open_ways[source] = _Way(source, target, bytearray())


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(_PIECE)
    except OSError:  # an end that was cut is an end
        return b""


def _listen(start: str) -> socket.socket:
    listener = _socket(start)
    listener.bind(_address(start))
    listener.listen(128)
    if not start.isdecimal():
        Path(start).chmod(0o777)
    return listener


def _socket(end: str) -> socket.socket:
    return socket.socket(socket.AF_INET if end.isdecimal() else socket.AF_UNIX, socket.SOCK_STREAM)


def _address(end: str) -> tuple[str, int] | str:
    return ("127.0.0.1", int(end)) if end.isdecimal() else end


def _host(url: str) -> str:
    return dict(parse_qsl(urlsplit(url).query))["host"]


def _port(url: str) -> str:
    return dict(parse_qsl(urlsplit(url).query)).get("port", "5432")


def _with_host(url: str, host: str) -> str:
    parts = urlsplit(url)
    query = {**dict(parse_qsl(parts.query)), "host": host}
    return url.replace(parts.query, urlencode(query, safe="/"))


def _round_trip(url: str) -> float:
    with psycopg.connect(url, autocommit=True) as conn:
        took = []
        for _ in range(_LOOKS):
            started = time.perf_counter()
            conn.execute("SELECT 1")
            took.append(time.perf_counter() - started)
    return statistics.median(took)


if __name__ == "__main__":
    forward(dict(way.split("=", 1) for way in sys.argv[2:]), float(sys.argv[1]))
