"""A cable between a worker and its server, which can be cut, slowed and pulled out; bytes are delayed, never lost."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_CHUNK = 65536
_GIVEN_UP = 40.0


class Cable:
    """
    Forwards TCP connections to the server of *url*; a context manager.

    What is sent while a direction is cut arrives when it is mended, as with TCP's own repetitions, unless either side
    has given up by then.
    """

    def __init__(self, url: str) -> None:
        self._target = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cable", daemon=True)
        self._open = _gates()
        self._shut: list[asyncio.Event] = []
        self._delay = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = make_conninfo(
            url, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable", gssencmode="disable"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self.mend()
        asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, sock=self._listener), self._loop
        ).result()
        return self

    def __exit__(self, *_: object) -> None:
        self.pull()
        for gate in [*self._shut, *self._open]:
            self._call(gate.set)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._listener.close()

    def mend(self) -> None:
        """As good as new."""
        self._refusing, self._delay = False, 0.0
        for gate in self._open:
            self._call(gate.set)

    def cut(self, *, to_server: bool = True, to_worker: bool = True) -> None:
        """Nothing passes any more in these directions, and nobody is told."""
        for gate, wanted in zip(self._open, (to_server, to_worker), strict=True):
            if wanted:
                self._call(gate.clear)

    def forget(self) -> None:
        """
        Nothing passes any more on the connections that there are, and nobody is told; new ones work.

        They are reset after a while, as TCP's own timeouts do it.
        """

        def change() -> None:
            shut, self._open = self._open, _gates()
            for gate in shut:
                gate.clear()
            self._shut += shut
            self._loop.call_later(_GIVEN_UP, _give_up, set(self._writers), shut)

        self._call(change)
        self.mend()

    def slow_down(self, seconds: float) -> None:
        """Each message takes *seconds* longer in each direction."""
        self._delay = seconds

    def pull(self) -> None:
        """Reset every connection."""
        self._call(self._reset)

    def refuse(self) -> None:
        """Reset every connection, and each new one as soon as it is made."""
        self._refusing = True
        self.pull()

    def _call(self, change: Callable[[], Any]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(change)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(10), "the cable does not answer"

    def _reset(self) -> None:
        _abort(self._writers)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await _connect(self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._writers |= both
        to_server, to_worker = self._open
        pumps = [
            asyncio.ensure_future(self._pump(reader, server_writer, to_server)),
            asyncio.ensure_future(self._pump(server_reader, writer, to_worker)),
        ]
        await asyncio.wait(pumps)
        self._writers -= both

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(OSError):
            while said := await reader.read(_CHUNK):
                await gate.wait()
                if self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(said)
                await writer.drain()
        # The end of one side is news for the other, and travels as everything does.
        await gate.wait()
        writer.close()


def _abort(writers: Iterable[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.transport.abort()


def _give_up(writers: Iterable[asyncio.StreamWriter], gates: Iterable[asyncio.Event]) -> None:
    _abort(writers)
    for gate in gates:
        gate.set()


def _gates() -> tuple[asyncio.Event, asyncio.Event]:
    return asyncio.Event(), asyncio.Event()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = conninfo_to_dict(url)
    host, port = str(parts.get("host", "localhost")), int(parts.get("port") or 5432)
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)
