"""
Random faults over several workers: `python -m tests.chaos.faults [--seconds N] [--workers N] [--seed N]`.

Each worker has its own cables to the server, one to each address that it may have. One fault after the other, in an
order drawn by chance: kill -9, a freeze of the process for longer than its lease, cuts of the network in both
directions and in one, slowness, resets, refused connections, terminated sessions, restarts of Postgres, and a Postgres
that is down for long, has no free connection, is read-only, has a full disk, or fails over to its standby. Jobs are
sent all the while, and a schedule ticks. At the end every effect must be there exactly once, nothing left over, no
worker may have had more sessions than its pool or have grown, and each must end in order, with nothing in the server's
log.

Prints how long each kind of fault was felt after it was over, and a verdict; exit code 1 if anything is wrong. The disk
fills only where this process may mount one (as root on Linux).
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from tests.chaos import disk, logs
from tests.chaos.faults import kinds, ledger
from tests.chaos.faults.fleet import POOL_SIZE, Worker
from tests.chaos.faults.jobs import SCHEMA
from tests.chaos.faults.report import Report
from tests.chaos.faults.scene import Scene
from tests.chaos.faults.sending import Sending
from tests.chaos.faults.watching import Watching
from tests.chaos.pair import Pair, pair
from worker.queue.schema import Schema

_PATIENCE = 60.0
_LOOK = 0.1
_MINUTE = 60.0
_SERVER_LOG = "server.log"
_DISK = 1536
# A burst gives every worker more than it can take at once.
_BURST = 4


def main() -> int:
    options = _options()
    print(f"seed {options.seed}: {options.workers} workers, {options.seconds:g} s", flush=True)
    folder = options.logs or Path(tempfile.mkdtemp(prefix="carpool-faults-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)  # the server may run under another account; its own folders inside are private
    with ExitStack() as stack:
        report = _run(options, folder, stack)
    print(report.text())
    if options.json is not None:
        options.json.write_text(report.as_json())
    if options.table is not None:
        options.table.write_text(report.markdown())
    if report.holds and options.logs is None:
        shutil.rmtree(folder)
    else:
        print(f"the logs are in {folder}")
    return 0 if report.holds else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.faults", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", metavar="TEXT", help="faults whose name contains it")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs there, also if all is well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what was seen, for programs")
    parser.add_argument("--table", type=Path, metavar="FILE", help="how long each fault was felt, as markdown")
    return parser.parse_args()


def _run(options: argparse.Namespace, folder: Path, stack: ExitStack) -> Report:
    small = None
    if disk.is_possible():
        Path(folder, "disk").mkdir(exist_ok=True)
        small = stack.enter_context(disk.small_disk(Path(folder, "disk"), mebibytes=_DISK))
    log = Path(folder, _SERVER_LOG).open("ab", buffering=0)  # noqa: SIM115  # closed by the stack
    stack.callback(log.close)
    both = stack.enter_context(pair(Path(folder, "disk", "server"), log))
    with psycopg.connect(both.url, autocommit=True) as conn:
        Schema().migrate(conn)
        conn.execute(SCHEMA)
    workers = [stack.enter_context(Worker(str(number), both.addresses, folder)) for number in range(options.workers)]
    place = kinds.Place(both, small, random.Random(options.seed))  # noqa: S311  # chaos, repeatable
    possible = [*kinds.KINDS, *(kinds.OF_THE_DISK if small is not None else ())]
    faults = [each for each in possible if options.only is None or options.only in each.name]
    if not faults:
        sys.exit(f"there is no fault here whose name contains {options.only!r}; possible: {[f.name for f in possible]}")
    watching = Watching(lambda: both.url, workers)
    return _play(Scene(place, workers, faults, watching.allow), watching, both, folder, options)


def _play(scene: Scene, watching: Watching, both: Pair, folder: Path, options: argparse.Namespace) -> Report:
    """Faults for some seconds, then the end in order."""
    sending = Sending(lambda: both.url, _BURST * len(scene.workers))
    begun = time.monotonic()
    sending.start()
    watching.start()
    try:
        scene.wait_for(scene.workers)
        _strike(scene, sending, watching, options.seconds)
        sending.stop()
        _wait_until_empty(both.url)
    finally:
        sending.stop()
        watching.stop()
    report = Report(options.seed, options.workers, time.monotonic() - begun, scene.felt)
    report.most_sessions, report.num_looks = watching.most_sessions, watching.num_looks
    report.weights = watching.weights()
    said = _said_by_server(folder)
    codes = [worker.stop() for worker in scene.workers]
    report.wrong = {
        "sessions over the cap": max(0, watching.most_sessions - POOL_SIZE),
        "processes that have grown": sum(not each.is_flat for each in report.weights),
        "workers that did nothing more": len(scene.lame),
        "workers that did not end in order": sum(code != 0 for code in codes),
        "complaints of the server about their end": len(_said_by_server(folder)) - len(said),
    }
    with psycopg.connect(both.url, autocommit=True) as conn:
        report.wrong |= ledger.audit(conn, sending.confirmed)
        report.counts = ledger.counts(conn)
    report.counts["statements refused for want of room"] = sum("No space left" in line for line in said)
    report.counts["workers that ended by themselves"] = sum(worker.num_ended for worker in scene.workers)
    report.logged = dict(logs.complaints(folder, ("warning", "error", "critical")))
    return report


def _strike(scene: Scene, sending: Sending, watching: Watching, seconds: float) -> None:
    begun = time.monotonic()
    num_struck, told_at = 0, begun
    while (now := time.monotonic()) < begun + seconds and not scene.lame:
        if now >= told_at + _MINUTE:
            told_at = now
            worst = max((felt, name) for name, each in scene.felt.items() for felt in each)
            memory = [round(worker.memory or 0) for worker in scene.workers]
            print(
                f"{now - begun:5.0f} s: {num_struck} faults, {len(sending.confirmed)} jobs sent, at most"
                f" {watching.most_sessions} sessions, MiB {memory}, worst {worst[0]:.2f} s ({worst[1]})",
                flush=True,
            )
        scene.strike()
        num_struck += 1


def _wait_until_empty(url: str) -> None:
    """The schedule goes on, so nearly: no job that is older than a few ticks."""
    query = "SELECT count(*) FROM worker.job WHERE actor <> 'ticking'"
    deadline = time.monotonic() + _PATIENCE
    with psycopg.connect(url, autocommit=True) as conn:
        while ledger.count(conn, query) and time.monotonic() < deadline:
            time.sleep(_LOOK)


def _said_by_server(folder: Path) -> list[str]:
    """All but what it says anyway."""
    usual = ("LOG:  checkpoint ", "LOG:  automatic ")
    said = Path(folder, _SERVER_LOG).read_text(errors="replace").splitlines()
    return [line for line in said if not any(each in line for each in usual)]


if __name__ == "__main__":
    sys.exit(main())
