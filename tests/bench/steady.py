"""
`python -m tests.bench.steady [--minutes N] [--side NAME]`: is the tenth minute like the first?

Producers send at 70 % of what the worker drains, first with nobody in the way, then beside a transaction that is held
open, which keeps the server from cleaning up. History is kept. Each minute tells its throughput, how long jobs waited
for their start, what they cost the worker and the server, and what a claim took. Exit code 0 when the targets hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg

from tests.bench import machine, stores
from tests.bench.peer import Places
from tests.bench.results import OURS
from tests.bench.server import claims, count_statements, cpu_seconds, own_seconds
from tests.bench.side_process import SideProcess, ask
from tests.bench.verdict import Verdict, conclude

LEAST_FLAT = 0.95
"""Of the first minute's throughput the last one has at least."""
MOST_P99 = 50.0
MOST_CLAIM = 1.3
"""Times as much as in the first minute a claim costs in the last one."""
SHARE = 0.7

_WORK = "latency"
_WARM_UP = 10.0

Minute = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.steady", description=__doc__)
    parser.add_argument("--minutes", type=int, default=10, help="of each of the two (10)")
    parser.add_argument("--minute", type=float, default=60.0, help="seconds that a minute has, for a rehearsal (60)")
    parser.add_argument("--only", choices=_PHASES, help="one of the two")
    parser.add_argument("--share", type=float, default=SHARE, help="of the drain rate (0.7)")
    parser.add_argument("--rate", type=float, help="jobs a second, instead of a share of a rate that is measured")
    parser.add_argument("--producers", type=int, default=2, help="processes that send (2)")
    parser.add_argument("--jobs", type=int, default=20_000, help="by which the drain rate is measured (20000)")
    parser.add_argument("--side", default=OURS, help="another library than ours; see `python -m tests.bench --help`")
    parser.add_argument("--node-modules", metavar="DIR", help="where its packages are, if it is one of Node")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    verdicts: list[Verdict] = []
    phases: dict[str, list[Minute]] = {}
    with stores.postgres() as server, psycopg.connect(server.url, autocommit=True) as db:
        noise = machine.Noise(lambda: own_seconds(db))
        places = Places(server.url, node_modules=options.node_modules)
        rate = options.rate or options.share * _drain_rate(db, places, options.side, options.jobs)
        for phase in [options.only] if options.only else _PHASES:
            print(f"\n{_PHASES[phase]}, {rate:,.0f} jobs sent a second by {options.producers} processes")
            phases[phase] = []
            for minute in _minutes(db, places, options, rate, held=phase == "held"):
                print(_line(len(phases[phase]) + 1, minute), flush=True)
                phases[phase].append(minute)
            verdicts += _verdicts(_PHASES[phase], phases[phase])
        return conclude(
            verdicts, {"side": options.side, "rate": rate, "minutes": phases}, others=noise.percent(), keep=options.json
        )


_PHASES = {"free": "nobody in the way", "held": "beside a transaction held open"}


def _drain_rate(db: psycopg.Connection, places: Places, side: str, jobs: int) -> float:
    with stores.database(db, places.postgres) as url:
        own = replace(places, postgres=url)
        ask(side, own, "filled", _WORK, jobs)
        rate: float = jobs / ask(side, own, "ran", _WORK, jobs)["seconds"]
    print(f"{side} drains {rate:,.0f} of these jobs a second")
    return rate


def _minutes(
    server: psycopg.Connection, places: Places, options: argparse.Namespace, rate: float, *, held: bool
) -> Iterator[Minute]:
    with ExitStack() as stack:
        url = stack.enter_context(stores.database(server, places.postgres))
        own = replace(places, postgres=url)
        db = stack.enter_context(psycopg.connect(url, autocommit=True))
        count_statements(db)
        ask(options.side, own, "filled", _WORK)
        worker = stack.enter_context(SideProcess(options.side, own, "served", _WORK))
        worker.answer()
        producers = [
            stack.enter_context(
                SideProcess(options.side, own, "flowed", _WORK, more={"rate": rate / options.producers})
            )
            for _ in range(options.producers)
        ]
        for producer in producers:
            producer.answer()
        if held:
            stack.enter_context(_held_transaction(url))
        time.sleep(min(_WARM_UP, options.minute))
        _since_last(worker)
        for _ in range(options.minutes):
            before, cpu = claims(db), cpu_seconds(db)
            time.sleep(options.minute)
            done = _since_last(worker)
            claimed = claims(db) - before
            yield {
                "jobs per s": done["jobs"] / done["seconds"],
                "p50 ms": done.get("p50 ms", 0.0),
                "p99 ms": done.get("p99 ms", 0.0),
                "worker us CPU per job": 1e6 * done["worker cpu"] / max(1, done["jobs"]),
                "server us CPU per job": 1e6 * (cpu_seconds(db) - cpu) / max(1, done["jobs"]),
                "claims per s": claimed.calls / done["seconds"],
                "ms per claim": claimed.milliseconds / max(1, claimed.calls),
                "blocks per claim": claimed.blocks / max(1, claimed.calls),
            }
        sent = [producer.end() for producer in producers]
        if (slow := sum(each["jobs"] / each["seconds"] for each in sent) / rate) < LEAST_FLAT:
            print(f"the producers sent only {100 * slow:.0f} % of what they should")


@contextmanager
def _held_transaction(url: str) -> Iterator[None]:
    with psycopg.connect(url) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT count(*) FROM pg_class")
        yield


def _since_last(worker: SideProcess) -> Minute:
    worker.tell("what have you done since I asked last?")
    done: Minute = worker.answer()
    return done


def _line(number: int, minute: Minute) -> str:
    spent = (
        f"{minute['worker us CPU per job']:.0f} us of the worker, {minute['server us CPU per job']:.0f} of the server"
    )
    claim = f"{minute['ms per claim']:.3f} ms, {minute['blocks per claim']:.0f} blocks"
    return (
        f"  minute {number:2}: {minute['jobs per s']:6,.0f} jobs a second, started after {minute['p50 ms']:.1f} ms"
        f" (p99 {minute['p99 ms']:.1f} ms); a job costs {spent}; {minute['claims per s']:.0f} claims a second, {claim}"
    )


def _verdicts(phase: str, minutes: list[Minute]) -> list[Verdict]:
    first, last = minutes[0], minutes[-1]

    def times(figure: str) -> float:
        return last[figure] / first[figure] if first[figure] else float("inf")

    return [
        Verdict(f"{phase}: throughput, last minute / first", times("jobs per s"), LEAST_FLAT, at_most=False),
        Verdict(f"{phase}: p99 of the wait for a start, worst minute, ms", _worst(minutes, "p99 ms"), MOST_P99),
        Verdict(f"{phase}: milliseconds a claim, last minute / first", times("ms per claim"), MOST_CLAIM),
        Verdict(f"{phase}: blocks a claim, last minute / first", times("blocks per claim"), MOST_CLAIM),
    ]


def _worst(minutes: list[Minute], figure: str) -> float:
    return max(minute[figure] for minute in minutes)


if __name__ == "__main__":
    sys.exit(main())
