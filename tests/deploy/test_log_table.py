"""The table of the log's events in `deploy/README.md` has every event that is logged, its fields, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
# Of the call, not of the line.
NO_FIELDS = {"exc_info"}


class Logged:
    """What the code logs: by event, the fields of its calls, and which have others that cannot be seen there."""

    def __init__(self) -> None:
        self.fields: defaultdict[str, set[str]] = defaultdict(set)
        self.open: set[str] = set()
        for path in (ROOT / "worker").rglob("*.py"):
            tree = ast.parse(path.read_text())
            literal = {first.value for _, first in calls(tree) if isinstance(first, ast.Constant)}
            chosen = event_names(tree) - literal
            for call, first in calls(tree):
                if isinstance(first, ast.Constant):
                    self._add(call, str(first.value))
                else:
                    self.open |= chosen
                    self.fields.update({event: self.fields[event] for event in chosen})

    def _add(self, call: ast.Call, event: str) -> None:
        self.fields[event] |= {keyword.arg for keyword in call.keywords if keyword.arg} - NO_FIELDS
        if any(keyword.arg is None for keyword in call.keywords):
            self.open.add(event)


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.expr]]:
    """Calls of a logger, each with its event."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_logger(node.func.value):
            if node.func.attr in LEVELS:
                yield node, node.args[0]
            elif node.func.attr == "log":
                yield node, node.args[1]


def is_logger(node: ast.expr) -> bool:
    return ast.unparse(node) in ("logger", "log") or "get_logger(" in ast.unparse(node)


def event_names(tree: ast.AST) -> set[str]:
    """All texts of a module that could be one: for those that are chosen by a variable."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {text for text in texts if EVENT.fullmatch(text)}


def table() -> dict[str, set[str]]:
    """By event, the fields of its row."""
    text = (ROOT / "deploy" / "README.md").read_text().partition("## The log\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    return {
        event: set(re.findall(r"\w+", fields)) for events, fields in rows for event in re.findall(r"`([^`]+)`", events)
    }


def test_every_event_that_is_logged_is_in_the_table_and_no_other() -> None:
    assert len(Logged().fields) > 90

    assert sorted(table()) == sorted(Logged().fields), "deploy/README.md, The log: say there what an event means"


def test_the_table_has_the_fields_of_each_event() -> None:
    logged, told = Logged(), table()

    missing = {event: fields - told.get(event, set()) for event, fields in logged.fields.items()}
    assert {event: fields for event, fields in missing.items() if fields} == {}


def test_the_table_has_no_field_that_is_not_logged() -> None:
    logged, told = Logged(), table()
    by_row: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for event, fields in told.items():
        by_row[frozenset(fields)].append(event)

    surplus = {
        tuple(events): fields - set().union(*(logged.fields[event] for event in events))
        for fields, events in by_row.items()
        if not logged.open.intersection(events)
    }
    assert {events: fields for events, fields in surplus.items() if fields} == {}


def test_no_event_has_a_field_for_a_jobs_arguments() -> None:
    assert {"args", "kwargs", "arguments", "message"} & set().union(*Logged().fields.values()) == set()
