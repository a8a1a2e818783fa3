"""Arguments through the database, of many makings: they arrive as they were sent, or are refused by the send."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker import ArgumentError, PostgresBroker, job
from worker.queue.signature import Signature


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    name: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


class Order(msgspec.Struct):
    id: UUID
    items: list[Item]
    at: datetime | None = None
    note: str | int | None = None


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
AWARE = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False)
ITEMS = st.builds(Item, TEXT, DECIMALS, st.sets(TEXT))
ORDERS = st.builds(Order, st.uuids(), st.lists(ITEMS, max_size=3), st.none() | AWARE, st.none() | TEXT | st.integers())
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)

OF: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (float, FLOATS),
    (float | None, FLOATS | st.none()),
    (dict[str, list[float]], st.dictionaries(TEXT, st.lists(FLOATS))),
    (int, st.integers()),
    (str, TEXT),
    (datetime, AWARE),
    (date, st.dates()),
    (timedelta, st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))),
    (UUID, st.uuids()),
    (Decimal, DECIMALS),
    (Color, st.sampled_from(Color)),
    (Item, ITEMS),
    (Order, ORDERS),
    (list[Order] | None, st.none() | st.lists(ORDERS, max_size=2)),
    (dict[str, Item | None], st.dictionaries(TEXT, st.none() | ITEMS, max_size=3)),
    (dict[UUID, tuple[int, str]], st.dictionaries(st.uuids(), st.tuples(st.integers(), TEXT), max_size=3)),
    (Any, PLAIN),
    (dict, st.dictionaries(TEXT, PLAIN, max_size=3)),
    (None, PLAIN),
]


def exactly(value: Any) -> Any:
    """*value* so that 1 differs from 1.0, and 0.0 from -0.0."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exactly(item) for item in value]
    return (type(value), math.copysign(1, value), value) if isinstance(value, float) else (type(value), value)


@contextmanager
def travelling(db: psycopg.Connection, annotation: Any) -> Iterator[Callable[[Any], Any]]:
    """A function that sends its argument through `jsonb` and returns what a run would get."""

    def fn(argument) -> None: ...  # type: ignore[no-untyped-def]  # None stands for no annotation

    if annotation is not None:
        fn.__annotations__["argument"] = annotation
    signature = Signature.read(fn, "ship")

    def travel(value: Any) -> Any:
        sent = signature.encode((value,), {})
        [(stored,)] = db.execute("SELECT %s::jsonb::text", [sent]).fetchall()
        return signature.convert((), msgspec.json.decode(stored))["argument"]

    yield travel


@pytest.mark.parametrize(("annotation", "values"), OF, ids=lambda value: str(value)[:30])
def test_whatever_fits_its_annotation_arrives_exactly(
    db: psycopg.Connection, annotation: Any, values: st.SearchStrategy[Any]
) -> None:
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(values)
    def check(value: Any) -> None:
        assert exactly(travel(value)) == exactly(value)

    with travelling(db, annotation) as travel:
        check()


@pytest.mark.parametrize("annotation", [float, Any, None, list[float], dict], ids=str)
@pytest.mark.parametrize("value", [1e22, -1e22, 1e16, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1, 1e15], ids=repr)
def test_a_float_of_any_size_arrives_exactly(db: psycopg.Connection, annotation: Any, value: float) -> None:
    given_value: Any = [value] if annotation == list[float] else {"x": value} if annotation is dict else value

    with travelling(db, annotation) as travel:
        assert exactly(travel(given_value)) == exactly(given_value)


@pytest.mark.parametrize("annotation", [float, Any, None, dict], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
def test_what_json_cannot_carry_is_refused(db: psycopg.Connection, annotation: Any, value: float) -> None:
    with travelling(db, annotation) as travel, pytest.raises(ArgumentError, match=r"^job 'ship': "):
        travel({"x": value} if annotation is dict else value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, datetime(2024, 1, 1, tzinfo=UTC)),
        (dict, {"at": date(2024, 1, 1)}),
        (dict[str, Any], {"id": UUID(int=1)}),
        (list[Any], [Decimal(1)]),
        (list, [{1, 2}]),
    ],
    ids=str,
)
def test_what_json_would_change_is_refused_where_an_annotation_leaves_it_open(
    db: psycopg.Connection, annotation: Any, value: Any
) -> None:
    with (
        travelling(db, annotation) as travel,
        pytest.raises(ArgumentError, match="holds what JSON"),
    ):
        travel(value)


def test_text_that_looks_like_a_float_stays_text(db: psycopg.Connection) -> None:
    with travelling(db, str) as travel:
        assert travel('1e22 "-0.0" \\') == '1e22 "-0.0" \\'


def test_arguments_that_are_too_large_are_refused_with_their_size(broker: PostgresBroker) -> None:
    @job(broker=broker, name="ship")
    def ship(text: str) -> None: ...

    with pytest.raises(ArgumentError, match=r"job 'ship': its arguments are 2,000,011 bytes .*at most 1,048,576"):
        ship.send("x" * 2_000_000)


def test_how_large_arguments_may_be_is_a_setting(broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MAX_ARGS", "20")

    @job(broker=broker, name="ship")
    def ship(text: str) -> None: ...

    ship.send("short")
    with pytest.raises(ArgumentError, match="at most 20"):
        ship.send("longer than that")


def test_an_alias_that_cannot_work_is_refused_at_the_declaration(broker: PostgresBroker) -> None:
    with pytest.raises(TypeError, match="alias 'old' of 'new', which is none of its arguments"):

        @job(broker=broker, aliases={"old": "new"})
        def ship(text: str) -> None: ...


def test_a_former_name_that_another_job_has_is_refused(broker: PostgresBroker) -> None:
    @job(broker=broker, name="ship")
    def ship(text: str) -> None: ...

    with pytest.raises(Exception, match="job 'send': 'ship' is a name of job 'ship' already"):

        @job(broker=broker, name="send", former_names=["ship"])
        def send(text: str) -> None: ...
