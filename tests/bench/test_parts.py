"""The parts of the bench whose mistakes would be numbers that look right."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.bench import fleet, profile
from tests.bench.tally import Tally


def test_a_network_in_between_delays_both_ways_and_passes_on_every_byte(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    sent = os.urandom(300_000)
    command = [sys.executable, "-m", "tests.bench.network", "0.1", f"{far}={near}"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(near))
        listener.listen()
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
            socket.socket(socket.AF_UNIX) as client,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            client.connect(str(far))
            server, _ = listener.accept()

            began = time.monotonic()
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            came = b"".join(iter(lambda: server.recv(65536), b""))
            server.sendall(b"thanks")
            server.close()
            answer = client.recv(100)

            assert (came, answer) == (sent, b"thanks")
            assert time.monotonic() - began >= 0.1
            process.stdin.close()
            assert process.wait(20) == 0


def test_a_look_counts_for_the_module_of_ours_nearest_to_the_top() -> None:
    ours, libraries = profile._PACKAGE, "/usr/lib/python3/site-packages"
    stacks = "\n".join(
        [
            f"thread (1): dispatcher;run ({ours}/queue/dispatcher.py:9);send ({ours}/pool/connection.py:3) 2",
            f"thread (1): dispatcher;run ({ours}/queue/dispatcher.py:9);run ({libraries}/psycopg/cursor.py:3) 3",
            "thread (2): job-1;run (/usr/lib/python3/threading.py:1) 4",
            f"thread (3): MainThread;wait ({ours}/queue/dispatcher.py:9) 5",
            f"thread (3);import ({ours}/queue/dispatcher.py:1) 6",
        ]
    )

    looks = profile.read(stacks)

    assert looks == {
        ("pool/connection", "itself"): 2,
        ("queue/dispatcher", "psycopg"): 3,
        ("outside of ours", "threads, queues"): 4,
    }
    assert "| `queue/dispatcher` | 30.0 | 0.0 | 30.0 |" in profile.table(looks, 90.0)


def test_what_claims_passed_over_is_read_from_the_plans_in_the_log(tmp_path: Path) -> None:
    node = {"Node Type": "LockRows", "Actual Rows": 3.0, "Actual Loops": 2, "Plans": []}
    below = {"Node Type": "Index Scan", "Actual Rows": 5.0, "Actual Loops": 2}
    claim = {"Query Text": "SELECT ... FOR UPDATE SKIP LOCKED", "Plan": {**node, "Plans": [below]}}
    other = {"Query Text": "SELECT 1", "Plan": {"Node Type": "Result", "Actual Rows": 1.0, "Actual Loops": 1}}
    log = tmp_path / "server.log"
    log.write_text("LOG:  before\n" + "".join(_logged(plan) for plan in (claim, other)))

    assert [*fleet._claims(log, 0)] == [fleet.Locks(claims=1, seen=10.0, locked=6.0)]


def test_a_tally_counts_and_can_be_read_meanwhile() -> None:
    tally = Tally()

    for _ in range(3):
        tally.count()

    assert (tally.num, tally.num) == (3, 3)


def _logged(plan: Mapping[str, object]) -> str:
    lines = json.dumps(plan, indent=2).splitlines()
    return "LOG:  duration: 0.1 ms  plan:\n" + "".join(f"\t{line}\n" for line in lines)
