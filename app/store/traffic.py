"""Views, impressions, hits and clicks in order of time: by hour, day, week or month."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import date, tzinfo
from operator import add
from typing import Any

from app.domain.calendar import hours_of, local_hour
from app.domain.events import AdClick, AdImpression, PageView
from app.domain.periods import PERIOD_OF, Span
from app.errors import InvalidRequest
from app.store.ad_months import ALL_ADS, WHOLE_MONTH, Cell, days_in, known_months
from app.store.ad_selection import Documents
from app.store.database import Database, Session
from app.store.documents import (
    ALL_WEBSITES,
    ClickMonth,
    DayTotals,
    HourCounts,
    ImpressionMonth,
)
from app.store.paging import (
    REPORT_SECONDS,
    Page,
    Report,
    decode_cursor,
    encode_cursor,
    of_website,
    on_days,
)

HOUR = "hour"
BY = (HOUR, *PERIOD_OF)
MOST_DAYS = {HOUR: 400, **dict.fromkeys(PERIOD_OF, 40_000)}
YEARS_WITH_HOURS = range(1970, 9999)
COLUMNS = ("time", "views", "impressions", "hits", "clicks")
_PLACES = {PageView.__name__: 0, AdImpression.__name__: 1, AdClick.__name__: 2}

Counts = defaultdict[str, list[int]]
"""Views, impressions, hits and clicks, by hour or day."""


def traffic(
    database: Database,
    page: Page,
    by: str,
    timezone: tzinfo,
    *,
    websites: Collection[str] | None = None,
    ads: Collection[str] | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Report:
    """Rows of COLUMNS in order, including those without any count. `by` is one of BY.

    They reach from `first` to `last`, or without these from the first to the last day with a count.
    Ads have no views, so with `ads` these are null. Raises InvalidRequest for a bad cursor, for
    more than MOST_DAYS, or for hours of some ads, which are not kept, and Unavailable if the
    database can't be reached.
    """
    if by == HOUR and ads is not None:
        raise InvalidRequest({"by": ["Hours are not kept of each ad."]})
    for name, day in (("from", first), ("to", last)):
        if by == HOUR and day and day.year not in YEARS_WITH_HOURS:
            raise InvalidRequest({name: ["Hours of this day can't be shown."]})
    names = websites if websites is not None else (ALL_WEBSITES,)
    counts: Counts = defaultdict(lambda: [0, 0, 0, 0])
    with database.snapshot(REPORT_SECONDS) as session:
        if by == HOUR:
            _add_hours(counts, session, names, _hours_within(first, last, timezone))
        else:
            _add_days(counts, session, names, ads, first, last)
    known = {local_hour(time, timezone)[:10] for time in counts} if by == HOUR else set(counts)
    if not known and not (first and last):
        return Report(COLUMNS, [])
    span = Span(
        first or date.fromisoformat(min(known)),
        last or date.fromisoformat(max(known)),
    )
    if span.length > MOST_DAYS[by]:
        raise InvalidRequest({"from": [f"At most {MOST_DAYS[by]:,} days by the {by}."]})
    if by == HOUR:
        times = [hour for day in span.days() for hour in hours_of(day, timezone)]
    else:
        times = list(dict.fromkeys(map(PERIOD_OF[by], span.days())))
        counts = _summed(counts, by)
    if page.cursor is not None:
        after = decode_cursor(page.cursor, str)
        times = [time for time in times if time > after]
    shown = times[: page.limit]
    rows: list[dict[str, Any]] = [
        dict(zip(COLUMNS, (time, *counts.get(time, (0, 0, 0, 0))), strict=True)) for time in shown
    ]
    if ads is not None:
        rows = [row | {"views": None} for row in rows]
    if by == HOUR:
        rows = [row | {"time": local_hour(row["time"], timezone)} for row in rows]
    return Report(COLUMNS, rows, encode_cursor(shown[-1]) if len(times) > page.limit else None)


def _hours_within(first: date | None, last: date | None, timezone: tzinfo) -> dict[str, str]:
    """The bounds of a query for the hours of these days."""
    return {
        "$gte": hours_of(first, timezone)[0] if first else "0",
        "$lte": hours_of(last, timezone)[-1] if last else "9",
    }


def _add_hours(
    counts: Counts, session: Session, websites: Iterable[str], within: dict[str, str]
) -> None:
    for website in websites:
        query = {"website_hour": of_website(website, within)}
        for row in session[HourCounts].find(query):
            of_hour, place = counts[row["hour"]], _PLACES[row["kind"]]
            of_hour[place] += row["events"]
            of_hour[-1] += row["clicks"]


def _add_days(
    counts: Counts,
    session: Session,
    websites: Iterable[str],
    ads: Collection[str] | None,
    first: date | None,
    last: date | None,
) -> None:
    within = on_days(first, last)
    months = [
        month
        for month in known_months(session)
        if within["$gte"][:7] <= month <= within["$lte"][:7]
    ]
    documents = Documents(session)
    for website in websites:
        if ads is None:
            for row in session[DayTotals].find({"website_day": of_website(website, within)}):
                counts[row["day"]][0] += row["views"]
        of_ads = (ALL_ADS,) if ads is None else ads
        keys = [Cell(website, ad_id, month).key for month in months for ad_id in of_ads]
        for document, place in ((ImpressionMonth, 1), (ClickMonth, 2)):
            for row in documents.find(document, "_id", keys):
                for number, (events, more) in days_in(row).items():
                    day = f"{row['month']}-{number:02}"
                    if number != WHOLE_MONTH and within["$gte"] <= day <= within["$lte"]:
                        counts[day][place] += events
                        counts[day][3] += more if document is ClickMonth else 0


def _summed(counts: Counts, by: str) -> Counts:
    """These counts of days, by the periods that they are in."""
    sums: Counts = defaultdict(lambda: [0, 0, 0, 0])
    for day, numbers in counts.items():
        period = PERIOD_OF[by](date.fromisoformat(day))
        sums[period] = list(map(add, sums[period], numbers))
    return sums
