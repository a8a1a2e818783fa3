"""What the service manager hears, by a stand-in for its socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker import clock
from worker.observe import ServiceManager


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.env = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        words: list[dict[str, str]] = []
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return words
            words.append(dict(line.split("=", 1) for line in text.splitlines()))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@carpool-test-{os.getpid()}"
    manager = Manager(address)
    yield manager
    manager.close()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    return now


def test_running_is_ready_and_once_only(manager: Manager) -> None:
    service = ServiceManager(manager.env)
    for stage in ("running", "paused", "running"):
        service.entered(stage, f"is {stage}")

    assert manager.heard() == [
        {"STATUS": "is running", "READY": "1"},
        {"STATUS": "is paused"},
        {"STATUS": "is running"},
    ]


def test_draining_is_stopping_and_asks_for_time(manager: Manager) -> None:
    ServiceManager(manager.env).entered("draining", "draining: running 2")

    assert manager.heard() == [{"STATUS": "draining: running 2", "STOPPING": "1", "EXTEND_TIMEOUT_USEC": "15000000"}]


def test_more_time_is_asked_for_while_it_drains(manager: Manager, time: list[float]) -> None:
    service = ServiceManager(manager.env)
    service.entered("draining", "")
    manager.heard()

    service.beaten(well=True)
    service.beaten(well=True)
    time[0] += 5
    service.beaten(well=True)

    assert manager.heard() == [{"EXTEND_TIMEOUT_USEC": "15000000"}] * 2


def test_the_watchdog_is_fed_at_half_its_time(manager: Manager, time: list[float]) -> None:
    service = ServiceManager({**manager.env, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})

    service.beaten(well=True)
    time[0] += 14.9
    service.beaten(well=True)
    assert manager.heard() == [{"WATCHDOG": "1"}]

    time[0] += 0.1
    service.beaten(well=True)
    assert manager.heard() == [{"WATCHDOG": "1"}]


def test_the_watchdog_starves_when_something_is_not_well(manager: Manager) -> None:
    ServiceManager({**manager.env, "WATCHDOG_USEC": "30000000"}).beaten(well=False)

    assert manager.heard() == []


def test_the_watchdog_of_another_process_is_not_fed(manager: Manager) -> None:
    ServiceManager({**manager.env, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).beaten(well=True)

    assert manager.heard() == []


def test_without_a_manager_nothing_is_told() -> None:
    service = ServiceManager({"WATCHDOG_USEC": "30000000"})

    with capture_logs() as logged:
        service.entered("running", "running")
        service.beaten(well=True)

    assert logged == []


def test_a_manager_that_is_gone_is_told_in_the_log_and_harms_nobody(tmp_path: Path) -> None:
    with capture_logs() as logged:
        ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).entered("running", "running")

    assert [event["event"] for event in logged] == ["service_manager.not_told"]
