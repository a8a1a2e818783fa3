"""
What a web application would do: send one job within a transaction of its own. The demo runs this as a second process.

    python -m worker.cli.demo.enqueue scan FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import psycopg

from jobs.duplicates import find_duplicates
from jobs.inventory import scan
from worker import bind

JOBS: dict[str, Callable[..., object]] = {"scan": scan.send, "find_duplicates": find_duplicates.send}


def main() -> None:
    """Send the job that the command line names, with its arguments, to the database of WORKER_DATABASE_URL."""
    name, *arguments = sys.argv[1:]
    url = os.environ["WORKER_DATABASE_URL"]
    with psycopg.connect(url, application_name="demo enqueue") as conn, bind(conn):
        JOBS[name](*arguments)


if __name__ == "__main__":
    main()
