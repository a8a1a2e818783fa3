"""What worker processes have said in their logs."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path


def complaints(folder: Path) -> Counter[str]:
    """How often each event of level error or worse is in the JSON logs `worker-*.log` of *folder*."""
    found: Counter[str] = Counter()
    for log in folder.glob("worker-*.log"):
        for line in log.read_text(errors="replace").splitlines():
            with suppress(ValueError):  # what is no JSON was said by the interpreter
                event = json.loads(line)
                if event.get("level") in ("error", "critical"):
                    found[event["event"]] += 1
    return found
