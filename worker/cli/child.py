"""One process of several, as the supervisor starts it: `python -m worker.cli.child FD`. Not for people."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing


def main() -> None:
    """Run what the supervisor orders through the socket *FD*."""
    # First of all: programs that jobs start must not keep it open when this process and its supervisor are gone.
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)

    from worker.cli import exits
    from worker.cli.run import leave
    from worker.runtime import Parent, run
    from worker.secrecy import keep_secret

    try:
        if os.environ.get("PGPASSWORD"):
            keep_secret(f"password='{os.environ['PGPASSWORD']}'")
        with closing(Parent(end)) as parent:
            try:
                code = run(parent.order(), parent=parent)
            finally:
                # It is over, and one more request would only make another exit code of it, also while the link closes.
                for signum in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(signum, signal.SIG_IGN)
    except (Exception, KeyboardInterrupt) as exc:
        code = exits.report(exc)
    leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
