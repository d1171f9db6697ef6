from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.periods import PERIOD_OF, Span, earlier

DATES = st.dates(date(1900, 1, 1), date(2100, 12, 31))


def day(text: str) -> date:
    return date.fromisoformat(text)


@pytest.mark.parametrize(
    ("name", "of", "period"),
    [
        ("day", "2026-11-25", "2026-11-25"),
        ("week", "2026-11-25", "2026-W48"),
        ("week", "2027-01-01", "2026-W53"),
        ("week", "2024-12-30", "2025-W01"),
        ("month", "2026-11-25", "2026-11"),
    ],
)
def test_a_days_week_and_month_follow_iso_8601(name: str, of: str, period: str) -> None:
    assert PERIOD_OF[name](day(of)) == period


@given(DATES, st.integers(0, 800))
def test_the_previous_period_has_as_many_days_matched_by_position(first: date, more: int) -> None:
    span = Span(first, first + timedelta(days=more))
    before, later = earlier(span, "previous")
    assert before.last + timedelta(days=1) == span.first
    assert [later(each) for each in before.days()] == [[each] for each in span.days()]


@given(DATES, st.integers(0, 800))
def test_each_day_is_matched_with_the_same_day_of_the_previous_year(first: date, more: int) -> None:
    span = Span(first, first + timedelta(days=more))
    before, later = earlier(span, "year")
    matched = [(each, one) for each in before.days() for one in later(each)]
    assert {one for _, one in matched} == set(span.days())
    for each, one in matched:
        both_in_february = {(each.month, each.day), (one.month, one.day)} == {(2, 28), (2, 29)}
        assert one.year == each.year + 1
        assert (each.month, each.day) == (one.month, one.day) or both_in_february


@pytest.mark.parametrize(
    ("first", "last", "before_first", "before_last"),
    [
        ("2028-02-29", "2028-02-29", "2027-02-28", "2027-02-28"),
        ("2025-02-01", "2025-02-28", "2024-02-01", "2024-02-29"),
        ("2025-02-28", "2025-03-01", "2024-02-28", "2024-03-01"),
        ("2026-02-28", "2026-02-28", "2025-02-28", "2025-02-28"),
    ],
)
def test_february_29_is_matched_with_february_28(
    first: str, last: str, before_first: str, before_last: str
) -> None:
    span, _ = earlier(Span(day(first), day(last)), "year")
    assert span == Span(day(before_first), day(before_last))


@pytest.mark.parametrize("comparison", ["previous", "year"])
def test_there_is_nothing_before_the_year_1(comparison: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        earlier(Span(date.min, date.min), comparison)
