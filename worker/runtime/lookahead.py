"""The look-ahead: how many jobs will start within moments, by how long the last ones took."""

from __future__ import annotations

# What is claimed ahead should start within this ...
_HORIZON = 0.02
# ... and is never more than so many.
_MOST = 200
_WEIGHT = 0.1
# One long job among many short ones should not be remembered for as long as it took.
_LONGEST = 1.0


class Lookahead:
    """How many jobs to claim ahead of their slots: none until the last ones were short."""

    def __init__(self) -> None:
        self._expected = _LONGEST

    def ran(self, duration: float) -> None:
        """A job took *duration* seconds."""
        self._expected += _WEIGHT * (min(duration, _LONGEST) - self._expected)

    def was_late(self) -> None:
        """What was claimed ahead has waited too long: claim ahead again only when jobs have been short for a while."""
        self._expected = _LONGEST

    def size(self, quick: int) -> int:
        """How many jobs will start within moments, where *quick* slots are free or have been busy for moments only."""
        if self._expected >= _HORIZON:
            return 0
        return min(_MOST, int(quick * _HORIZON / max(self._expected, 1e-6)))
