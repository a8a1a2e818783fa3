"""What worker processes have said in their logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


def complaints(folder: Path, levels: Collection[str] = ("error", "critical")) -> Counter[str]:
    """How often each event of *levels* is in the JSON logs `worker-*.log` of *folder*."""
    found: Counter[str] = Counter()
    for log in folder.glob("worker-*.log"):
        for line in log.read_text(errors="replace").splitlines():
            with suppress(ValueError):  # what is no JSON was said by the interpreter
                event = json.loads(line)
                if event.get("level") in levels:
                    found[event["event"]] += 1
    return found
