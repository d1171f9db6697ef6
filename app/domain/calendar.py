"""Hours, days, weeks and months as they are counted: in the collector's time zone, in ISO 8601."""

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

CLOSING_HOUR = 1
PROVISIONAL_HOUR, PROVISIONAL_MINUTE = 23, 55


_QUARTER_MS = 15 * 60 * 1000
"""Zones differ from UTC by quarters of an hour, so each quarter lies within a single hour."""
_HOUR = timedelta(hours=1)


def day_of(milliseconds: int, timezone: tzinfo) -> str:
    """The day (YYYY-MM-DD) of a moment given in milliseconds since the epoch."""
    return _day_and_hour(milliseconds // _QUARTER_MS, timezone)[0]


def hour_of(milliseconds: int, timezone: tzinfo) -> str:
    """When the hour of a moment (milliseconds since the epoch) began: YYYY-MM-DDTHH:MM in UTC.

    Hours begin when those of the zone do. They are named in UTC, so that the hour that is repeated
    in autumn counts as two.
    """
    return _day_and_hour(milliseconds // _QUARTER_MS, timezone)[1]


@lru_cache(maxsize=8_192)
def _day_and_hour(quarter: int, timezone: tzinfo) -> tuple[str, str]:
    moment = datetime.fromtimestamp(quarter * _QUARTER_MS / 1000, timezone)
    began = moment.astimezone(UTC) - timedelta(minutes=moment.minute)
    return moment.date().isoformat(), _hour(began)


def _hour(began: datetime) -> str:
    return f"{began:%Y-%m-%dT%H:%M}"


def hours_of(day: date, timezone: tzinfo) -> list[str]:
    """The hours of a day as `hour_of` names them: 24, or 23 or 25 when clocks are changed."""
    began, end = (
        datetime.combine(midnight, time(), timezone).astimezone(UTC)
        for midnight in (day, day + timedelta(days=1))
    )
    hours = []
    while began < end:
        hours.append(_hour(began))
        began += _HOUR
    return hours


def hour_before(moment: datetime, timezone: tzinfo) -> tuple[str, datetime]:
    """The last hour that was over at this moment, as `hour_of` names it, and when it ended."""
    ended = datetime.fromisoformat(f"{hour_of(_milliseconds(moment), timezone)}+00:00")
    return hour_of(_milliseconds(ended) - 1, timezone), ended


def same_hours_before(hour: str, weeks: int, timezone: tzinfo) -> list[str]:
    """The hours at which the clocks showed the same on the same weekday, in the weeks before.

    The latest comes first. They are named as by `hour_of`. An hour that the clocks skipped is left
    out, and of one that they repeated, the first is meant.
    """
    local = datetime.fromisoformat(f"{hour}+00:00").astimezone(timezone)
    earlier = [local - timedelta(weeks=week) for week in range(1, weeks + 1)]  # by the clocks
    return [
        hour_of(_milliseconds(moment), timezone)
        for moment in earlier
        if moment.astimezone(UTC).astimezone(timezone).replace(tzinfo=None)
        == moment.replace(tzinfo=None)
    ]


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def local_hour(hour: str, timezone: tzinfo) -> str:
    """An hour that `hour_of` named, in the zone and with its offset: 2026-11-25T13+01:00."""
    began = datetime.fromisoformat(f"{hour}+00:00").astimezone(timezone)
    return f"{began:%Y-%m-%dT%H}{began.isoformat()[-6:]}"


def week_of(day: date) -> str:
    """The ISO 8601 week of a day: 2026-W48."""
    year, week, _ = day.isocalendar()
    return f"{year:04}-W{week:02}"


def days_of(month: str) -> range:
    """The numbers of the days of a month (YYYY-MM)."""
    return range(1, last_day_of(month).day + 1)


def last_day_of(month: str) -> date:
    """The last day of a month (YYYY-MM)."""
    return date.fromisoformat(f"{next_month(month)}-01") - timedelta(days=1)


def month_of(moment: datetime) -> str:
    """The month (YYYY-MM) of a moment, in the moment's own zone."""
    return f"{moment:%Y-%m}"


def next_month(month: str) -> str:
    """The month (YYYY-MM) after this one."""
    year, number = int(month[:4]), int(month[5:])
    return f"{year + number // 12:04}-{number % 12 + 1:02}"


def month_before(month: str) -> str:
    """The month (YYYY-MM) before this one."""
    return str(date.fromisoformat(f"{month}-01") - timedelta(days=1))[:7]


def is_over(month: str, now: datetime) -> bool:
    """Whether a month (YYYY-MM) has ended at `now`, which is in the collector's zone."""
    return month < month_of(now)


def closing(month: str, timezone: tzinfo | None) -> datetime:
    """The moment from which a month (YYYY-MM) may be closed."""
    first = date.fromisoformat(f"{next_month(month)}-01")
    return datetime.combine(first, time(CLOSING_HOUR), timezone)


def stage(month: str, now: datetime) -> str:
    """The stage of a month at `now` (in the collector's zone): open, provisional or closed.

    It is provisional from 23:55 on its last day, and closed from 01:00 on the next month's 1st.
    """
    if is_over(month, now):
        ended_just_now = next_month(month) == month_of(now) and now.day == 1
        return "provisional" if ended_just_now and now.hour < CLOSING_HOUR else "closed"
    last_day = month == month_of(now) and (now.date() + timedelta(days=1)).day == 1
    at_its_end = (now.hour, now.minute) >= (PROVISIONAL_HOUR, PROVISIONAL_MINUTE)
    return "provisional" if last_day and at_its_end else "open"
