"""The sides of the comparison, one file each; the name of the file is that of the side, with - for _."""

from __future__ import annotations

import importlib
import pkgutil

from tests.bench.peer import Peer


def names() -> list[str]:
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]


def find(name: str) -> type[Peer]:
    """
    The side called *name*.

    Raises:
        ImportError: What it is made of is not installed.
    """
    peer: type[Peer] = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").PEER
    return peer
