"""A job whose parameters cannot work is refused when its module is imported, by names and with the remedy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import AsyncConnection, Connection

from worker import Context, Pool, PostgresBroker, SignatureError, job

if TYPE_CHECKING:
    from decimal import Decimal


class Order:
    """A class that JSON knows nothing about."""


def declared(fn: Callable[..., Any]) -> Any:
    return job(broker=PostgresBroker(), name="ship")(fn)


def unknown_class(order: Order) -> None: ...


def unknown_class_within(orders: dict[str, list[Order]]) -> None: ...


def injected_late(order_id: int, pool: Pool) -> None: ...


def optional_connection(conn: Connection | None, order_id: int) -> None: ...


def twice(first: Connection, second: Connection) -> None: ...


async def both(conn: Connection, aconn: AsyncConnection) -> None: ...


async def blocking_connection(conn: Connection) -> None: ...


def awaited_connection(conn: AsyncConnection) -> None: ...


def any_number(*order_ids: int) -> None: ...


def any_names(**options: int) -> None: ...


def typed_for_mypy_only(price: Decimal) -> None: ...


def generator(count: int) -> Iterator[int]:
    yield from range(count)


async def async_generator(count: int) -> AsyncIterator[int]:
    yield count


WRONG = {
    generator: "a function that yields would never run: return instead",
    async_generator: "a function that yields would never run: return instead",
    unknown_class: r"parameter 'order' is a tests\.queue\.test_signatures\.Order.*send an id instead",
    unknown_class_within: r"parameter 'orders' is a tests\.queue\.test_signatures\.Order",
    injected_late: r"parameter 'pool': injected parameters come first, move Pool to the front",
    optional_connection: r"parameter 'conn'",
    twice: r"Connection is injected once, it is asked for 2 times",
    both: r"a job has one connection: ask for Connection or AsyncConnection, not both",
    blocking_connection: r"an async job takes psycopg\.AsyncConnection",
    awaited_connection: r"a plain job takes psycopg\.Connection",
    any_number: r"parameter \*order_ids.*: arguments travel by name",
    any_names: r"parameter \*\*options.*: arguments travel by name",
    typed_for_mypy_only: r"annotation 'Decimal' is not known at run time: import it outside `if TYPE_CHECKING`",
}


@pytest.mark.parametrize(("fn", "reason"), WRONG.items(), ids=[fn.__name__ for fn in WRONG])
def test_a_signature_that_cannot_work_is_refused_with_its_reason(fn: Callable[..., Any], reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        declared(fn)


@pytest.mark.parametrize("fn", WRONG, ids=[fn.__name__ for fn in WRONG])
def test_a_refused_signature_names_the_job_and_its_function(fn: Callable[..., Any]) -> None:
    with pytest.raises(SignatureError, match=rf"job 'ship' \(tests\.queue\.test_signatures\.{fn.__name__}\)"):
        declared(fn)


def plain(order_id: int) -> int:
    return order_id


def with_everything(conn: Connection, pool: Pool, ctx: Context, order_id: int, *, gift: bool = False) -> int:
    return order_id


async def with_everything_async(conn: AsyncConnection[Any], pool: Pool, ctx: Context, order_id: int) -> int:
    return order_id


@pytest.mark.parametrize("fn", [plain, with_everything, with_everything_async], ids=lambda fn: str(fn.__name__))
def test_a_signature_that_can_work_is_accepted(fn: Callable[..., Any]) -> None:
    assert declared(fn).required_arguments == ("order_id",)


@pytest.mark.parametrize("fn", [with_everything, with_everything_async], ids=lambda fn: str(fn.__name__))
def test_injected_parameters_are_told_from_arguments(fn: Callable[..., Any]) -> None:
    kinds = declared(fn).signature.injected

    assert [kind.removeprefix("Async") for kind in kinds] == ["Connection", "Pool", "Context"]


def test_a_job_called_by_hand_is_the_plain_function() -> None:
    assert declared(plain)(7) == 7
