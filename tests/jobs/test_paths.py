"""Any file name can travel as a job's argument."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.paths import to_bytes, to_text

file_names = st.binary().map(lambda name: b"/" + name.replace(b"\0", b""))


@given(file_names)
def test_every_path_comes_back_unchanged(path: bytes) -> None:
    assert to_bytes(to_text(path)) == path


@given(file_names)
def test_what_travels_is_printable(path: bytes) -> None:
    assert to_text(path).isprintable()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/home/zoé/ein Bild 😀.png".encode(), "/home/zoé/ein Bild 😀.png"),
        (b"/caf\xe9", r"/caf\351"),
        (b"/a\nb\x1b[31m", r"/a\012b\033[31m"),
        (rb"/back\slash", r"/back\\slash"),
        (rb"/\377", r"/\\377"),
    ],
)
def test_a_path_reads_as_itself_but_for_what_cannot_travel(path: bytes, text: str) -> None:
    assert to_text(path) == text


def test_postgres_reads_the_same_form(db: psycopg.Connection) -> None:
    path = bytes(range(1, 256)) + "zoé 😀".encode()

    row = db.execute("SELECT decode(%s, 'escape')", [to_text(path)]).fetchone()

    assert row == (path,)


@pytest.mark.parametrize("text", ["/a\\", "/\\q", "/\\400", "/\\08", "/\\xff"])
def test_a_backslash_that_starts_no_escape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be doubled or followed by three octal digits"):
        to_bytes(text)


@pytest.mark.parametrize("text", ["/a\\000b", "/a\0b"])
def test_a_nul_is_refused_because_no_path_holds_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"U\+0000"):
        to_bytes(text)
