"""
A soak of the pool: `python -m tests.chaos.pool --seconds N [--seed N] [--max-size N]`; exit code 0 when all held.

On a server of its own, restarted now and then; on WORKER_TEST_DATABASE_URL's, if set, without restarts. The same seed
makes the same choices again, but threads and the server's answers never come in the same order twice.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import structlog
from structlog.typing import EventDict

from tests.chaos import adversity
from tests.chaos.crowd import Crowd
from tests.chaos.leaks import Leaks
from tests.chaos.sampler import Sampler, observing
from tests.chaos.scene import Scene
from tests.chaos.server import Server, started
from tests.chaos.verdict import Finding, Memory, leak_findings, open_files, print_table, seen, session_states
from worker.pool import Connection, Pool, PoolOptions

EXIT_HELD, EXIT_FAILED = 0, 1

MAX_SIZE = 8
# What nobody here waits for as long as; whoever does hangs.
PATIENCE = 30.0
SETTLE = 10.0


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds:g} s, at most {options.max_size} connections", flush=True)
    faulthandler.enable()
    with started() as server:
        findings, scene = soak(server, options.seconds, seed, options.max_size)
    for what, count in sorted(scene.counts.items()):
        print(f"      {what:<48} {count}")
    print_table(findings, sys.stdout)
    print(*scene.surprises, sep="\n", end="", file=sys.stderr)
    held = all(finding.holds for finding in findings)
    print(f"seed {seed}: {'everything held' if held else 'FAILED'}", flush=True)
    return EXIT_HELD if held else EXIT_FAILED


def soak(server: Server, seconds: float, seed: int, max_size: int) -> tuple[list[Finding], Scene]:
    """Make noise for *seconds*, then look at what is left."""
    files, threads = open_files(), set(threading.enumerate())
    leaks, memory, sampler = Leaks(), Memory(), Sampler(server.url)
    with ExitStack() as stack:
        pool = Pool.connect(_pool_options(server.url, max_size))
        stack.callback(pool.close, 0)
        stack.enter_context(pool.reserve())
        scene = Scene(pool, seed, leaks)
        stack.enter_context(_listening_to_the_log(scene))
        sampler.start()
        stack.callback(sampler.stop)
        stack.callback(scene.over.set)
        crowd = Crowd(scene)
        killer = threading.Thread(target=adversity.kill, args=(scene, scene.rng("killer"), server.url), name="killer")
        crowd.start()
        killer.start()
        _conduct(scene, server, seconds, memory)
        scene.over.set()
        late = crowd.left()
        killer.join(PATIENCE)
        findings = [Finding("actors that hang", late or "none", not late)]
        findings += _settled(scene, server, max_size)
        begun = time.monotonic()
        pool.close()
        findings.append(Finding("closing took", f"{time.monotonic() - begun:.2f} s", time.monotonic() - begun < 5))
        with observing(server.url) as observer:
            findings.append(seen("sessions left after close", lambda: session_states(observer), []))
        sampler.stop()
    findings.append(
        Finding(f"most of {max_size} sessions, in {sampler.looks} looks", sampler.most, sampler.most <= max_size)
    )
    findings += _left_behind(files, threads)
    findings.append(memory.finding())
    surprises = sum(count for what, count in scene.counts.items() if what.startswith("surprise"))
    findings.append(Finding("surprises", surprises, not surprises))
    return findings, scene


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.chaos.pool", description="A soak of the pool.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to make noise")
    parser.add_argument("--seed", type=int, help="of the choices made; printed, so that a run can be repeated")
    parser.add_argument("--max-size", type=int, default=MAX_SIZE, help="of the pool, the reserved connection included")
    return parser


def _pool_options(url: str, max_size: int) -> PoolOptions:
    return PoolOptions(
        conninfo=url,
        application_name="chaos",
        max_size=max_size,
        min_size=2,
        idle_timeout=1.5,
        max_lifetime=4.0,
        warn_after=3600.0,
    )


def _conduct(scene: Scene, server: Server, seconds: float, memory: Memory) -> None:
    """Time passes, with restarts and quiet times in it. On the main thread, whose child the server is."""
    rng = scene.rng("conductor")
    begun = time.monotonic()
    # Not at the very end, so that even a short soak sees one.
    restart_at = begun + min(adversity.RESTART_EVERY, seconds / 3)
    calm_at = begun + adversity.CALM_EVERY
    while (now := time.monotonic()) < begun + seconds:
        memory.look()
        if server.restarts and now >= restart_at:
            adversity.restart(scene, rng, server)
            restart_at = now + rng.uniform(0.5, 1.5) * adversity.RESTART_EVERY
        if now >= calm_at:
            scene.calm.set()
        if now >= calm_at + adversity.CALM:
            scene.calm.clear()
            calm_at = now + adversity.CALM_EVERY
        if stuck := scene.stuck(PATIENCE):
            scene.surprise("conductor", TimeoutError(f"no progress in {PATIENCE:g} s: {stuck}"))
            faulthandler.dump_traceback()
            return
        scene.over.wait(0.25)


def _settled(scene: Scene, server: Server, max_size: int) -> list[Finding]:
    """How things stand once the pool has had time to find the last leaks."""
    pool = scene.pool
    gc.collect()
    begun = time.monotonic()
    while time.monotonic() < begun + SETTLE and not _is_quiet(pool):
        time.sleep(0.05)
    took = time.monotonic() - begun
    stats = pool.stats()
    findings = list(leak_findings(scene.leaks))
    made, counted = scene.leaks.num_made, stats.reclaimed_total
    findings += [
        Finding("leaks made = leaks that the pool counts", f"{made} = {counted}", made == counted),
        Finding("settled after", f"{took:.2f} s: {pool!r}", took < SETTLE),
        Finding("out", [str(checkout) for checkout in pool.checkouts()] or 0, not stats.out),
        Finding("waiting", stats.waiting, not stats.waiting),
        Finding("all connections idle", f"{stats.idle} of {stats.size - 1}", stats.idle == stats.size - 1),
    ]
    with observing(server.url) as observer:
        states = session_states(observer)
        # One that was just replaced for its age may not have been counted among the idle ones yet.
        findings.append(Finding("states of the sessions on the server", states, set(states) <= {"idle"}))
        taken = [pool.acquire() for _ in range(max_size - 1)]
        findings.append(seen("connections that can be had", lambda: len(taken), max_size - 1))
        for conn in taken:
            pool.release(conn)
    return findings


def _is_quiet(pool: Pool) -> bool:
    stats = pool.stats()
    return not stats.out and not stats.waiting and stats.idle == stats.size - 1


def _left_behind(files: int, threads: set[threading.Thread]) -> list[Finding]:
    """What the process still has of the pool after its end."""
    gc.collect()
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline and (set(threading.enumerate()) - threads or open_files() > files):
        time.sleep(0.05)
    left = sorted(thread.name for thread in set(threading.enumerate()) - threads)
    open_connections = [conn for conn in gc.get_objects() if isinstance(conn, Connection) and not conn.closed]
    return [
        Finding("threads left", left or "none", not left),
        Finding("connections left open", len(open_connections), not open_connections),
        Finding("files left open", open_files() - files, open_files() <= files),
    ]


@contextmanager
def _listening_to_the_log(scene: Scene) -> Iterator[None]:
    """The pool's own events, counted; what tells of an error that nothing here explains is a surprise."""

    def hear(logger: Any, method: str, event: EventDict) -> EventDict:
        name = event["event"]
        if name == "pool.leaked":
            scene.leaks.reclaimed(event)
        elif method in ("exception", "critical") or "exc_info" in event:
            scene.surprise(name, sys.exc_info()[1] or RuntimeError(str(event)))
        else:
            scene.count(f"{name} ({method})")
        raise structlog.DropEvent

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # psycopg itself speaks of the sessions that were killed under it.
            what = "said by" if record.name == "psycopg" else "surprise: log of"
            scene.count(f"{what} {record.name}: {record.msg}")

    handler = Handler(logging.WARNING)
    # asyncio complains about the tasks of loops that are closed under them, which is what is done here.
    quiet = [logging.getLogger(name) for name in ("asyncio", "concurrent.futures")]
    structlog.configure(processors=[hear], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    logging.getLogger().addHandler(handler)
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda args: scene.count(f"surprise: unraisable {args.exc_value!r}")
    for logger in quiet:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        logging.getLogger().removeHandler(handler)
        structlog.reset_defaults()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
