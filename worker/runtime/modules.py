"""Importing the modules that declare jobs."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from worker.errors import ConfigError, WorkerError


def load(names: Sequence[str]) -> None:
    """
    Import the modules *names*, and of a package all its modules; a second call does nothing.

    The current folder comes first on the path, as with `python -m`.

    Raises:
        ConfigError: There is no such module, or its own code fails; says where.
        WorkerError: As a declaration in a module raised it.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        _check_exists(name)
        module = _import(name)
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), prefix=f"{name}."):
            _import(found.name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except WorkerError:
        raise
    except Exception as exc:
        *_, last = traceback.extract_tb(exc.__traceback__)
        where = f"{last.filename} line {last.lineno}"
        raise ConfigError(f"jobs module {name!r} cannot be imported: {type(exc).__name__}: {exc}, in {where}") from exc


def _check_exists(name: str) -> None:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(
            f"jobs module {name!r} was not found in {Path.cwd()} or the installed packages:"
            " name your own with --jobs or WORKER_JOBS"
        )
