"""This machine: what it is, and how much of it others were using."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, object]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def busy_seconds() -> float:
    """CPU seconds that all processes have used since the start of the machine, all cores together."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = _times()
    return user + nice + system + irq + softirq + steal


class Noise:
    """Which part of the machine others used since this was made; *own_seconds* tells the CPU of the bench so far."""

    def __init__(self, own_seconds: Callable[[], float]) -> None:
        self._own_seconds = own_seconds
        self._started, self._busy, self._own = time.monotonic(), busy_seconds(), own_seconds()

    def percent(self) -> float:
        seconds = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        used = busy_seconds() - self._busy - (self._own_seconds() - self._own)
        return max(0.0, 100 * used / seconds)


def _times() -> list[float]:
    return [int(field) / _TICKS for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
