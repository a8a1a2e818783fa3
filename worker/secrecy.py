"""What must never be shown: the passwords of connection strings, wherever they turn up."""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

BLOT = "***"

_SECRETS = {"password", "sslpassword", "passfile", "oauth_client_secret"}
_IN_URL = re.compile(r"(://?[^\s:@/]*):\S*@")
_IN_WORDS = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE)
_AFTER_USER = re.compile(r"\s*\w+://?[^:@/]*:(?P<password>.*)@", re.DOTALL)
_BEFORE_NEXT_WORD = re.compile(r"password\s*=\s*(?P<password>.*?)\s*(?=\s\w+\s*=|$)", re.IGNORECASE | re.DOTALL)
# Shorter ones, and those that are also the name of the user or the database, are found by their place only: to blot
# them out wherever they occur would leave nothing to read, and would tell them all the same.
_MIN_LENGTH = 4

_kept: dict[str, None] = {}


def redacted(conninfo: str) -> str:
    """*conninfo* without its secrets, for people; never raises."""
    try:
        parameters = conninfo_to_dict(conninfo)
    except ProgrammingError:
        return "<unreadable connection string>"
    shown = {name: value for name, value in parameters.items() if name not in _SECRETS}
    return without_passwords(make_conninfo("", **shown))


def keep_secret(conninfo: str) -> None:
    """
    Remember the passwords of *conninfo*: from now on `without_passwords` finds them in whatever spelling.

    Of a string that cannot be read it is what stands where a password would be.
    """
    secrets = {match["password"]} if (match := _AFTER_USER.match(conninfo)) else set()
    known: set[Any] = set()
    try:
        parameters = conninfo_to_dict(conninfo)
    except ProgrammingError:
        secrets |= {found["password"].strip("'") for found in _BEFORE_NEXT_WORD.finditer(conninfo)}
    else:
        secrets |= {str(parameters[name]) for name in _SECRETS - {"passfile"} if name in parameters}
        known = {value for name, value in parameters.items() if name not in _SECRETS}
    for secret in secrets - known:
        if len(secret) >= _MIN_LENGTH:
            _kept.update(dict.fromkeys(_spellings(secret)))


def without_passwords(text: str) -> str:
    """*text* with the passwords of connection strings blotted out, and those that are kept secret wherever they are."""
    for spelling in sorted(_kept, key=len, reverse=True):
        text = text.replace(spelling, BLOT)
    return _IN_WORDS.sub(rf"\1{BLOT}", _IN_URL.sub(rf"\1:{BLOT}@", text))


def hide_passwords(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: the same for every value of *event*."""
    return {name: _hidden(value) for name, value in event.items()}


def _hidden(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {name: _hidden(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_hidden(inner) for inner in value]
    return without_passwords(str(value))


def _spellings(secret: str) -> set[str]:
    """*secret* as URLs, connection strings, Python and JSON write it."""
    plain = {secret, unquote(secret)}
    spelt = {quote(one, safe=safe) for one in plain for safe in ("", "/", "!$&'()*+,;=:")}
    spelt |= {one.replace("\\", r"\\").replace("'", r"\'") for one in plain}
    spelt |= {form[1:-1] for one in plain for form in (repr(one), json.dumps(one), json.dumps(one, ensure_ascii=False))}
    return {one for one in plain | spelt if len(one) >= _MIN_LENGTH}
