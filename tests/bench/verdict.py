"""What was found, beside what it should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import machine
from tests.bench.results import NOISY

EXIT_HELD, EXIT_MISSED = 0, 1


class Verdict(NamedTuple):
    what: str
    found: float
    bound: float
    at_most: bool = True
    """Whether the bound is the most that may be, or the least."""

    @property
    def held(self) -> bool:
        return self.found <= self.bound if self.at_most else self.found >= self.bound

    def __str__(self) -> str:
        target = f"at {'most' if self.at_most else 'least'} {self.bound:g}"
        return f"{'held  ' if self.held else 'MISSED'}  {self.what}: {self.found:.4g}, target {target}"


def conclude(verdicts: Sequence[Verdict], figures: dict[str, Any], *, others: float, keep: Path | None) -> int:
    """
    Print the verdicts, keep everything in the file *keep*, and return the exit code.

    Args:
        others: Percent of the machine that processes other than ours used.
    """
    print()
    for verdict in verdicts:
        print(verdict)
    print(f"other processes used {others:.0f} % of the machine")
    if others > NOISY:
        print("WARNING: the machine was noisy; what was missed may be its doing.")
    if keep is not None:
        kept = {
            "machine": machine.describe(),
            "others % of machine": others,
            **figures,
            "verdicts": [{**verdict._asdict(), "held": verdict.held} for verdict in verdicts],
        }
        keep.write_text(json.dumps(kept, indent=1) + "\n")
    return EXIT_HELD if all(verdict.held for verdict in verdicts) else EXIT_MISSED
