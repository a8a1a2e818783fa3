"""The pages: right answers, and no client who could keep the others waiting."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from worker.config import Address
from worker.errors import ConfigError
from worker.observe import HttpServer, Page
from worker.observe import http as http_module
from worker.observe.http import ask

ANYWHERE = Address("127.0.0.1", 0)
PAGES = {
    "/livez": lambda: Page(200, "application/json", '{"ok": true}\n'),
    "/readyz": lambda: Page(503, "application/json", '{"ok": false}\n'),
    "/broken": lambda: Page(1 // 0, "", ""),
}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(ANYWHERE, PAGES) as server:
        yield server


def get(server: HttpServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body, as a client that knows HTTP sees them."""
    conn = http.client.HTTPConnection(server.address.host, server.address.port, timeout=10)
    try:
        conn.request(method, path)
        answer = conn.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        conn.close()


def test_each_page_has_its_status_type_and_body(server: HttpServer) -> None:
    assert get(server, "/livez") == (200, "application/json", '{"ok": true}\n')
    assert get(server, "/readyz?verbose") == (503, "application/json", '{"ok": false}\n')


def test_a_head_request_has_no_body(server: HttpServer) -> None:
    assert get(server, "/livez", "HEAD") == (200, "application/json", "")


def test_an_unknown_page_names_those_there_are(server: HttpServer) -> None:
    assert get(server, "/") == (404, "text/plain", "there are /livez, /readyz, /broken\n")


def test_nothing_can_be_changed(server: HttpServer) -> None:
    assert get(server, "/livez", "POST")[0] == 501


def test_a_page_that_fails_tells_nothing_of_the_inside(server: HttpServer) -> None:
    status, _, body = get(server, "/broken")

    assert status == 500
    assert "division" not in body


def test_a_client_who_says_nothing_keeps_nobody_waiting_and_is_hung_up_on(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "_PATIENCE", 0.1)
    with socket.create_connection((server.address.host, server.address.port), 10) as silent:
        silent.sendall(b"GET /livez HTT")

        assert get(server, "/livez")[0] == 200
        assert silent.recv(1) == b""


def test_a_client_who_speaks_slowly_for_ever_is_hung_up_on(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is in time, so only a deadline on the whole can end it."""
    monkeypatch.setattr(http_module, "_PATIENCE", 0.1)
    with socket.create_connection((server.address.host, server.address.port)) as slow:
        slow.settimeout(0.02)

        def hung_up() -> bool:
            try:
                slow.sendall(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        assert wait_until(hung_up, 10, "the server to hang up")


def test_too_many_clients_are_turned_away_at_once(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "_MAX_CLIENTS", 1)
    with (
        socket.create_connection((server.address.host, server.address.port), 10),
        socket.create_connection((server.address.host, server.address.port), 10) as second,
    ):
        assert second.recv(1) == b""


def test_its_end_waits_for_nobody() -> None:
    with HttpServer(ANYWHERE, PAGES) as server:
        silent = socket.create_connection((server.address.host, server.address.port), 10)

    assert not server.is_alive
    with silent:
        assert silent.recv(1) == b""


def test_a_port_that_is_taken_is_a_wrong_setting(server: HttpServer) -> None:
    with pytest.raises(
        ConfigError, match=r"http=127\.0\.0\.1:\d+: nothing can be served there: Address already in use"
    ):
        HttpServer(server.address, PAGES).__enter__()


# A socket with a path


def test_it_is_served_through_a_path_and_leaves_nothing_there(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "http"))

    with HttpServer(address, PAGES):
        page = ask(address, "/livez")

    assert (page.status, page.body) == (200, '{"ok": true}\n')
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_at_the_path_is_replaced(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "http"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(address.path)

    with HttpServer(address, PAGES):
        assert ask(address, "/livez").status == 200


def test_a_path_that_another_process_serves_is_left_to_it(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "http"))

    with HttpServer(address, PAGES), pytest.raises(ConfigError, match="Address already in use"):
        HttpServer(address, PAGES).__enter__()


def test_a_file_at_the_path_is_not_removed(tmp_path: Path) -> None:
    file = tmp_path / "http"
    file.write_text("mine")

    with pytest.raises(ConfigError, match="Address already in use"):
        HttpServer(Address(path=str(file)), PAGES).__enter__()

    assert file.read_text() == "mine"


# Asking


def test_whoever_does_not_answer_in_time_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(TimeoutError):
        ask(Address("127.0.0.1", deaf.getsockname()[1]), "/livez", timeout=0.2)


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(Address(path=str(tmp_path / "nobody")), "/livez")


def test_an_address_for_all_networks_is_asked_on_this_machine() -> None:
    with HttpServer(Address("0.0.0.0", 0), PAGES) as server:  # noqa: S104
        assert wait_until(lambda: ask(server.address, "/livez").status, 10, "an answer") == 200
