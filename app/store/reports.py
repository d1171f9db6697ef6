"""The reports: pages of rows, sorted by count."""

import base64
import heapq
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any

import msgspec
from mongoengine import Document

from app.errors import InvalidRequest
from app.store.connection import collection, deadline
from app.store.documents import (
    ALL_WEBSITES,
    Clicks,
    DayTotals,
    MonthCounts,
    MonthlyReport,
    PageTotals,
    PageViews,
    key,
)

MAX_LIMIT = 1_000
DEFAULT_LIMIT = 100
REPORT_SECONDS = 10.0
MAX_CURSOR_BYTES = 65_536

Row = dict[str, Any]
_Count = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


@dataclass(frozen=True)
class Page:
    """Which part of a report: at most `limit` rows, those after `cursor` (None: from the start)."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None


@dataclass(frozen=True)
class Report:
    """Rows of a report, their columns, and the cursor of the next rows, None at the end."""

    columns: tuple[str, ...]
    items: list[Row]
    next_cursor: str | None = None


def page_views(
    page: Page, website: str | None = None, first: date | None = None, last: date | None = None
) -> Report:
    """Rows of website, page and views, most viewed first, over the days from `first` to `last`.

    Like all here, raises InvalidRequest for a bad cursor, Unavailable where the database is away.
    """
    if first or last:
        return _page_views_of_days(page, website, first, last)
    return _ranked(page, ("website", "page", "views"), {PageTotals: {}}, of_website=website)


def _page_views_of_days(
    page: Page, website: str | None, first: date | None, last: date | None
) -> Report:
    columns = ("website", "page", "views")
    days = _days(first, last)
    match: Row = {"day": days}
    if website is not None:
        match = {"website_day": {bound: key(website, day) for bound, day in days.items()}}
    pipeline: list[Row] = [
        {"$match": match},
        {
            "$group": {
                "_id": {"website": "$website", "page": "$page"},
                "views": {"$sum": "$views"},
            }
        },
        {"$project": {"_id": 0, "website": "$_id.website", "page": "$_id.page", "views": 1}},
    ]
    if page.cursor is not None:
        views, *name = _decode(page.cursor, tuple[_Count, str, str])
        after_website, after_page = name
        later = [
            {"views": {"$lt": views}},
            {"views": views, "website": {"$gt": after_website}},
            {"views": views, "website": after_website, "page": {"$gt": after_page}},
        ]
        pipeline.append({"$match": {"$or": later}})
    pipeline += [{"$sort": {"views": -1, "website": 1, "page": 1}}, {"$limit": page.limit + 1}]
    with deadline(REPORT_SECONDS):
        rows = list(collection(PageViews).aggregate(pipeline))
    items = [{name: row[name] for name in columns} for row in rows[: page.limit]]
    more = len(rows) > page.limit
    last_row = items[-1] if items else {}
    cursor = [last_row["views"], last_row["website"], last_row["page"]] if more else None
    return Report(columns, items, _encode(cursor) if cursor else None)


def daily_page_views(
    page: Page,
    website: str | None = None,
    page_path: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Report:
    """Rows of day and views, in order, days without any included.

    They reach from the first to the last day asked for, or else to the outermost with a view.
    """
    columns = ("day", "views")
    document: type[Document] = DayTotals
    query: Row = {"website": website or ALL_WEBSITES}
    if page_path is not None:
        document = PageViews
        query = {"page": page_path} | ({"website": website} if website else {})
    if first or last:
        query |= {"day": _days(first, last)}
    views: Counter[str] = Counter()
    with deadline(REPORT_SECONDS):
        for row in collection(document).find(query, {"day": 1, "views": 1}):
            views[row["day"]] += row["views"]
    known = [date.fromisoformat(day) for day in sorted(views)]
    if not known and not (first and last):
        return Report(columns, [])
    start, end = first or known[0], last or known[-1]
    if page.cursor is not None:
        start = max(start, *_decode(page.cursor, tuple[date]))
    days = [start + timedelta(days=n) for n in range(min((end - start).days + 1, page.limit + 1))]
    items: list[Row] = [{"day": str(day), "views": views[str(day)]} for day in days[: page.limit]]
    return Report(columns, items, _encode(days[-1:]) if len(days) > page.limit else None)


def impressions(page: Page, month: str | None = None, website: str | None = None) -> Report:
    """Rows of month, website ("*": all together), impressions, visitors and closed.

    From the month's aggregation, or as counted so far where there was none.
    """
    match: Row = {"website": website} if website is not None else {}
    with deadline(REPORT_SECONDS):
        aggregated = collection(MonthlyReport).distinct("month")
    in_month: Row = {"month": month} if month is not None else {}
    sources: dict[type[Document], Row] = {MonthlyReport: match | in_month}
    if month not in aggregated:
        sources[MonthCounts] = match | (in_month or {"month": {"$nin": aggregated}})
    columns = ("month", "website", "impressions", "visitors", "closed")
    return _ranked(page, columns, sources)


def clicks(page: Page, website: str | None = None, ad_id: str | None = None) -> Report:
    """Rows of website, ad_id, hits and clicks, most clicks first, then most hits."""
    columns = ("website", "ad_id", "hits", "clicks")
    if ad_id is None:
        return _ranked(page, columns, {Clicks: {}}, of_website=website)
    match = {"ad_id": ad_id} if website is None else {"_id": key(website, ad_id)}
    return _ranked(page, columns, {Clicks: match})


def _days(first: date | None, last: date | None) -> Row:
    return {"$gte": str(first or "0000-00-00"), "$lte": str(last or "9999-99-99")}


def _ranked(
    page: Page,
    columns: tuple[str, ...],
    sources: dict[type[Document], Row],
    of_website: str | None = None,
) -> Report:
    """A page of the documents that these queries find in collections, together in their rank.

    With `of_website` only those of this website. A cursor is the rank of the last row given, so
    that the next page starts right after it, whatever was counted in between.
    """
    field, after = "rank", ""
    bounds: Row = {}
    if of_website is not None:
        field, after = "website_rank", key(of_website, "")
        bounds = {"$lt": key(of_website, "~")}
    if page.cursor is not None:
        after = max(after, _decode(page.cursor, str))
    bounds["$gt"] = after
    with deadline(REPORT_SECONDS):
        found = [
            collection(document).find(query | {field: bounds}).sort(field, 1).limit(page.limit + 1)
            for document, query in sources.items()
        ]
        rows = list(heapq.merge(*found, key=lambda row: row[field]))
    items = rows[: page.limit]
    return Report(
        columns,
        [{name: row.get(name, False) for name in columns} for row in items],
        _encode(items[-1][field]) if len(rows) > page.limit else None,
    )


def _encode(value: Any) -> str:
    # Compressed, as it goes into an address and a page can be long.
    return base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(value), 9)).decode()


def _decode(cursor: str, shape: Any) -> Any:
    try:
        packed = base64.urlsafe_b64decode(cursor)
        text = zlib.decompressobj().decompress(packed, MAX_CURSOR_BYTES)
        return msgspec.json.decode(text, type=shape)
    except (ValueError, zlib.error, msgspec.DecodeError) as error:
        raise InvalidRequest({"cursor": ["Not a cursor of this report."]}) from error
