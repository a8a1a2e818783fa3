"""
`python -m tests.bench.profile [drain|inserts] [--jobs N]`: where do a job's microseconds go in the worker?

py-spy looks at all threads of the worker many times a second. Each look counts for the module of ours that is nearest
to the top of the stack, and for what that was calling; the CPU that the worker used, which the system tells, is
divided among the looks. The thread that only waits for the end is left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import sysconfig
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import psycopg

import worker
from tests.bench import machine, stores
from tests.bench.peer import Places
from tests.bench.results import NOISY, OURS
from tests.bench.server import own_seconds
from tests.bench.side_process import SideProcess, ask

_PACKAGE = str(Path(worker.__file__).parent)
_RATE = 200
_LEAST = 0.01
"""The part of a job's time below which a module is no line of its own."""
_CALLEES = ("itself", "psycopg", "dramatiq", "threads, queues", "others")
_WAITING = "MainThread"
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(?::(?P<line>\d+))?\)$")

Looks = Counter[tuple[str, str]]
"""By module of ours and what it called."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.profile", description=__doc__)
    parser.add_argument("work", nargs="?", choices=["drain", "inserts"], default="drain")
    parser.add_argument("--jobs", type=int, default=30_000, help="in the run (30000)")
    options = parser.parse_args()
    sampler = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{sysconfig.get_path('scripts')}")
    if sampler is None:
        parser.error("py-spy is not installed: `uv sync --group bench`")
    with ExitStack() as stack:
        server = stack.enter_context(stores.postgres())
        db = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        places = Places(stack.enter_context(stores.database(db, server.url)))
        stacks = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carpool-bench-")), "stacks")
        ask(OURS, places, "filled", options.work, options.jobs)
        sampling = [sampler, "record", "--rate", str(_RATE), "--format", "raw", "--full-filenames", "--threads"]
        under = [*sampling, "--nonblocking", "--output", str(stacks), "--"]
        noise = machine.Noise(lambda: own_seconds(db))
        with SideProcess(OURS, places, "ran", options.work, options.jobs, under=under) as process:
            found = process.answer()
        others = noise.percent()
        looks = read(stacks.read_text())
    print(table(looks, 1e6 * found["worker cpu"] / options.jobs))
    print(f"\n{looks.total():,} looks; other processes used {others:.0f} % of the machine")
    if others > NOISY:
        print("WARNING: the machine was noisy. Believe the parts, not the microseconds.")
    return 0


def read(stacks: str) -> Looks:
    """What py-spy wrote: a line for each stack, its frames from the bottom to the top, and how often it was seen."""
    looks: Looks = Counter()
    for line in stacks.splitlines():
        frames, _, times = line.rpartition(" ")
        thread, *stack = frames.split(";")
        # Those of the worker have names; the main one boots and then waits, and gets its name on the way.
        if ": " in thread and _WAITING not in thread and (where := _where(stack)) is not None:
            looks[where] += int(times)
    return looks


def table(looks: Looks, microseconds: float) -> str:
    """
    Markdown: a line for each module, with the microseconds of *microseconds* that are its part.

    Modules are in the order of their part; those with little are one line.
    """
    each = microseconds / max(1, looks.total())
    modules = Counter[str]()
    for (module, _), times in looks.items():
        modules[module] += times
    small = {module for module, times in modules.items() if times < _LEAST * looks.total()}
    named = [module for module, _ in modules.most_common() if module not in small]
    lines = [f"| module | us a job | {' | '.join(_CALLEES)} |", "| --- " + "| ---: " * (1 + len(_CALLEES)) + "|"]
    for heading, members in [*((f"`{module}`", {module}) for module in named), ("each under 1 %", small)]:
        parts = [sum(looks[module, callee] for module in members) * each for callee in _CALLEES]
        lines.append(f"| {heading} | {sum(parts):.1f} | {' | '.join(f'{part:.1f}' for part in parts)} |")
    return "\n".join([*lines, f"| all | {microseconds:.1f} |" + " |" * len(_CALLEES)])


def _where(stack: list[str]) -> tuple[str, str] | None:
    """The module of ours nearest to the top, and whose code it was calling; None without a stack."""
    callee = ""
    for frame in reversed(stack):
        found = _FRAME.match(frame)
        if found is None:
            continue
        file = found["file"]
        if file.startswith(_PACKAGE):
            return file.removeprefix(f"{_PACKAGE}/").removesuffix(".py"), callee or "itself"
        if "/tests/bench/" in file:
            return "the job and its count", callee or "itself"
        callee = callee or _library(file)
    return ("outside of ours", callee or "others") if stack else None


def _library(file: str) -> str:
    for name in ("psycopg", "dramatiq"):
        if f"/{name}" in file:
            return name
    return "threads, queues" if file.endswith(("threading.py", "queue.py")) else "others"


if __name__ == "__main__":
    sys.exit(main())
