"""What a started server is like, and how long it stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.embedded.processes import Client, ask, end_supervisor, servers, supervisors
from tests.waiting import wait_until
from worker import embedded


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with embedded.start(fast=True) as postgres:
        yield postgres.url


def test_a_server_says_which_version_and_binaries_it_is() -> None:
    with embedded.start(fast=True) as postgres:
        assert ask(postgres.url, "SHOW server_version") == postgres.version
        assert (postgres.binaries.folder / "postgres").exists()


def test_the_url_works_from_the_environment_of_another_process(server_url: str) -> None:
    program = "import os, psycopg; psycopg.connect(os.environ['WORKER_DATABASE_URL']).close()"
    environment = {**os.environ, "WORKER_DATABASE_URL": server_url}

    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=30)


def test_nobody_can_connect_over_tcp(server_url: str) -> None:
    assert ask(server_url, "SHOW listen_addresses") == ""


@pytest.mark.parametrize("part", ["data", "run"])
def test_only_the_servers_account_may_enter_its_folders(folder: Path, part: str) -> None:
    with embedded.start(folder, fast=True, grace=0):
        assert (folder / part).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("setting", "value"),
    [("TimeZone", "UTC"), ("log_timezone", "UTC"), ("server_encoding", "UTF8"), ("lc_messages", "C")],
)
def test_a_server_is_the_same_on_every_machine(server_url: str, setting: str, value: str) -> None:
    assert ask(server_url, f"SHOW {setting}") == value


@pytest.mark.parametrize(("fast", "value"), [(True, "off"), (False, "on")])
def test_commits_survive_a_power_cut_unless_fast_was_asked_for(fast: bool, value: str) -> None:
    query = "SELECT concat_ws(' ', {})".format(
        ", ".join(f"current_setting('{name}')" for name in ("fsync", "synchronous_commit", "full_page_writes"))
    )
    with embedded.start(fast=fast) as postgres:
        assert ask(postgres.url, query) == f"{value} {value} {value}"


def test_a_temporary_server_and_its_folder_are_gone_when_close_returns() -> None:
    postgres = embedded.start(fast=True)

    postgres.close()

    assert (servers(postgres.folder), postgres.folder.exists()) == (set(), False)


def test_closing_twice_is_harmless() -> None:
    postgres = embedded.start(fast=True)
    postgres.close()

    postgres.close()


def test_the_data_of_a_named_folder_are_there_at_the_next_start(folder: Path) -> None:
    with embedded.start(folder, fast=True, grace=0) as postgres, psycopg.connect(postgres.url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    wait_until(lambda: not supervisors(folder), 30, "the end of the first server")

    with embedded.start(folder, fast=True, grace=0) as postgres:
        assert ask(postgres.url, "SELECT answer FROM kept") == 42


def test_a_second_start_on_the_same_folder_attaches_to_the_running_server(folder: Path) -> None:
    with embedded.start(folder, fast=True, grace=0) as first, embedded.start(folder) as second:
        assert (second.url, second.binaries) == (first.url, first.binaries)
        assert len(servers(folder)) == 1


def test_the_server_stays_while_anybody_is_attached(folder: Path) -> None:
    with embedded.start(folder, fast=True, grace=0) as first:
        second = embedded.start(folder)
        second.close()

        assert ask(first.url, "SELECT 1") == 1


def test_the_server_outlives_its_last_user_by_the_grace(folder: Path, client: Callable[..., Client]) -> None:
    last = client(folder, grace=60).started()

    last.kill()

    assert ask(last.url, "SELECT 1") == 1
    end_supervisor(folder)


def test_a_closed_attachment_to_a_temporary_server_leaves_it_to_the_others() -> None:
    with embedded.start(fast=True) as starter:
        embedded.start(starter.folder).close()

        assert ask(starter.url, "SELECT 1") == 1


def test_a_folder_whose_path_is_too_long_for_a_socket_works(folder: Path) -> None:
    with embedded.start(folder / ("x" * 120), fast=True, grace=0) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1


def test_a_folder_whose_path_has_blanks_and_commas_works(folder: Path) -> None:
    with embedded.start(folder / "my, own 'data'", fast=True, grace=0) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1


def test_the_callers_settings_for_another_server_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGDATA": "/nowhere", "PGUSER": "me"}.items():
        monkeypatch.setenv(name, value)

    with embedded.start(fast=True) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1


def test_a_data_folder_that_was_being_made_when_the_power_went_is_made_again(folder: Path) -> None:
    (folder / "data.unfinished").mkdir(parents=True)
    (folder / "data.unfinished" / "PG_VERSION").write_text("18")

    with embedded.start(folder, fast=True, grace=0) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1
