"""Folders for embedded servers that leave nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.embedded.processes import Client, require_binaries, servers, supervisors
from tests.waiting import wait_until
from worker.embedded.account import server_account
from worker.embedded.places import Places


@pytest.fixture(autouse=True, scope="session")
def _binaries() -> None:
    # Every test here starts a server of its own, also when the others use WORKER_TEST_DATABASE_URL's.
    require_binaries()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any account may pass through, unlike pytest's own; removed once its server has ended."""
    parent = Path(tempfile.mkdtemp(prefix="carpool-test-"))
    parent.chmod(0o755)
    try:
        yield parent / "pg"
        wait_until(lambda: not servers(parent) and not supervisors(parent), 30, f"the end of the server in {parent}")
    finally:
        _remove(parent / "pg")
        shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def closed_home() -> Iterator[Path]:
    """A folder of mode 0700, as a home often is, with a server's folder `pg` in it when the test makes one."""
    home = Path(tempfile.mkdtemp(prefix="carpool-home-"))
    try:
        yield home
        wait_until(lambda: not supervisors(home), 30, f"the end of the supervisor in {home}")
    finally:
        _remove(home / "pg")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    """Makes `Client`s and kills those that the test leaves alive."""
    with ExitStack() as stack:

        def make(*args: object, **kwargs: object) -> Client:
            made = Client(*args, **kwargs)  # type: ignore[arg-type]  # the same as Client's own
            stack.callback(made.close)
            return made

        yield make


def _remove(folder: Path) -> None:
    if folder.exists():
        Places.of(folder, server_account()).remove()
