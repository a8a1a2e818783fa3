"""The crontab grammar: what it understands, and what it refuses with which words."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigError
from worker.schedule.crontab import FIVE, MACROS, Field, parse
from worker.schedule.trigger import Cron

EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("text", "weekdays"),
    [
        ("0 9 * * *", EVERY_DAY),
        ("0 9 * * 0", (0,)),
        ("0 9 * * 7", (0,)),
        ("0 9 * * SUN", (0,)),
        ("0 9 * * 1-5", (1, 2, 3, 4, 5)),
        ("0 9 * * 5-7", (0, 5, 6)),
        ("0 9 * * fri-mon", (0, 1, 5, 6)),
        ("0 9 * * 6-0", (0, 6)),
        ("0 9 * * sun-tue", (0, 1, 2)),
        ("0 9 * * */2", (0, 2, 4, 6)),
        ("0 9 * * mon-fri/2", (1, 3, 5)),
        ("0 9 * * fri-mon/2", (0, 5)),
        ("0 9 * * 0-7", EVERY_DAY),
        ("0 9 * * mon,Wed,7", (0, 1, 3)),
    ],
)
def test_weekdays_are_counted_from_sunday_and_may_wrap(text: str, weekdays: tuple[int, ...]) -> None:
    assert parse(text).calendar.weekdays == weekdays


@pytest.mark.parametrize(
    ("text", "months"),
    [
        ("0 0 1 jan-mar/2 *", (1, 3)),
        ("0 0 1 jan,12 *", (1, 12)),
        ("0 0 1 */5 *", (1, 6, 11)),
        ("0 0 1 Feb-4 *", (2, 3, 4)),
    ],
)
def test_months_have_names_ranges_and_steps(text: str, months: tuple[int, ...]) -> None:
    assert parse(text).calendar.months == months


def test_lists_ranges_and_steps_mix_in_one_field() -> None:
    assert parse("0,5-7,40-58/6,*/30 * * * *").calendar.minutes == (0, 5, 6, 7, 30, 40, 46, 52, 58)


@pytest.mark.parametrize("macro", MACROS)
def test_a_macro_means_its_five_fields(macro: str) -> None:
    assert parse(macro.upper()).calendar == parse(MACROS[macro]).calendar


def test_blanks_between_fields_do_not_matter() -> None:
    assert parse("  0\t3  * * *\n").text == "0 3 * * *"


def test_a_field_of_seconds_comes_first_and_by_request() -> None:
    calendar = parse("*/20 30 2 * * *", seconds=True).calendar

    assert (calendar.seconds, calendar.minutes, calendar.hours) == ((0, 20, 40), (30,), (2,))


def test_without_seconds_a_tick_is_on_the_minute() -> None:
    assert parse("* * * * *").calendar.seconds == (0,)


def test_a_macro_with_seconds_is_still_one_tick() -> None:
    assert parse("@daily", seconds=True).calendar.seconds == (0,)


def ticks(text: str, count: int) -> list[datetime]:
    """The first ticks of 2026, in UTC."""
    cron, found = Cron(parse(text), UTC), [datetime(2026, 1, 1, tzinfo=UTC)]
    for _ in range(count):
        found.append(cron.after(found[-1]))
    return found[1:]


def test_a_date_needs_day_or_weekday_when_both_are_restricted() -> None:
    days = [tick.strftime("%a %d") for tick in ticks("0 9 13 * fri", 4)]

    assert days == ["Fri 02", "Fri 09", "Tue 13", "Fri 16"]


def test_a_date_needs_day_and_weekday_when_one_begins_with_a_star() -> None:
    days = [tick.strftime("%a %d %b") for tick in ticks("0 9 */2 * fri", 3)]

    assert days == ["Fri 09 Jan", "Fri 23 Jan", "Fri 13 Feb"]


@pytest.mark.parametrize("last", ["L", "last", "LAST"])
def test_the_last_day_of_the_month_has_a_name(last: str) -> None:
    days = [tick.strftime("%d %b") for tick in ticks(f"0 0 {last} * *", 3)]

    assert days == ["31 Jan", "28 Feb", "31 Mar"]


def test_the_last_day_may_be_listed_with_others() -> None:
    days = [tick.strftime("%d %b") for tick in ticks("0 0 15,L * *", 4)]

    assert days == ["15 Jan", "31 Jan", "15 Feb", "28 Feb"]


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0 0 * * fri#2", ["Fri 09 Jan", "Fri 13 Feb", "Fri 13 Mar"]),
        ("0 0 * * 5#2", ["Fri 09 Jan", "Fri 13 Feb", "Fri 13 Mar"]),
        ("0 0 * * 7#1,sun#3", ["Sun 04 Jan", "Sun 18 Jan", "Sun 01 Feb"]),
        ("0 0 * * friL", ["Fri 30 Jan", "Fri 27 Feb", "Fri 27 Mar"]),
        ("0 0 * * 0l", ["Sun 25 Jan", "Sun 22 Feb", "Sun 29 Mar"]),
        ("0 0 * * thu#5", ["Thu 29 Jan", "Thu 30 Apr", "Thu 30 Jul"]),
        ("0 0 * 2 sun#5", ["Sun 29 Feb"]),
        ("0 0 1 * mon#1", ["Mon 05 Jan", "Sun 01 Feb", "Mon 02 Feb"]),
        ("0 0 */2 * mon#1", ["Mon 05 Jan", "Mon 01 Jun", "Mon 03 Aug"]),
        ("0 0 L * tue,fri#1", ["Fri 02 Jan", "Tue 06 Jan", "Tue 13 Jan"]),
    ],
)
def test_a_weekday_may_be_counted_within_its_month(text: str, days: list[str]) -> None:
    assert [tick.strftime("%a %d %b") for tick in ticks(text, len(days))] == days


def test_a_day_that_never_comes_is_fine_beside_a_weekday() -> None:
    days = [tick.strftime("%a %d %b") for tick in ticks("0 0 30 2 mon", 2)]

    assert days == ["Mon 02 Feb", "Mon 09 Feb"]


def test_a_leap_day_on_a_weekend_is_found_however_far_it_is() -> None:
    # Both Saturday and Sunday: 2032 is the first year from 2026 on whose 29 February is one of them.
    assert ticks("0 0 29 2 */6", 1) == [datetime(2032, 2, 29, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 25 * * *", "field 2 (hour), '25': 25 is out of range; expected 0-23"),
        ("60 * * * *", "field 1 (minute), '60': 60 is out of range; expected 0-59"),
        ("0 9 0 * *", "field 3 (day), '0': 0 is out of range; expected 1-31"),
        ("0 9 * 13 *", "field 4 (month), '13': 13 is out of range; expected 1-12 or jan-dec"),
        ("0 9 * * 8", "field 5 (weekday), '8': 8 is out of range; expected 0-7 (0 and 7 are Sunday)"),
        ("0 9 * * 1,8", "field 5 (weekday), '8': 8 is out of range"),
        ("0 9 * * fri#6", "field 5 (weekday), 'fri#6': '#' counts a weekday within the month, in the weekday field"),
        ("0 9 * * fri#0", "fri#1 to fri#5, or friL; expected 0-7 (0 and 7 are Sunday) or sun-sat, fri#2 or friL"),
        ("0 9 * * 8#1", "field 5 (weekday), '8#1': '#' counts a weekday"),
        ("0 9 * * mon-fri#1", "field 5 (weekday), 'mon-fri#1': '#' counts one weekday, write mon#2,tue#2"),
        ("0 9 1#2 * *", "field 3 (day), '1#2': '#' counts a weekday within the month, in the weekday field only"),
        ("0 9 * * lastfri", "field 5 (weekday), 'lastfri': L means the last day of the month, alone in the day field"),
        ("0 9 * * last7", "field 5 (weekday), 'last7': L means the last day of the month"),
        ("0 9 * * 8L", "field 5 (weekday), '8L': L means the last day of the month"),
        ("0 9 * * L", "field 5 (weekday), 'L': L means the last day of the month"),
        ("0 9 5L * *", "field 3 (day), '5L': L means the last day of the month"),
        ("0 9 L-3 * *", "field 3 (day), 'L-3': L means the last day of the month, alone"),
        ("L * * * *", "field 1 (minute), 'L': L means the last day of the month"),
        ("0 9 15W * *", "field 3 (day), '15W': W, the weekday nearest to a date, is not offered"),
        ("0 9 LW * *", "field 3 (day), 'LW': W, the weekday nearest to a date, is not offered"),
        ("0 9 * * fri-fri/1", "field 5 (weekday), 'fri-fri/1': a range of one value has no use for a step"),
        ("0 9 ? * *", "field 3 (day), '?': '?' belongs to Quartz, write '*'"),
        ("H * * * *", "field 1 (minute), 'H': 'H' belongs to Jenkins"),
        ("H(0-29)/10 * * * *", "'H' belongs to Jenkins"),
        ("0 9 * * monday", "field 5 (weekday), 'monday': names have three letters, write mon"),
        ("0 9 * foo *", "field 4 (month), 'foo': 'foo' is not understood"),
        ("mon * * * *", "field 1 (minute), 'mon': 'mon' is not understood"),
        ("*/60 * * * *", "field 1 (minute), '*/60': step 60 is outside 1-59"),
        ("*/90 * * * *", "step 90 is outside 1-59"),
        ("*/0 * * * *", "step 0 is outside 1-59"),
        ("0 0 * * mon-fri/9", "step 9 is outside 1-4"),
        ("5/15 * * * *", "a step needs a range, write 5-59/15"),
        ("0 22-2 * * *", "field 2 (hour), '22-2': the range runs backwards, write 22-23,0-2"),
        ("0 0 1 nov-feb *", "the range runs backwards, write 11-12,1-2"),
        ("1, * * * *", "field 1 (minute), '': nothing stands between the commas"),
        ("-5 * * * *", "field 1 (minute), '-5': '-5' is not understood"),
        ("1-2-3 * * * *", "'1-2-3' is not understood"),
        ("٣ * * * *", "'٣' is not understood"),
        ("1" * 5000 + " * * * *", "is not understood"),
        ("0 0 30 2 *", "would never run"),
        ("0 0 31 4,6,9,11 *", "would never run"),
        ("0 0 */30 * mon#2", "no month in field 4 (month) has a date of field 3 (day), '*/30', that is in field 5"),
        ("0 0 * * * *", "has 6 fields, expected 5 (minute hour day month weekday) or a macro such as @daily;"),
        ("0 0 * * * *", "needs seconds=True"),
        ("0 0 * *", "has 4 fields, expected 5 (minute hour day month weekday)"),
        ("", "has 0 fields, expected 5"),
        ("TZ=UTC 0 0 * * *", "pass tz='Europe/Berlin'"),
        ("CRON_TZ=UTC 0 0 * * *", "pass tz='Europe/Berlin'"),
        ("@reboot", "send the job when you deploy"),
        ("@every 5m", "use @every(minutes=5)"),
        ("@dayly", "is not a macro we know, expected @hourly, @daily"),
    ],
)
def test_a_refused_text_points_at_its_field_and_says_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text)

    assert said in str(refusal.value)
    assert " ".join(text.split()) in str(refusal.value)


def test_seconds_need_their_field() -> None:
    with pytest.raises(ConfigError, match=r"has 5 fields, expected 6 \(second minute hour day month weekday\)"):
        parse("0 0 * * *", seconds=True)


def test_something_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="cron 5 is of type int, expected a text"):
        parse(5)  # type: ignore[arg-type]  # what the test is about


def written(field: Field) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """A field as somebody may write it, with the numbers that it means."""
    everything = frozenset(range(field.low, field.high + 1))
    values = st.integers(field.low, field.high)
    single = values.map(lambda value: (str(value), frozenset([value])))
    between = (
        st.tuples(values, values)
        .map(sorted)
        .map(lambda ends: (f"{ends[0]}-{ends[1]}", frozenset(range(ends[0], ends[1] + 1))))
    )
    lists = st.lists(single | between, min_size=1, max_size=4).map(
        lambda items: (",".join(text for text, _ in items), frozenset().union(*(numbers for _, numbers in items)))
    )
    return st.just(("*", everything)) | lists


@given(st.tuples(*map(written, FIVE[:4])))
def test_every_text_of_lists_and_ranges_means_just_those_numbers(
    fields: tuple[tuple[str, frozenset[int]], ...],
) -> None:
    # A weekday keeps 31 February from being refused.
    calendar = parse(" ".join(text for text, _ in fields) + " mon").calendar

    assert [set(numbers) for numbers in (calendar.minutes, calendar.hours, calendar.days, calendar.months)] == [
        numbers for _, numbers in fields
    ]


@given(st.text(alphabet="0123456789*/-,LW?#@ adefimnorsut", max_size=30))
def test_any_text_is_either_understood_or_refused_in_our_words(text: str) -> None:
    try:
        crontab = parse(text)
    except ConfigError:
        return

    found = [Cron(crontab, UTC).after(datetime(2026, 1, 1, tzinfo=UTC))]
    found += [Cron(crontab, UTC).after(found[0])]
    assert all(earlier < later for earlier, later in pairwise(found))
