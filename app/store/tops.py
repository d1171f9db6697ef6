"""The largest rows for the dashboard, read at a bounded cost.

A report sums up all rows of its days. There may be any number of them, because anybody can make up
pages. Many people look at the dashboard all day, so its cost must not grow with the rows.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Any, NamedTuple

from mongoengine import Document

from app.store import reports
from app.store.database import Database
from app.store.documents import ALL_WEBSITES, DayTotals, Filtered, PageViews, key
from app.store.reports import Page, Row

TOP = 50
MAX_ROWS = 2_000
ALL_TIME = 200
"""How many of the largest pages of all time are candidates for the largest of some days."""
MAX_KEYS = 5_000
KEYS_AT_ONCE = 500
READ_SECONDS = 5.0


class Top(NamedTuple):
    """The TOP largest rows, and whether they are certainly the largest."""

    rows: list[Row]
    is_exact: bool


def pages(
    database: Database,
    website: str | None,
    first: date | None,
    last: date | None,
    lately: Iterable[tuple[str, str]],
) -> Top:
    """The most viewed pages of a website, or of all websites, from a first to a last day.

    If the days have more than MAX_ROWS rows, only the pages seen `lately` (pairs of website and
    page) and the largest pages of all time are compared; their views are exact. Like every function
    here, it raises Unavailable if the database can't be reached.
    """
    if not first and not last:
        return Top(reports.page_views(database, Page(TOP), website).items, is_exact=True)
    columns = ("website", "page", "views")
    found = _sums(database, PageViews, columns, website, first, last)
    if found.is_exact:
        return found
    days = _days(database, website, first, last)
    largest = reports.page_views(database, Page(ALL_TIME), website).items
    named = [(row["website"], row["page"]) for row in largest]
    seen = [pair for pair in lately if website in (None, pair[0])]
    candidates = dict.fromkeys([*named[:TOP], *seen, *named[TOP:]])
    keys = [key(of, day, page) for of, page in candidates for day in days][:MAX_KEYS]
    rows: list[Row] = []
    with database.snapshot(READ_SECONDS) as session:
        for start in range(0, len(keys), KEYS_AT_ONCE):
            query = {"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}}
            rows += session[PageViews].find(query)
    return Top(_largest(rows, columns), is_exact=False)


def filtered(database: Database, website: str | None, first: date | None, last: date | None) -> Top:
    """The most common reasons why events of a website, or of all websites, count separately.

    If the days have more than MAX_ROWS rows, only that many are summed up.
    """
    return _sums(database, Filtered, ("website", "type", "reason", "events"), website, first, last)


def _sums(
    database: Database,
    document: type[Document],
    columns: tuple[str, ...],
    website: str | None,
    first: date | None,
    last: date | None,
) -> Top:
    days = reports.on_days(first, last)
    query = {"day": days} if website is None else {"website_day": reports.of_website(website, days)}
    with database.snapshot(READ_SECONDS) as session:
        found = session[document].find(query, dict.fromkeys(columns, 1))
        rows = list(found.limit(MAX_ROWS + 1))
    return Top(_largest(rows, columns), is_exact=len(rows) <= MAX_ROWS)


def _largest(rows: Iterable[Row], columns: tuple[str, ...]) -> list[Row]:
    """The sums of the last column, grouped by the other columns, highest first."""
    *names, count = columns
    sums: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        sums[tuple(row[name] for name in names)] += row[count]
    largest = heapq.nsmallest(TOP, sums.items(), key=lambda item: (-item[1], item[0]))
    return [dict(zip(columns, (*of, number), strict=True)) for of, number in largest if number > 0]


def _days(
    database: Database, website: str | None, first: date | None, last: date | None
) -> list[str]:
    """The days with views, latest first."""
    query = {
        "website_day": reports.of_website(website or ALL_WEBSITES, reports.on_days(first, last))
    }
    with database.snapshot(READ_SECONDS) as session:
        found = session[DayTotals].find(query, {"day": 1})
        return sorted((row["day"] for row in found), reverse=True)
