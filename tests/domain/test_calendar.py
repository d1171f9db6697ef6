from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import day_of, is_over, next_month, stage

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("moment", "zone", "day"),
    [
        ("2026-10-31T23:30:00+00:00", "UTC", "2026-10-31"),
        ("2026-10-31T23:30:00+00:00", "Europe/Berlin", "2026-11-01"),
        ("2026-11-01T03:00:00+00:00", "America/New_York", "2026-10-31"),
    ],
)
def test_a_moment_belongs_to_the_day_it_has_in_the_time_zone(
    moment: str, zone: str, day: str
) -> None:
    milliseconds = int(datetime.fromisoformat(moment).timestamp() * 1000)
    assert day_of(milliseconds, ZoneInfo(zone)) == day


@pytest.mark.parametrize(("month", "after"), [("2026-09", "2026-10"), ("2026-12", "2027-01")])
def test_months_follow_one_another(month: str, after: str) -> None:
    assert next_month(month) == after


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-11-15T23:56:00", "open"),
        ("2026-11-30T23:54:59", "open"),
        ("2026-11-30T23:55:00", "provisional"),
        ("2026-12-01T00:59:59", "provisional"),
        ("2026-12-01T01:00:00", "closed"),
        ("2026-12-02T00:30:00", "closed"),
        ("2027-01-01T00:30:00", "closed"),
        ("2026-10-31T23:59:00", "open"),
    ],
)
def test_a_month_is_provisional_at_its_last_five_minutes_and_closed_an_hour_after(
    now: str, due: str
) -> None:
    assert stage("2026-11", at(now)) == due


def test_february_ends_a_day_later_in_a_leap_year() -> None:
    assert stage("2028-02", at("2028-02-28T23:55:00")) == "open"
    assert stage("2028-02", at("2028-02-29T23:55:00")) == "provisional"


def test_a_month_is_over_from_the_first_moment_of_the_next() -> None:
    assert not is_over("2026-12", at("2026-12-31T23:59:59"))
    assert is_over("2026-12", at("2027-01-01T00:00:00"))
