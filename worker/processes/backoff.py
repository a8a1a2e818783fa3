"""Back-off: how soon one process follows another that has ended."""

from __future__ import annotations

_FIRST = 0.5
_MOST = 30.0
# Who has worked for so long was well.
_STEADY = 30.0


class Backoff:
    """At once after one that has worked for a while; twice as late each time after those that have not."""

    def __init__(self) -> None:
        self._short_lives = 0

    def after(self, worked: float) -> float:
        """Seconds until the next may start, after one that has worked for *worked* seconds."""
        if worked >= _STEADY:
            self._short_lives = 0
            return 0.0
        self._short_lives += 1
        return float(min(_MOST, _FIRST * 2 ** min(self._short_lives - 1, 16)))
