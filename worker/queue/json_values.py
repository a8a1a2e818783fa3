"""Values that travel as JSON: what it would change, and what `jsonb` would."""

from __future__ import annotations

import math
import re
from typing import Any

# An escape of U+0000 that is not itself the tail of an escaped backslash; jsonb refuses it.
NUL_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_MAYBE_CHANGED = re.compile(rb"\d[eE]\+?\d|-0\.0")
# A float that `jsonb` would change, or a string, in which nothing is one.
_CHANGED_FLOAT = re.compile(rb'"(?:[^"\\]|\\.)*"|(?P<float>-0\.0(?![\d.eE])|-?\d+(?:\.\d+)?[eE]\+?\d+)')


def exact_floats(text: bytes) -> bytes:
    """
    *text* with its floats written so that `jsonb`, whose numbers are decimals, gives them back as they are.

    It would write 1e22 without a point, which is an int then, and knows no -0.0: that is told from 0.0 by a number so
    small that a float has no other place for it.
    """
    return _CHANGED_FLOAT.sub(_exact_float, text) if _MAYBE_CHANGED.search(text) else text


def _exact_float(match: re.Match[bytes]) -> bytes:
    token = match["float"]
    if token is None:
        return match[0]
    if token == b"-0.0":
        return b"-1e-400"
    value = float(token)
    return f"{int(value)}.0".encode() if value.is_integer() else token


def is_same(given: Any, arrives: Any) -> bool:
    """Whether a value came through JSON unchanged, apart from tuples that became lists."""
    if isinstance(given, dict) and isinstance(arrives, dict):
        return given.keys() == arrives.keys() and all(is_same(given[key], arrives[key]) for key in given)
    if isinstance(given, list | tuple) and isinstance(arrives, list | tuple):
        return len(given) == len(arrives) and all(map(is_same, given, arrives))
    if isinstance(given, float) and not math.isfinite(given):
        return True  # refused with a reason of its own
    return bool(given == arrives)


def is_finite(value: Any) -> bool:
    """Whether no float within *value* became a null."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def is_plain(value: Any) -> bool:
    """Whether *value* is JSON by itself."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (str, int, bool)
