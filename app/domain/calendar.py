"""The days and months that events count for: ISO 8601 dates in the collector's time zone."""

from datetime import datetime, timedelta, tzinfo

CLOSING_HOUR = 1
PROVISIONAL_HOUR, PROVISIONAL_MINUTE = 23, 55


def day_of(milliseconds: int, timezone: tzinfo) -> str:
    """The day (YYYY-MM-DD) in this zone of a moment in milliseconds since the epoch."""
    return datetime.fromtimestamp(milliseconds / 1000, timezone).date().isoformat()


def month_of(moment: datetime) -> str:
    """The month (YYYY-MM) of a moment, in the moment's own zone."""
    return f"{moment:%Y-%m}"


def next_month(month: str) -> str:
    """The month (YYYY-MM) after this one."""
    year, number = int(month[:4]), int(month[5:])
    return f"{year + number // 12:04}-{number % 12 + 1:02}"


def is_over(month: str, now: datetime) -> bool:
    """Whether a month (YYYY-MM) has ended at `now`, which is in the collector's zone."""
    return month < month_of(now)


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
