"""`worker bench`: how fast this worker is on the user's own database, and what limits it there."""

from __future__ import annotations

import json
from typing import Any

import click

from worker.cli.settings import NO_DATABASE, configured, database_url, setting


@click.command("bench")
@click.option("--jobs", type=click.IntRange(100, 1_000_000), default=2000, show_default=True, help="How many to run.")
@setting("--slots", "How many jobs run at once; 10 by default.", metavar="N")
@database_url
@click.option("--json", "as_json", is_flag=True, help="One object; seconds, and jobs per second.")
def command(jobs: int, as_json: bool, **flags: Any) -> None:
    """
    Measure drain, enqueue and latency on this database, and say what limits them.

    Everything happens in a schema of its own, worker_bench_..., which is dropped at the end, also after Ctrl-C or a
    failure; your tables are not touched. It loads the server while it runs: not for a busy production database. A
    bench that was killed leaves its schema behind, which you may drop.
    """
    from worker.errors import ConfigError

    config = configured(**flags)
    if not config.database_url:
        raise ConfigError(NO_DATABASE)
    from worker.cli.bench.story import measure
    from worker.cli.bench.words import explain

    found = measure(config, jobs, say=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else explain(found))
