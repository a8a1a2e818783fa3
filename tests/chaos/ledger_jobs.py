"""The jobs of the ledger: transfers between accounts, each of which sends a receipt."""

from __future__ import annotations

from psycopg import Connection
from psycopg.errors import SerializationFailure

from worker import Context, Pool, job

SCHEMA = """
    CREATE TABLE account (
        id      int    PRIMARY KEY,
        balance bigint NOT NULL
    );
    -- No key on transfer: a second booking must show, not fail.
    CREATE TABLE booking (transfer int NOT NULL, source int NOT NULL, target int NOT NULL, amount int NOT NULL);
    CREATE TABLE receipt (transfer int NOT NULL);
    CREATE TABLE audited (transfer int NOT NULL, attempt int NOT NULL)"""

# As a bank would draw them: every so often one that conflicts, one that fails once, one that is slow.
_CONFLICT, _FAILURE, _SLOW = 97, 89, 499


class Hiccup(Exception):
    """What a job's own code may raise on a bad day."""


@job(queue="transfers", max_retries=1000, min_backoff=10, max_backoff=50)
def transfer(conn: Connection, ctx: Context, number: int, source: int, target: int, amount: int) -> None:
    """Book a transfer; in order of the accounts, so that two of them cannot wait for each other."""
    for account in sorted((source, target)):
        change = amount if account == target else -amount
        conn.execute("UPDATE account SET balance = balance + %s WHERE id = %s", [change, account])
    conn.execute("INSERT INTO booking VALUES (%s, %s, %s, %s)", [number, source, target, amount])
    receipt.send(number)
    if number % _SLOW == 0:
        conn.execute("SELECT pg_sleep(0.3)")
    if number % _FAILURE == 0 and ctx.attempt == 1:
        raise Hiccup(number)
    if number % _CONFLICT == 0 and ctx.attempt == 1 and "cuts" not in ctx.options:
        raise SerializationFailure("as the server would say it")


@job(queue="receipts", max_retries=1000, min_backoff=10, max_backoff=50)
def receipt(conn: Connection, number: int) -> None:
    """Exists once for each transfer that was booked, because it is sent in the transfer's transaction."""
    conn.execute("INSERT INTO receipt VALUES (%s)", [number])
    if number % 10 == 0:
        audit.send(number)


@job(queue="audits", max_retries=1000, min_backoff=10, max_backoff=50)
def audit(pool: Pool, ctx: Context, number: int) -> None:
    """At least once: it writes in a transaction of its own."""
    with pool.connection() as conn:
        conn.execute("INSERT INTO audited VALUES (%s, %s)", [number, ctx.attempt])
