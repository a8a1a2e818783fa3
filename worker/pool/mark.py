"""The mark: what a session is called in `pg_stat_activity` while a job uses it, behind its own name."""

from __future__ import annotations

from contextvars import ContextVar

# Set around each job; whatever it takes from the pool is marked.
mark: ContextVar[str] = ContextVar("mark", default="")

# Postgres cuts the rest off.
_MAX_NAME = 63
# What Postgres would replace by itself, and what would end the text.
_SHOWN = bytes(code if 32 <= code < 127 and code not in b"'\\" else ord("?") for code in range(256))


def marked(session: bytes, mark: str) -> bytes:
    """The name of a session called *session* that has *mark*, as SQL writes a text."""
    name = session + b" " + mark.encode("ascii", "replace")
    return b"'%b'" % name[:_MAX_NAME].translate(_SHOWN)
