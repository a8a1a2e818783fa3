"""What a type checker says about sends: mypy reads this file, and an ignore that is not needed is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import AsyncConnection, Connection

from worker import Context, Pool, job


@job(queue="typed", timeout=30, name="typed_charge")
def charge(conn: Connection, invoice_id: int) -> None: ...


@job(name="typed_report")
def report(conn: Connection, ctx: Context, title: str, pages: int = 1) -> None: ...


@job(name="typed_receipt")
async def receipt(conn: AsyncConnection, pool: Pool, ctx: Context, invoice_id: int) -> None: ...


@job(name="typed_purge")
def purge() -> None: ...


def test_injected_parameters_are_no_arguments_of_a_send() -> None:
    message = charge.message(42)

    assert message.args == (42,)


if TYPE_CHECKING:
    charge.send(42)
    charge.send(invoice_id=42)
    report.send("sales", pages=3)
    receipt.send(42)
    purge.send()
    charge.send("42")  # type: ignore[arg-type]  # refused: not an int
    charge.send()  # type: ignore[call-arg]  # refused: missing
    report.send(1)  # type: ignore[arg-type]  # refused: not a str
    receipt.send("42")  # type: ignore[arg-type]  # refused: not an int
    purge.send(42)  # type: ignore[call-arg]  # refused: takes none
