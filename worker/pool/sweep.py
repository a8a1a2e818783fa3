"""The sweep: what happens in the pool when nobody asks for anything."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker import log

logger = log.get_logger(__name__)

# A leak must be found within 2 s, its end on the server included.
INTERVAL = 0.5


class Sweep:
    """
    A thread that runs *sweep_once* every half second.

    A thread of its own, because the pool's workers may all be busy with a server that does not answer, and then nobody
    would notice anything.
    """

    def __init__(self, sweep_once: Callable[[], None]) -> None:
        self._sweep_once = sweep_once
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pool-sweep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; twice is harmless."""
        self._over.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        """Whether it still sweeps."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL):
            try:
                self._sweep_once()
            except Exception:
                # One pass that failed must not be the last one.
                logger.exception("pool.sweep_failed")
