"""`python -m tests.bench [WORK]... [--vs PEER]...`: medians of fresh processes, beside others that do the same."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench import peers, report, rounds
from tests.bench.results import OURS, Results
from tests.bench.rounds import WORKS

_USUAL = ("drain", "inserts", "enqueue", "bulk", "latency")
_INSTALL = "Peers are left out unless they are installed: `uv sync --group bench`, redis-server, rabbitmq-server, node."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, epilog=_INSTALL)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join(WORKS)}; {', '.join(_USUAL)} by default")
    others = [name for name in peers.names() if name != OURS]
    parser.add_argument(
        "--vs", action="append", default=[], choices=[*others, "all"], metavar="PEER", help=f"all, or of {others}"
    )
    parser.add_argument("--jobs", type=int, default=10_000, help="in each run (10000)")
    parser.add_argument("--runs", type=int, default=3, help="of each work, interleaved (3)")
    parser.add_argument("--count", action="store_true", help="also count statements per job, which takes as long again")
    parser.add_argument("--node-modules", metavar="DIR", help="where `npm install graphile-worker pg-boss` put them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="kept", help="measure nothing, show what was kept")
    parser.add_argument("--table", action="store_true", help="print the ratios as the README has them, too")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw them, as .svg or .png")
    options = parser.parse_args()
    if unknown := [work for work in options.works if work not in WORKS]:
        parser.error(f"unknown work {unknown[0]!r}; there are {', '.join(WORKS)}")
    results = Results.load(options.kept) if options.kept else _measured(options, others)
    print(report.text(results, {name: work.__doc__ or "" for name, work in WORKS.items()}))
    if options.table:
        print(f"\n{report.table(results)}")
    if options.figure:
        from tests.bench import figure  # matplotlib, which is only needed here

        figure.draw(results, options.figure)


def _measured(options: argparse.Namespace, others: list[str]) -> Results:
    chosen = others if "all" in options.vs else [*dict.fromkeys(options.vs)]
    return rounds.measure(
        [*dict.fromkeys(options.works or _USUAL)],
        [OURS, *chosen],
        jobs=options.jobs,
        runs=options.runs,
        node_modules=options.node_modules,
        counts=options.count,
        keep=lambda results: results.save(options.json) if options.json else None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )


if __name__ == "__main__":
    main()
