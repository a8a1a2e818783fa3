"""Arguments are checked by the sender's call, and arrive as what their annotations say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from worker import ArgumentError, PostgresBroker
from worker.queue.signature import Signature


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Item:
    name: str
    price: Decimal


@dataclass
class Order:
    items: list[Item]
    gift_for: str | None = None


ORDER = Order([Item("soap", Decimal("2.50"))])

FITTING: list[tuple[Any, Any]] = [
    (int, 42),
    (int, -(2**70)),
    (float, 0.1),
    (bool, True),
    (str, "Grüße, 世界 \\u0000 \x7f"),
    (bytes, b"\x00\xff"),
    (datetime, datetime(2024, 3, 31, 1, 30, 0, 5, tzinfo=UTC)),
    (date, date(2024, 2, 29)),
    (timedelta, timedelta(days=1, microseconds=5)),
    (UUID, UUID("0190a8e4-0000-7000-8000-000000000001")),
    (Decimal, Decimal("0.10")),
    (Size, Size.LARGE),
    (Item, ORDER.items[0]),
    (Order, ORDER),
    (list[Order], [ORDER, ORDER]),
    (dict[str, list[datetime]], {"at": [datetime(2024, 1, 1, tzinfo=UTC)]}),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (int | None, None),
]

WRONG: list[tuple[Any, Any]] = [
    (int, "42"),
    (int, 1.5),
    (int, True),
    (str, 42),
    (datetime, "tomorrow"),
    (date, datetime(2024, 1, 1, tzinfo=UTC)),
    (timedelta, 5),
    (UUID, "not-one"),
    (Decimal, "ten"),
    (Size, "xl"),
    (Order, {"items": [{"name": "soap"}]}),
    (list[int], [1, "2"]),
    (float, float("nan")),
    (float, float("inf")),
    (float | None, float("nan")),
    (list[float | None], [1.0, float("inf")]),
    (str, "a\0b"),
    (str, "a\\\0b"),
    (dict[str, int], {"a\0b": 1}),
    (str, "\ud800"),
]


def signature_of(annotation: Any) -> Signature:
    def fn(argument: Any) -> None: ...

    fn.__annotations__["argument"] = annotation
    return Signature.read(fn, "ship")


def sent(signature: Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments after their way through the database."""
    return signature.convert((), json.loads(signature.encode(args, kwargs)))


@pytest.mark.parametrize(("annotation", "value"), FITTING, ids=repr)
def test_an_argument_arrives_as_it_was_sent(annotation: Any, value: Any) -> None:
    assert sent(signature_of(annotation), value) == {"argument": value}


@pytest.mark.parametrize(("annotation", "value"), WRONG, ids=ascii)
def test_an_argument_that_does_not_fit_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^job 'ship'"):
        signature_of(annotation).encode((value,), {})


def test_a_refused_argument_is_named_with_what_was_expected() -> None:
    with pytest.raises(ArgumentError, match=r"Expected `int`, got `str` - at `\$\.argument`"):
        signature_of(int).encode(("42",), {})


def test_a_refused_argument_within_another_is_named_by_its_path() -> None:
    wrong = Order([Item("soap", "free")])  # type: ignore[arg-type]  # that is what is tested

    with pytest.raises(ArgumentError, match=r"\$\.argument\.items\[0\]\.price"):
        signature_of(Order).encode((wrong,), {})


def ship(order_id: int, note: str = "", *, tags: list[str] | None = None) -> None: ...


SHIP = Signature.read(ship, "ship")


def test_too_few_arguments_are_refused_by_the_missing_name() -> None:
    with pytest.raises(ArgumentError, match="missing a required argument: 'order_id'"):
        SHIP.encode((), {})


def test_too_many_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="too many positional arguments"):
        SHIP.encode((1, "", 3), {})


def test_an_unknown_argument_is_refused_by_its_name() -> None:
    with pytest.raises(ArgumentError, match="unexpected keyword argument 'order'"):
        SHIP.encode((1,), {"order": 5})


def test_arguments_travel_by_name() -> None:
    assert json.loads(SHIP.encode((1, "soon"), {})) == {"order_id": 1, "note": "soon"}


def test_an_argument_that_was_not_sent_gets_its_default_when_it_runs() -> None:
    assert sent(SHIP, 1) == {"order_id": 1, "note": "", "tags": None}


def test_a_job_sent_by_a_newer_version_with_another_argument_says_so() -> None:
    with pytest.raises(ArgumentError, match="unexpected keyword argument 'express'"):
        SHIP.convert((), {"order_id": 1, "express": True})


def test_an_argument_without_annotation_takes_plain_json() -> None:
    def fn(argument) -> None: ...  # type: ignore[no-untyped-def]  # that is what is tested

    assert sent(Signature.read(fn, "ship"), {"a": [1, None, 2.5]}) == {"argument": {"a": [1, None, 2.5]}}


@pytest.mark.parametrize("value", [date(2024, 1, 1), {1: 2}, {1, 2}, float("nan"), Decimal(1), Size.SMALL], ids=repr)
def test_an_argument_without_annotation_refuses_what_json_would_change(value: Any) -> None:
    def fn(argument) -> None: ...  # type: ignore[no-untyped-def]  # that is what is tested

    with pytest.raises(ArgumentError, match="which JSON would change: annotate the parameter"):
        Signature.read(fn, "ship").encode((value,), {})


def test_a_send_that_does_not_fit_is_refused_before_any_connection_is_made() -> None:
    from worker import job

    nowhere = PostgresBroker("postgresql://nobody@127.0.0.1:1/nowhere")

    with pytest.raises(ArgumentError):
        job(broker=nowhere)(ship).send("one")  # type: ignore[arg-type]  # that is what is tested
