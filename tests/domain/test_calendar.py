from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import (
    day_of,
    days_of,
    hour_before,
    hour_of,
    hours_of,
    is_over,
    last_day_of,
    local_hour,
    next_month,
    same_hours_before,
    stage,
    week_of,
)

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
def test_a_moment_belongs_to_its_day_in_the_time_zone(moment: str, zone: str, day: str) -> None:
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
def test_a_month_is_provisional_in_its_last_five_minutes_and_closes_an_hour_later(
    now: str, due: str
) -> None:
    assert stage("2026-11", at(now)) == due


def test_february_ends_a_day_later_in_a_leap_year() -> None:
    assert stage("2028-02", at("2028-02-28T23:55:00")) == "open"
    assert stage("2028-02", at("2028-02-29T23:55:00")) == "provisional"


def test_a_month_is_over_from_the_first_moment_of_the_next() -> None:
    assert not is_over("2026-12", at("2026-12-31T23:59:59"))
    assert is_over("2026-12", at("2027-01-01T00:00:00"))


@pytest.mark.parametrize(
    ("moment", "zone", "hour", "local"),
    [
        ("2026-11-25T12:59:59Z", "UTC", "2026-11-25T12:00", "2026-11-25T12+00:00"),
        ("2026-11-25T12:59:59Z", "Europe/Berlin", "2026-11-25T12:00", "2026-11-25T13+01:00"),
        ("2026-11-25T12:10:00Z", "Asia/Kolkata", "2026-11-25T11:30", "2026-11-25T17+05:30"),
        ("2026-11-25T12:20:00Z", "Asia/Kathmandu", "2026-11-25T12:15", "2026-11-25T18+05:45"),
        ("2026-10-25T00:59:00Z", "Europe/Berlin", "2026-10-25T00:00", "2026-10-25T02+02:00"),
        ("2026-10-25T01:01:00Z", "Europe/Berlin", "2026-10-25T01:00", "2026-10-25T02+01:00"),
    ],
)
def test_a_moment_belongs_to_its_hour_in_the_time_zone(
    moment: str, zone: str, hour: str, local: str
) -> None:
    milliseconds = int(datetime.fromisoformat(moment).timestamp() * 1000)
    assert hour_of(milliseconds, ZoneInfo(zone)) == hour
    assert local_hour(hour, ZoneInfo(zone)) == local


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
def test_each_hour_of_a_year_belongs_to_exactly_one_day(zone: str) -> None:
    of_zone = ZoneInfo(zone)
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(365)]
    hours = [hour for day in days for hour in hours_of(day, of_zone)]
    assert len(set(hours)) == len(hours) == 365 * 24
    first = datetime.combine(days[0], datetime.min.time(), of_zone)
    for number, hour in enumerate(hours):
        inside = int(first.timestamp() * 1000) + number * 3_600_000 + 1_800_000
        assert hour_of(inside, of_zone) == hour
        assert local_hour(hour, of_zone)[:10] == day_of(inside, of_zone)


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-25", 24)]
)
def test_days_when_the_clocks_change_have_23_or_25_hours(day: str, hours: int) -> None:
    assert len(hours_of(date.fromisoformat(day), BERLIN)) == hours


def test_weeks_and_months_follow_iso_8601() -> None:
    assert week_of(date(2027, 1, 3)) == "2026-W53"
    assert last_day_of("2028-02") == date(2028, 2, 29)
    assert list(days_of("2026-11")) == list(range(1, 31))


@pytest.mark.parametrize(
    ("now", "zone", "hour", "ended"),
    [
        ("2026-11-25T13:00:00", "Europe/Berlin", "2026-11-25T11:00", "2026-11-25T12:00"),
        ("2026-11-25T13:59:59", "Europe/Berlin", "2026-11-25T11:00", "2026-11-25T12:00"),
        ("2026-11-25T00:10:00", "Asia/Kolkata", "2026-11-24T17:30", "2026-11-24T18:30"),
        ("2026-03-29T03:10:00", "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T01:00"),
        ("2026-10-25T03:10:00", "Europe/Berlin", "2026-10-25T01:00", "2026-10-25T02:00"),
    ],
)
def test_the_last_hour_is_over(now: str, zone: str, hour: str, ended: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=ZoneInfo(zone))
    found = hour_before(moment, ZoneInfo(zone))
    assert found == (hour, datetime.fromisoformat(f"{ended}+00:00"))


@pytest.mark.parametrize(
    ("hour", "zone", "before"),
    [
        ("2026-11-25T12:00", "UTC", ["2026-11-18T12:00", "2026-11-11T12:00"]),
        ("2026-11-25T06:30", "Asia/Kolkata", ["2026-11-18T06:30", "2026-11-11T06:30"]),
        # Until 25 October, clocks in Berlin are two hours ahead of UTC.
        ("2026-11-01T12:00", "Europe/Berlin", ["2026-10-25T12:00", "2026-10-18T11:00"]),
        # The hour from 2 to 3 is skipped on 29 March, and repeated on 25 October.
        ("2026-04-05T00:00", "Europe/Berlin", ["2026-03-22T01:00"]),
        ("2026-03-29T01:00", "Europe/Berlin", ["2026-03-22T02:00", "2026-03-15T02:00"]),
        ("2026-11-01T01:00", "Europe/Berlin", ["2026-10-25T00:00", "2026-10-18T00:00"]),
        ("2026-10-25T00:00", "Europe/Berlin", ["2026-10-18T00:00", "2026-10-11T00:00"]),
        ("2026-10-25T01:00", "Europe/Berlin", ["2026-10-18T00:00", "2026-10-11T00:00"]),
    ],
)
def test_the_same_hour_of_the_weeks_before_is_that_of_the_clocks(
    hour: str, zone: str, before: list[str]
) -> None:
    assert same_hours_before(hour, 2, ZoneInfo(zone)) == before
