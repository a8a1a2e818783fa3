"""The alarm: how any thread wakes the one that sleeps on the server's socket."""

from __future__ import annotations

import select
import socket
from contextlib import suppress


class Alarm:
    """Rung from any thread, waited for by one."""

    def __init__(self) -> None:
        self._heard, self._ring = socket.socketpair()
        self._heard.setblocking(False)
        self._ring.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        """Wake the sleeper, or keep it from falling asleep."""
        if not self._rung:
            self._rung = True
            with suppress(BlockingIOError, OSError):  # full is as good as rung; closed is past ringing
                self._ring.send(b"!")

    def wait(self, seconds: float, fd: int | None = None) -> bool:
        """Sleep until rung, for *seconds* at most, or until *fd* has something to read: whether that is so."""
        poll = select.poll()
        poll.register(self._heard, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        ready = {ready_fd for ready_fd, _ in poll.poll(seconds * 1000)}
        if self._heard.fileno() in ready:
            with suppress(BlockingIOError):
                self._heard.recv(4096)
            # Before the sleeper looks at what it was woken for: what comes from here on is either seen or rung for.
            self._rung = False
        return fd is not None and fd in ready

    def close(self) -> None:
        self._heard.close()
        self._ring.close()
