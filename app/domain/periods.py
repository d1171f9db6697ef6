"""Spans of days for reports: the periods that group them, and earlier ones to compare them with."""

from calendar import isleap
from collections.abc import Callable
from datetime import date, timedelta
from typing import NamedTuple

from app.domain.calendar import week_of

PERIOD_OF: dict[str, Callable[[date], str]] = {
    "day": str,
    "week": week_of,
    "month": lambda day: str(day)[:7],
}
"""For each kind of period, a function that names the one that a day is in."""
COMPARISONS = ("previous", "year")


class Span(NamedTuple):
    """The days from `first` to `last`, both included."""

    first: date
    last: date

    @property
    def length(self) -> int:
        """The number of its days."""
        return (self.last - self.first).days + 1

    def days(self) -> list[date]:
        """All of its days, in order."""
        return [self.first + timedelta(days=n) for n in range(self.length)]


class Earlier(NamedTuple):
    """An earlier span, and the days of the later one that each of its days is compared with."""

    span: Span
    later: Callable[[date], list[date]]


def earlier(span: Span, comparison: str) -> Earlier:
    """The earlier span with which "previous" or "year" compares this one.

    Raises ValueError (OverflowError) if it would begin before the year 1.
    """
    if comparison == "previous":
        length = timedelta(days=span.length)
        before = Span(span.first - length, span.last - length)
        return Earlier(before, lambda day: [day + length])
    return Earlier(
        Span(_year_before(span.first), _year_before(span.last, is_end=True)),
        lambda day: [later for later in _year_after(day) if span.first <= later <= span.last],
    )


def _year_before(day: date, *, is_end: bool = False) -> date:
    year = day.year - 1
    if (day.month, day.day) == (2, 29):
        return date(year, 2, 28)
    # The 29 February of a leap year goes with the 28th, which it follows.
    if is_end and (day.month, day.day) == (2, 28) and isleap(year):
        return date(year, 2, 29)
    return day.replace(year=year)


def _year_after(day: date) -> list[date]:
    year = day.year + 1
    if (day.month, day.day) == (2, 29):
        return [date(year, 2, 28)]
    if (day.month, day.day) == (2, 28) and isleap(year):
        return [date(year, 2, 28), date(year, 2, 29)]
    return [day.replace(year=year)]
