"""The queue's modules can be read one after the other: none needs one that needs it, not even for its types."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import worker.queue

PACKAGE = Path(worker.queue.__file__).parent


def imported(module: Path) -> set[str]:
    """Names of the queue's own modules that *module* imports, those within `if TYPE_CHECKING` included."""
    nodes = (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom))
    return {node.module.rpartition(".")[2] for node in nodes if node.module and node.module.startswith("worker.queue.")}


def test_no_two_modules_import_each_other() -> None:
    modules = {module.stem: imported(module) for module in PACKAGE.glob("*.py")}
    assert "settlement" in modules["delivery"]

    TopologicalSorter(modules).prepare()
