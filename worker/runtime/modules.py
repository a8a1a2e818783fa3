"""Importing the modules that declare jobs."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.errors import ConfigError


def load(names: Sequence[str]) -> None:
    """
    Import the modules *names*, and of a package all its modules; a second call does nothing.

    The current folder comes first on the path, as with `python -m`.

    Raises:
        ConfigError: There is no such module. What a module itself raises is raised as it is.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        _check_exists(name)
        module = importlib.import_module(name)
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), prefix=f"{name}."):
            importlib.import_module(found.name)


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
