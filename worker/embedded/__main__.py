"""`python -m worker.embedded serve FOLDER`: become the supervisor of FOLDER, detached from who called."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from worker.embedded.supervisor import Order, Taken, serve
from worker.errors import EmbeddedError

LISTENING = 0  # a supervisor runs and takes clients
FAILED = 1  # the reason is on stderr
TAKEN = 75  # another supervisor has the folder, or is just leaving it: attach, or try again (EX_TEMPFAIL)


def main() -> int:
    order = _order()
    read, write = os.pipe()
    # The caller waits for this process only. Its child has no parent that could forget to reap it, and its own
    # session (`client._launch` makes it), so that Ctrl-C in the caller's terminal does not reach it.
    if os.fork() == 0:
        os.close(read)
        os._exit(_supervise(order, write))
    os.close(write)
    with os.fdopen(read, "rb") as status:
        said = status.read()
    return said[0] if said else FAILED


def _supervise(order: Order, status: int) -> int:
    def tell(code: int) -> None:
        os.write(status, bytes([code]))
        os.close(status)

    os.chdir("/")  # keep no folder of the caller's in use
    os.umask(0o077)
    try:
        serve(order, listening=lambda: tell(LISTENING))
    except Taken:
        tell(TAKEN)
        return TAKEN
    except EmbeddedError as exc:
        print(exc, file=sys.stderr, flush=True)
        return FAILED
    except OSError as exc:
        print(f"folder {order.folder} cannot serve: {exc}; name another folder", file=sys.stderr, flush=True)
        return FAILED
    return LISTENING


def _order() -> Order:
    parser = argparse.ArgumentParser(prog="python -m worker.embedded", description=__doc__)
    serving = parser.add_subparsers(required=True).add_parser("serve")
    serving.add_argument("folder", type=Path)
    serving.add_argument("--binaries", type=Path)
    serving.add_argument("--grace", type=float, default=Order.grace)
    serving.add_argument("--fast", action="store_true")
    serving.add_argument("--temporary", action="store_true")
    given = parser.parse_args()
    folder, binaries = (path and path.absolute() for path in (given.folder, given.binaries))
    return Order(folder, binaries, given.grace, given.fast, given.temporary)


if __name__ == "__main__":
    sys.exit(main())
