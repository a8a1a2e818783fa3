"""One process of several, as its main thread goes through it."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from worker import exits
from worker.cli.child import main
from worker.runtime.parent import Parent


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What `main` does, in order, when it is started as the supervisor starts it."""
    did: list[str] = []
    ours, theirs = socket.socketpair()

    class Told(Parent):
        def close(self) -> None:
            did.append("the link is closed")
            super().close()

        def order(self) -> Any: ...

    monkeypatch.setattr(sys, "argv", ["child", str(theirs.detach())])
    monkeypatch.setattr("worker.runtime.Parent", Told)
    monkeypatch.setattr("worker.cli.run.leave", lambda code: did.append(f"leaves with {code}"))
    monkeypatch.setattr(signal, "signal", lambda signum, handler: did.append(f"{signum.name}: {handler.name}"))
    with ours:
        yield did


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_signal_that_comes_while_the_link_is_closed_changes_no_exit_code(
    order: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The handlers that took it for a request are gone by then: it would kill."""

    def run(config: Any, *, parent: Parent) -> int:
        order.append("jobs run")
        if how == "raises":
            raise ConnectionError("the server is away")
        return exits.RECYCLED

    monkeypatch.setattr("worker.runtime.run", run)

    with suppress(SystemExit):
        main()

    *before, end = order
    assert before == ["jobs run", "SIGTERM: SIG_IGN", "SIGINT: SIG_IGN", "the link is closed"]
    assert end.startswith("leaves with")
