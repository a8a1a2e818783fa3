"""`python -m worker`: the command, where no script is installed."""

from __future__ import annotations

from worker.cli import main

main(prog_name="worker")
