"""The reports: pages of rows, sorted by count. Each call reads from one snapshot."""

import base64
import heapq
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from operator import itemgetter
from typing import Annotated, Any

import msgspec
from mongoengine import Document

from app.errors import InvalidRequest
from app.store.database import Database, Session
from app.store.documents import (
    ALL_WEBSITES,
    AdDifferences,
    Clicks,
    ClickTotals,
    DayTotals,
    Filtered,
    MonthCounts,
    PageTotals,
    PageViews,
    key,
    quoted,
    rank,
    shown,
)

MAX_LIMIT = 1_000
DEFAULT_LIMIT = 100
REPORT_SECONDS = 10.0
MAX_CURSOR_BYTES = 65_536
FEW_VIEWS = 5_000
"""Up to this many views, which are at most as many rows, are simply summed up."""
PAGES_AT_ONCE = 1_000
KEYS_AT_ONCE = 500
MAX_KEYS = 50_000

Row = dict[str, Any]
_Count = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


@dataclass(frozen=True)
class Page:
    """A part of a report: at most `limit` rows after `cursor`, or from the start if it is None."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None


@dataclass(frozen=True)
class Report:
    """Rows of a report, their columns, and the cursor for the next rows (None at the end)."""

    columns: tuple[str, ...]
    items: list[Row]
    next_cursor: str | None = None


def page_views(
    database: Database,
    page: Page,
    website: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Report:
    """Rows of website, page and views, most viewed first, over the days from `first` to `last`.

    Like every report here, it raises InvalidRequest for a bad cursor, and Unavailable if the
    database can't be reached.
    """
    columns = ("website", "page", "views")
    if first or last:
        days = on_days(first, last)
        found = _by_totals(database, page, columns, website, days)
        return found or _summed(database, page, columns, PageViews, _on_days(website, days))
    if website is not None:
        return _ranked(database, page, columns, PageTotals, "website_rank", website)
    return _ranked(database, page, columns, PageTotals)


def _by_totals(
    database: Database, page: Page, columns: tuple[str, ...], website: str | None, days: Row
) -> Report | None:
    """The most viewed pages of these days, found without summing up every page viewed on them.

    No page has more views on some days than on all days together. So pages are read in the order of
    their views on all days, until no further page can come before the rows found (Fagin, Lotem and
    Naor, "Optimal aggregation algorithms for middleware", 2003). Returns None if there are so few
    views that summing up is cheaper, or if looking up MAX_KEYS was not enough.
    """
    after = "" if page.cursor is None else _place(website, _after(page.cursor, 2))
    field = "rank" if website is None else "website_rank"
    best: list[tuple[str, Row]] = []
    keys = 0
    with database.snapshot(REPORT_SECONDS) as session:
        views = _views_by_day(website, days, session)
        if sum(views.values()) <= FEW_VIEWS:
            return None
        bounds = {"$gt": ""} if website is None else _within(website)
        while True:
            totals = session[PageTotals].find({field: bounds}).sort(field, 1)
            # Reading one row more shows whether there are more, without another query.
            *chunk, following = [*totals.limit(PAGES_AT_ONCE + 1), None][: PAGES_AT_ONCE + 1]
            keys += len(chunk) * len(views)
            if keys > MAX_KEYS:
                return None
            rows = [
                (_place(website, (number, of)), dict(zip(columns, (*of, number), strict=True)))
                for of, number in _views_on(chunk, list(views), session).items()
                if number > 0
            ]
            later = [row for row in rows if row[0] > after]
            best = heapq.nsmallest(page.limit + 1, best + later, key=itemgetter(0))
            is_whole = len(best) > page.limit
            if following is None or (is_whole and best[page.limit][0] <= following[field]):
                break
            bounds = {**bounds, "$gt": chunk[-1][field]}
    found = [row for _, row in best]
    return _report(page, columns, found, lambda row: [row["views"], [row["website"], row["page"]]])


def _place(website: str | None, row: tuple[int, tuple[str, ...]]) -> str:
    """The rank of a page with its views, among the pages of one website or of all."""
    number, (of, path) = row
    return rank(number, of, path) if website is None else rank(of, number, path)


def _views_by_day(website: str | None, days: Row, session: Session) -> dict[str, int]:
    """The views of each day that had any."""
    query = {"website_day": of_website(website or ALL_WEBSITES, days)}
    return {row["day"]: row["views"] for row in session[DayTotals].find(query)}


def _views_on(pages: list[Row], dates: list[str], session: Session) -> Counter[tuple[str, str]]:
    """The views of these pages on these days together."""
    keys = [key(row["website"], day, row["page"]) for row in pages for day in dates]
    views: Counter[tuple[str, str]] = Counter()
    for start in range(0, len(keys), KEYS_AT_ONCE):
        query = {"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}}
        for row in session[PageViews].find(query):
            views[row["website"], row["page"]] += row["views"]
    return views


def filtered(
    database: Database,
    page: Page,
    website: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Report:
    """Rows of website, type, reason and how many events count separately; most events first."""
    columns = ("website", "type", "reason", "events")
    return _summed(database, page, columns, Filtered, _on_days(website, on_days(first, last)))


def differences(
    database: Database,
    page: Page,
    website: str | None = None,
    ad_id: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Report:
    """Rows of website, ad_id, type, reason and events, most events first.

    They are what can make an ad's figures differ from another system's: see
    `app.store.differences`.
    """
    columns = ("website", "ad_id", "type", "reason", "events")
    of_ad = {} if ad_id is None else {"ad_id": ad_id}
    query = _on_days(website, on_days(first, last)) | of_ad
    return _summed(database, page, columns, AdDifferences, query)


def _summed(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    query: Row,
) -> Report:
    """The sums of the last column over the documents found, grouped by the other columns."""
    *names, count = columns
    pipeline: list[Row] = [
        {"$match": query},
        {"$group": {"_id": {name: f"${name}" for name in names}, count: {"$sum": f"${count}"}}},
        {"$project": {"_id": 0, count: 1} | {name: f"$_id.{name}" for name in names}},
        {"$match": {count: {"$gt": 0}}},
    ]
    if page.cursor is not None:
        number, after = _after(page.cursor, len(names))
        given = dict(zip(names, after, strict=True))
        later: list[Row] = [{count: {"$lt": number}}]
        for place, name in enumerate(names):
            same = {other: given[other] for other in names[:place]}
            later.append({count: number, **same, name: {"$gt": given[name]}})
        pipeline.append({"$match": {"$or": later}})
    pipeline += [{"$sort": {count: -1, **dict.fromkeys(names, 1)}}, {"$limit": page.limit + 1}]
    with database.snapshot(REPORT_SECONDS) as session:
        rows = list(session[document].aggregate(pipeline))
    return _report(page, columns, rows, lambda row: [row[count], [row[name] for name in names]])


def daily_page_views(
    database: Database,
    page: Page,
    website: str | None = None,
    page_path: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Report:
    """Rows of day and views in order, including days without views.

    The default of `first` is the first day with a view, and that of `last` the last day with one.
    """
    columns = ("day", "views")
    days = on_days(first, last)
    views: Counter[str] = Counter()
    with database.snapshot(REPORT_SECONDS) as session:
        if page_path is None:
            query = {"website_day": of_website(website or ALL_WEBSITES, days)}
            rows = session[DayTotals].find(query)
        else:
            rows = _days_of_page(page_path, website, session)
        for row in rows:
            if days["$gte"] <= row["day"] <= days["$lte"]:
                views[row["day"]] += row["views"]
    known = [date.fromisoformat(day) for day in sorted(views)]
    if not known and not (first and last):
        return Report(columns, [])
    start, end = first or known[0], last or known[-1]
    if page.cursor is not None:
        start = max(start, *decode_cursor(page.cursor, tuple[date]))
    reach = [start + timedelta(days=n) for n in range(min((end - start).days + 1, page.limit + 1))]
    items: list[Row] = [{"day": str(day), "views": views[str(day)]} for day in reach[: page.limit]]
    return Report(columns, items, encode_cursor(reach[-1:]) if len(reach) > page.limit else None)


def views_of_days(
    database: Database,
    website: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> int:
    """The views of a website, or of all websites, from a first to a last day."""
    days = on_days(first, last)
    with database.snapshot(REPORT_SECONDS) as session:
        rows = session[DayTotals].find({"website_day": of_website(website or ALL_WEBSITES, days)})
        return sum(row["views"] for row in rows)


def _days_of_page(path: str, website: str | None, session: Session) -> Any:
    websites = [website]
    if website is None:
        found = session[PageTotals].find({"page": path})
        websites = [row["website"] for row in found]
    pages = [key(of, path) for of in websites]
    return session[PageViews].find({"website_page": {"$in": pages}})


def impressions(
    database: Database, page: Page, month: str | None = None, website: str | None = None
) -> Report:
    """Rows of month, website ("*": all together), impressions, visitors and closed.

    Until a month is closed, it shows the current counts; after that, those of its aggregation.
    """
    columns = ("month", "website", "impressions", "visitors", "closed")
    if month is not None and website is not None:
        return _one(database, columns, MonthCounts, key(month, website))
    if month is not None:
        return _ranked(database, page, columns, MonthCounts, "month_rank", month)
    if website is not None:
        return _ranked(database, page, columns, MonthCounts, "website_rank", website)
    return _ranked(database, page, columns, MonthCounts)


def clicks(
    database: Database, page: Page, website: str | None = None, ad_id: str | None = None
) -> Report:
    """Rows of website, ad_id, hits and clicks, most clicks first, then most hits."""
    columns = ("website", "ad_id", "hits", "clicks")
    if website is not None and ad_id is not None:
        return _one(database, columns, Clicks, key(website, ad_id))
    if website is not None:
        return _ranked(database, page, columns, Clicks, "website_rank", website)
    if ad_id is not None:
        return _ranked(database, page, columns, Clicks, "ad_rank", quoted(ad_id))
    return _ranked(database, page, columns, Clicks)


def click_totals(database: Database, website: str | None = None) -> Row:
    """Hits and clicks of all ads of a website, or of all websites."""
    with database.snapshot(REPORT_SECONDS) as session:
        found = session[ClickTotals].find_one({"_id": key(website or ALL_WEBSITES)})
    return {name: found[name] if found else 0 for name in ("hits", "clicks")}


def is_known(database: Database, website: str) -> bool:
    """Whether anything was counted for a website. Raises Unavailable."""
    within = {"$gte": key(website, ""), "$lt": key(website, "~")}
    with database.snapshot(REPORT_SECONDS) as session:
        return any(
            session[document].find_one({field: within}, {"_id": 1})
            for document, field in (
                (DayTotals, "website_day"),
                (MonthCounts, "website_rank"),
                (Clicks, "website_rank"),
                (Filtered, "website_day"),
            )
        )


def on_days(first: date | None, last: date | None) -> Row:
    """The bounds of a query for the days from `first` to `last`."""
    return {"$gte": str(first or "0000-00-00"), "$lte": str(last or "9999-99-99")}


def _on_days(website: str | None, days: Row) -> Row:
    """A query for a website, or all, on the days within these bounds."""
    return {"day": days} if website is None else {"website_day": of_website(website, days)}


def of_website(website: str, days: Row) -> Row:
    """The bounds of a query for a website on the days within these bounds."""
    return {bound: key(website, day) for bound, day in days.items()}


def _ranked(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    field: str = "rank",
    within: str | None = None,
) -> Report:
    """A page of the documents whose rank begins with `within`, in the order of that rank.

    The cursor is the rank of the last row returned, so the next page starts right after it,
    whatever was counted in between.
    """
    bounds = {"$gt": ""} if within is None else _within(within)
    if page.cursor is not None:
        bounds["$gt"] = max(bounds["$gt"], decode_cursor(page.cursor, str))
    with database.snapshot(REPORT_SECONDS) as session:
        found = session[document].find({field: bounds}).sort(field, 1)
        found = found.limit(page.limit + 1)
        return _report(page, columns, list(found), lambda row: row[field])


def _within(name: str) -> Row:
    """The bounds of the ranks that begin with this name."""
    return {"$gt": key(name, ""), "$lt": key(name, "~")}


def _one(
    database: Database, columns: tuple[str, ...], document: type[Document], name: str
) -> Report:
    with database.snapshot(REPORT_SECONDS) as session:
        rows = list(session[document].find({"_id": name}))
    return _report(Page(), columns, rows, repr)


def _report(
    page: Page, columns: tuple[str, ...], rows: list[Row], cursor: Callable[[Row], Any]
) -> Report:
    """A report of these rows. If there is a next page, they include its first row."""
    items = [
        {name: values[name] for name in columns}
        for row in rows[: page.limit]
        for values in [row | {"closed": False} | shown(row)]
    ]
    if len(rows) <= page.limit:
        return Report(columns, items)
    return Report(columns, items, encode_cursor(cursor(rows[page.limit - 1])))


def encode_cursor(value: Any) -> str:
    """A cursor that stands for a value, for the client to send back."""
    # Compressed, because it goes into a URL and a page can be long.
    return base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(value), 9)).decode()


def _after(cursor: str, number: int) -> tuple[int, tuple[str, ...]]:
    """The count, and this number of names, of the row that a cursor stands for."""
    count, names = decode_cursor(cursor, tuple[_Count, tuple[str, ...]])
    if len(names) != number:
        raise InvalidRequest({"cursor": ["Not a cursor of this report."]})
    return count, names


def decode_cursor(cursor: str, shape: Any) -> Any:
    """The value of this type that a cursor stands for. Raises InvalidRequest."""
    try:
        packed = base64.urlsafe_b64decode(cursor)
        text = zlib.decompressobj().decompress(packed, MAX_CURSOR_BYTES)
        return msgspec.json.decode(text, type=shape)
    except (ValueError, zlib.error, msgspec.DecodeError) as error:
        raise InvalidRequest({"cursor": ["Not a cursor of this report."]}) from error
