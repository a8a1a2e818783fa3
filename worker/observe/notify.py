"""What a service manager is told through `NOTIFY_SOCKET` (sd_notify(3)); without one, nothing is."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from worker import clock, log

logger = log.get_logger(__name__)

# What is asked for with each word while stopping: longer than the time to the next word.
_EXTENSION = 15.0


class ServiceManager:
    """systemd, or whoever speaks its protocol; *env* is this process's environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        address = env.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        watched = env.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        # Half of it, as the manual advises: one word may be late.
        self._interval = int(env.get("WATCHDOG_USEC") or 0) / 2e6 if watched else 0.0
        self._fed_at = float("-inf")
        self._ready = self._ending = self._reloading = False

    def entered(self, stage: str, told: str) -> None:
        """The worker is in another stage; *told* says so to people."""
        words = {"STATUS": told}
        if stage == "running" and not self._ready:
            self._ready, self._reloading = True, False
            words["READY"] = "1"
        elif stage in ("draining", "cutting", "closing"):
            self._ending = True
            if not self._reloading:
                words["STOPPING"] = "1"
            words["EXTEND_TIMEOUT_USEC"] = str(int(_EXTENSION * 1e6))
        self._tell(words)

    def reloading(self) -> None:
        """What works now is replaced, perhaps by a successor under the same process id: READY=1 comes when it is."""
        self._reloading, self._ready = True, False
        self._tell({"RELOADING": "1", "MONOTONIC_USEC": str(time.monotonic_ns() // 1000)})

    def beaten(self, *, well: bool) -> None:
        """The main thread has made a round; the watchdog is fed, in good time, only while all is *well*."""
        if clock.monotonic() - self._fed_at < (self._interval or _EXTENSION / 3):
            return
        words = {"WATCHDOG": "1"} if self._interval and well else {}
        if self._ending:
            words["EXTEND_TIMEOUT_USEC"] = str(int(_EXTENSION * 1e6))
        if words:
            self._fed_at = clock.monotonic()
            self._tell(words)

    def _tell(self, words: Mapping[str, str]) -> None:
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in words.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.sendto(text.encode(), self._address)
        except OSError as exc:
            logger.warning("service_manager.not_told", reason=exc.strerror, words=sorted(words))
