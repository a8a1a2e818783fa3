"""The figures as sentences: what was found, and what limits it."""

from __future__ import annotations

from worker.cli.bench.story import Found

# Of one core: from here on the process itself is what is full.
_FULL = 0.7


def explain(found: Found) -> str:
    limits = found.limits
    return "\n".join(
        [
            f"server     PostgreSQL {limits.server_version}, synchronous_commit {limits.synchronous_commit}",
            f"round trip {_time(limits.round_trip):>10}   a statement that does nothing, and its answer",
            f"commit     {_time(limits.commit):>10}   one row; {_time(limits.disk)} of it for the disk or a replica",
            "",
            f"drain      {found.drain_per_second:>8,.0f}/s   {found.jobs:,} jobs that do nothing, {found.slots} at once"
            f"; {_time(found.cpu_per_job)} of CPU each",
            f"             {_limit_of_drain(found)}",
            f"enqueue    {found.enqueue_per_second:>8,.0f}/s   one sender, one by one, each committed;"
            f" in bulk {found.bulk_per_second:,.0f}/s",
            f"             {_limit_of_enqueue(found)}",
            f"latency    {_time(found.latency_median):>10}   from a send to the start of its job, on an idle worker;"
            f" 99 of 100 within {_time(found.latency_p99)}",
            f"             {_limit_of_latency(found)}",
        ]
    )


def _limit_of_drain(found: Found) -> str:
    busy = found.cpu_per_job * found.drain_per_second
    if busy > _FULL:
        return f"limit: the worker's process used {busy:.0%} of a core; more worker processes do more."
    return (
        f"limit: the worker's process used only {busy:.0%} of a core; the rest it waited, for the server or"
        " because others use this machine."
    )


def _limit_of_enqueue(found: Found) -> str:
    most = 1 / found.limits.commit
    return (
        f"limit: a commit each, so at most {most:,.0f}/s for one sender; send_many, one transaction for many,"
        " or several senders do more."
    )


def _limit_of_latency(found: Found) -> str:
    least = found.limits.commit + 2 * found.limits.round_trip
    return (
        f"limit: the send's commit, the notification and the claim, at least {_time(least)} here;"
        " the rest is the processes' own."
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 0.001 else f"{seconds * 1e3:.1f} ms"
