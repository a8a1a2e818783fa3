"""What must never be shown: the passwords of connection strings, wherever they turn up, and fields that say so."""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

BLOT = "***"

_SECRETS = {"password", "sslpassword", "passfile", "oauth_client_secret", "scram_client_key", "scram_server_key"}
# Fields of log lines whose text is nobody's business, by their names: an application's, as none of ours is called so.
_PRIVATE = re.compile(r"passw|secret|token|authorization|api_?key|credential|cookie", re.IGNORECASE)
_IN_URL = re.compile(r"(://?[^\s:@/]*):\S*@")
_IN_WORDS = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE)
_AFTER_USER = re.compile(r"\s*\w+://?[^:@/]*:(?P<password>.*)@", re.DOTALL)
_BEFORE_NEXT_WORD = re.compile(r"password\s*=\s*(?P<password>.*?)\s*(?=\s\w+\s*=|$)", re.IGNORECASE | re.DOTALL)
# Shorter ones, and those that are also the name of the user or the database, are found by their place only: to blot
# them out wherever they occur would leave nothing to read, and would tell them all the same.
_MIN_LENGTH = 4

_kept: dict[str, None] = {}


def parsed(conninfo: str) -> dict[str, Any]:
    """
    What *conninfo* says, by libpq's names.

    Raises:
        ValueError: It cannot be read, or libpq takes a part of a password for something else. The message is ours:
            libpq quotes what it could not read, and the password may be part of it.
    """
    try:
        if "\x00" in conninfo:
            raise ValueError("it cannot be read")
        parameters = conninfo_to_dict(conninfo)
    except (ProgrammingError, UnicodeError):
        raise ValueError("it cannot be read") from None
    if _is_misread(conninfo, parameters):
        raise ValueError("it cannot be read (in a password, write @ : / ? # % as %40 %3A %2F %3F %23 %25)")
    return parameters


def redacted(conninfo: str) -> str:
    """*conninfo* without its secrets, for people; never raises."""
    try:
        return shown(parsed(conninfo))
    except ValueError:
        return "<unreadable connection string>"


def shown(parameters: dict[str, Any]) -> str:
    """A connection string of *parameters*, without the secrets among them."""
    public = {name: value for name, value in parameters.items() if name not in _SECRETS}
    return without_passwords(make_conninfo("", **public))


def _is_misread(conninfo: str, parameters: dict[str, Any]) -> bool:
    """Whether libpq took for host, port, name or parameters what a person meant as a password with an @, / or ?."""
    host, port = str(parameters.get("host", "")), str(parameters.get("port", ""))
    if "@" in host or not re.fullmatch(r"[\d,]*", port):
        return True
    if "://" in conninfo and "@" in str(parameters.get("dbname", "")):
        return True
    meant = _AFTER_USER.match(conninfo)
    return meant is not None and unquote(meant["password"]) != parameters.get("password", "")


def keep_secret(conninfo: str) -> None:
    """
    Remember the passwords of *conninfo*: from now on `without_passwords` finds them in whatever spelling.

    Of a string that cannot be read it is what stands where a password would be.
    """
    secrets = {match["password"]} if (match := _AFTER_USER.match(conninfo)) else set()
    known: set[Any] = set()
    try:
        parameters = conninfo_to_dict(conninfo)
    except (ProgrammingError, UnicodeError):
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
    """A processor of structlog: the same for every value of *event*, and for all whose name says it is secret."""
    return _hidden_fields(event)


def _hidden_fields(fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        name: BLOT if isinstance(value, str | bytes) and _PRIVATE.search(str(name)) else _hidden(value)
        for name, value in fields.items()
    }


def _hidden(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return _hidden_fields(value)
    if isinstance(value, list | tuple | set):
        return [_hidden(inner) for inner in value]
    return without_passwords(str(value))


def _spellings(secret: str) -> set[str]:
    """*secret* as URLs, connection strings, Python and JSON write it, and Python and JSON a connection string."""
    plain = {secret, unquote(secret)}
    spelt = {quote(one, safe=safe, errors="surrogatepass") for one in plain for safe in ("", "/", "!$&'()*+,;=:")}
    words = plain | {one.replace("\\", r"\\").replace("'", r"\'") for one in plain}
    # Of a text with both kinds of quotes Python escapes one, whichever this part of it has.
    spelt |= {repr(quotes + one)[1 + skipped : -1] for one in words for quotes, skipped in (("", 0), ("'\"", 3))}
    spelt |= {json.dumps(one, ensure_ascii=ascii_only)[1:-1] for one in words for ascii_only in (True, False)}
    return {one for one in words | spelt if len(one) >= _MIN_LENGTH}
