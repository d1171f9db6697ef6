"""The largest rows for the dashboard, read at a bounded cost.

A report sums up all rows of its days. There may be any number of them, because anybody can make up
pages. Many people look at the dashboard all day, so its cost must not grow with the rows.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from datetime import date
from itertools import islice
from typing import Any, NamedTuple

from mongoengine import Document

from app.store import reports
from app.store.database import Database
from app.store.documents import DayTotals, Filtered, PageViews, key
from app.store.paging import Page, Row, of_website, on_days
from app.store.scope import EVERYTHING, Scope

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
    scope: Scope = EVERYTHING,
) -> Top:
    """The most viewed pages of a website, or of all in the scope, from a first to a last day.

    If the days have more than MAX_ROWS rows, only the pages seen `lately` (pairs of website and
    page) and the largest pages of all time are compared; their views are exact. Like every function
    here, it raises Unavailable if the database can't be reached.
    """
    if not first and not last:
        found = reports.page_views(database, Page(TOP), website, scope=scope)
        return Top(found.items, is_exact=True)
    columns = ("website", "page", "views")
    top = _sums(database, PageViews, columns, website, on_days(first, last), scope)
    if top.is_exact:
        return top
    days = _days(database, website, first, last, scope)
    largest = reports.page_views(database, Page(ALL_TIME), website, scope=scope).items
    named = [(row["website"], row["page"]) for row in largest]
    websites = scope.rows_of(website)
    seen = [pair for pair in lately if websites is None or pair[0] in websites]
    candidates = dict.fromkeys([*named[:TOP], *seen, *named[TOP:]])
    keys = [key(of, day, page) for of, page in candidates for day in days][:MAX_KEYS]
    rows: list[Row] = []
    with database.snapshot(READ_SECONDS) as session:
        for start in range(0, len(keys), KEYS_AT_ONCE):
            query = {"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}}
            rows += session[PageViews].find(query)
    return Top(_largest(rows, columns), is_exact=False)


def filtered(
    database: Database,
    website: str | None,
    first: date | None,
    last: date | None,
    scope: Scope = EVERYTHING,
) -> Top:
    """The most common reasons why events of a website, or of all in the scope, count separately.

    If the days have more than MAX_ROWS rows, only that many are summed up.
    """
    columns = ("website", "type", "reason", "events")
    return _sums(database, Filtered, columns, website, on_days(first, last), scope)


def _sums(
    database: Database,
    document: type[Document],
    columns: tuple[str, ...],
    website: str | None,
    days: Row,
    scope: Scope,
) -> Top:
    if scope.ads is not None:  # of which ads they are is not known
        return Top([], is_exact=True)
    websites = scope.rows_of(website)
    queries: list[Row] = [{"day": days}]
    if websites is not None:
        queries = [{"website_day": of_website(name, days)} for name in websites]
    with database.snapshot(READ_SECONDS) as session:
        found = (
            row
            for query in queries
            for row in session[document].find(query, dict.fromkeys(columns, 1)).limit(MAX_ROWS + 1)
        )
        rows = list(islice(found, MAX_ROWS + 1))
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
    database: Database, website: str | None, first: date | None, last: date | None, scope: Scope
) -> list[str]:
    """The days with views, latest first."""
    days = on_days(first, last)
    with database.snapshot(READ_SECONDS) as session:
        found = {
            row["day"]
            for name in scope.sums_of(website)
            for row in session[DayTotals].find({"website_day": of_website(name, days)}, {"day": 1})
        }
    return sorted(found, reverse=True)
