"""`python -m tests.bench WORK... [--jobs N] [--runs N]`: medians of fresh processes, with the least and the most."""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict

from tests.bench.works import WORKS, Figures
from tests.factories import own_database, own_server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("works", nargs="+", choices=sorted(WORKS), metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--jobs", type=int, default=20_000, help="in each run (20000)")
    parser.add_argument("--runs", type=int, default=3, help="of each work, interleaved (3)")
    options = parser.parse_args()
    found: defaultdict[str, list[Figures]] = defaultdict(list)
    with own_server(fast=False) as server:
        for _ in range(options.runs):
            for name in options.works:
                with own_database(server.url) as database:
                    found[name].append(WORKS[name](database, options.jobs))
    # Peers (other libraries, doing the same work) belong beside ours here, run by run, so that noise meets all alike.
    print(f"median (least to most) of {options.runs}, load of the machine {os.getloadavg()[0]:.1f}")
    for name, runs in found.items():
        print(f"\n{name}: {WORKS[name].__doc__}")
        for figure in runs[0]:
            values = [run[figure] for run in runs]
            print(f"  {figure:40} {statistics.median(values):12,.3f}  ({min(values):,.3f} to {max(values):,.3f})")


if __name__ == "__main__":
    main()
