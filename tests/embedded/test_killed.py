"""Nothing is left and nothing is lost, whichever process is killed; and however many start at once, one server runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.embedded.processes import Client, ask, end_supervisor, servers, supervisors
from tests.waiting import wait_until
from worker import embedded
from worker.embedded.account import server_account

needs_death_signal = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child that its parent was killed"
)


def test_killing_the_only_client_ends_server_and_supervisor(folder: Path, client: Callable[..., Client]) -> None:
    only = client(folder).started()

    only.kill()

    wait_until(lambda: not servers(folder) and not supervisors(folder), 30, "the end of server and supervisor")


def test_killing_the_client_of_a_temporary_server_removes_its_folder(client: Callable[..., Client]) -> None:
    only = client(None).started()

    only.kill()

    wait_until(lambda: not only.folder.exists() and not servers(only.folder), 30, f"the removal of {only.folder}")


def test_killing_the_starter_leaves_the_server_to_the_other_client(folder: Path, client: Callable[..., Client]) -> None:
    starter = client(folder).started()

    with embedded.start(folder) as other:
        starter.kill()

        assert ask(other.url, "SELECT 1") == 1


def test_killing_the_starter_before_it_is_attached_leaves_nothing(folder: Path, client: Callable[..., Client]) -> None:
    starter = client(folder)
    wait_until(lambda: supervisors(folder), 30, "a supervisor")

    starter.kill()

    wait_until(lambda: not servers(folder) and not supervisors(folder), 60, "the end of server and supervisor")


@needs_death_signal
def test_killing_the_supervisor_shuts_the_server_down_cleanly(folder: Path) -> None:
    with embedded.start(folder, fast=True):
        end_supervisor(folder, signal.SIGKILL)

        wait_until(lambda: not servers(folder), 30, "the end of the server")
        assert "database system is shut down" in (folder / "server.log").read_text()


def test_after_a_killed_supervisor_the_next_start_finds_all_data(folder: Path) -> None:
    with embedded.start(folder, fast=True) as first:
        with psycopg.connect(first.url) as conn:
            conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        end_supervisor(folder, signal.SIGKILL)

        with embedded.start(folder, fast=True, grace=0) as second:
            assert ask(second.url, "SELECT answer FROM kept") == 42
            assert len(servers(folder)) == 1


@needs_death_signal
def test_a_temporary_folder_is_removed_by_its_user_when_the_supervisor_was_killed() -> None:
    postgres = embedded.start(fast=True)
    end_supervisor(postgres.folder, signal.SIGKILL)

    postgres.close()

    assert (servers(postgres.folder), postgres.folder.exists()) == (set(), False)


@needs_death_signal
def test_the_next_temporary_server_removes_a_folder_that_was_left_long_ago(client: Callable[..., Client]) -> None:
    killed = client(None).started()
    end_supervisor(killed.folder, signal.SIGKILL)
    killed.kill()
    wait_until(lambda: not servers(killed.folder), 30, "the end of the server")
    os.utime(killed.folder, (0, 0))

    with embedded.start(fast=True):
        assert not killed.folder.exists()


def test_a_long_running_temporary_server_is_not_taken_for_a_forgotten_one() -> None:
    with embedded.start(fast=True) as old:
        os.utime(old.folder, (0, 0))

        with embedded.start(fast=True):
            assert ask(old.url, "SELECT 1") == 1


def test_a_server_that_dies_takes_its_supervisor_along_and_the_next_start_works(folder: Path) -> None:
    with embedded.start(folder, fast=True):
        (server,) = servers(folder)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not supervisors(folder), 30, "the end of the supervisor")

        with embedded.start(folder, fast=True, grace=0) as again:
            assert ask(again.url, "SELECT 1") == 1


def test_a_pid_that_means_another_process_by_now_is_left_alone(folder: Path) -> None:
    embedded.start(folder, fast=True, grace=0).close()
    wait_until(lambda: not supervisors(folder), 30, "the end of the server")
    with strangers_process() as stranger:
        (folder / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n{folder / 'data'}\n")

        with embedded.start(folder, fast=True, grace=0) as postgres:
            assert ask(postgres.url, "SELECT 1") == 1

        assert stranger.poll() is None


def test_three_racing_starts_give_one_server(folder: Path, client: Callable[..., Client]) -> None:
    racers = [client(folder) for _ in range(3)]

    urls = {racer.started().url for racer in racers}

    assert (len(urls), len(servers(folder)), len(supervisors(folder))) == (1, 1, 1)


def test_a_start_while_the_last_server_is_just_leaving_gets_a_new_one(folder: Path) -> None:
    embedded.start(folder, fast=True, grace=0).close()

    for _ in range(3):
        with embedded.start(folder, fast=True, grace=0) as postgres:
            assert ask(postgres.url, "SELECT 1") == 1


def test_ctrl_c_in_the_starters_terminal_does_not_reach_the_server(folder: Path, client: Callable[..., Client]) -> None:
    # The terminal sends SIGINT to the whole foreground group; this starter has a group of its own and ignores it.
    stubborn = client(folder, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    url = stubborn.started().url

    os.killpg(stubborn.process.pid, signal.SIGINT)

    assert ask(url, "SELECT 1") == 1
    (supervisor,) = supervisors(folder)
    assert os.getsid(supervisor) != os.getsid(stubborn.process.pid)


@contextmanager
def strangers_process() -> Iterator[subprocess.Popen[bytes]]:
    """Any process of the server's account; that one of somebody else is no server, Postgres finds out itself."""
    account = server_account()
    with subprocess.Popen(["sleep", "60"], user=account.uid if account.dropped else None) as stranger:
        try:
            yield stranger
        finally:
            stranger.kill()
