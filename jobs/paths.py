r"""
Paths as text that can travel: any file name there is, in printable characters, and back.

A file name is bytes; a job's argument is text without U+0000 and without lone surrogates. So a path is written as
itself, except that a backslash is doubled and each byte of what is not valid UTF-8, or not printable, becomes a
backslash and three octal digits: `/srv/caf\351` ends in a Latin-1 byte, `/srv/a\012b` holds a line break. Postgres
reads the same form: `decode(path, 'escape')` is the path in bytes.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"\\(?:(\\)|([0-3][0-7]{2})|)")


def to_text(path: bytes) -> str:
    """*path* in printable characters; `to_bytes` gives it back unchanged."""
    text = path.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def to_bytes(text: str) -> bytes:
    """
    The path that *text* stands for.

    Raises:
        ValueError: A backslash that starts no escape, or U+0000, which no path can hold.
    """
    path = _ESCAPE.sub(_unescaped, text.encode())
    if b"\0" in path:
        raise ValueError(f"path {text!r} holds U+0000, which no file name can")
    return path


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def _unescaped(escape: re.Match[bytes]) -> bytes:
    backslash, octal = escape.groups()
    if octal:
        return bytes([int(octal, 8)])
    if backslash:
        return b"\\"
    raise ValueError(
        f"path {escape.string.decode()!r}: the backslash at byte {escape.start()} must be doubled or followed by"
        " three octal digits; jobs.paths.to_text writes paths that way"
    )
