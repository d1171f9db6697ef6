"""The reports: pages of rows, sorted by count."""

import base64
import heapq
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from types import GenericAlias
from typing import Annotated, Any

import msgspec

from app.errors import InvalidRequest
from app.store.connection import collection, deadline
from app.store.documents import Clicks, MonthCounts, MonthlyReport, PageViews, key_range
from app.store.months import SUM_OF_STRIPES

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
    groups = _grouped(("website", "page"), ("views",))
    return _by_count(
        page,
        [(PageViews, [_views_in(website, first, last), *groups])],
        columns=("website", "page", "views"),
        counts=("views",),
    )


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
    match = _views_in(website, first, last)
    if page_path is not None:
        match["$match"]["page"] = page_path
    with deadline(REPORT_SECONDS):
        views: dict[str, int] = {
            row["day"]: row["views"]
            for row in collection(PageViews).aggregate([match, *_grouped(("day",), ("views",))])
        }
    known = [date.fromisoformat(day) for day in sorted(views)]
    if not known and not (first and last):
        return Report(columns, [])
    start, end = first or known[0], last or known[-1]
    if page.cursor is not None:
        start = max(start, *_decode(page.cursor, tuple[date]))
    days = [start + timedelta(days=n) for n in range(min((end - start).days + 1, page.limit + 1))]
    items: list[Row] = [
        {"day": str(day), "views": views.get(str(day), 0)} for day in days[: page.limit]
    ]
    return Report(columns, items, _encode(days[-1:]) if len(days) > page.limit else None)


def impressions(page: Page, month: str | None = None, website: str | None = None) -> Report:
    """Rows of month, website ("*": all together), impressions, visitors and closed.

    From the month's aggregation, or as counted so far where there was none.
    """
    match: Row = {}
    if month is not None:
        match["_id"] = key_range(month)
    if website is not None:
        match["website"] = website
    with deadline(REPORT_SECONDS):
        aggregated = collection(MonthlyReport).distinct("month")
    live = {**match, "month": {"$nin": aggregated}}
    return _by_count(
        page,
        [
            (MonthlyReport, [{"$match": match}, {"$project": {"_id": 0}}]),
            (
                MonthCounts,
                [{"$match": live}, *SUM_OF_STRIPES, {"$addFields": {"closed": False}}],
            ),
        ],
        columns=("month", "website", "impressions", "visitors", "closed"),
        counts=("impressions",),
        names=("month", "website"),
    )


def clicks(page: Page, website: str | None = None, ad_id: str | None = None) -> Report:
    """Rows of website, ad_id, hits and clicks, most clicks first, then most hits."""
    match: Row = {}
    if website is not None:
        match |= {"_id": key_range(website), "website": website}
    if ad_id is not None:
        match["ad_id"] = ad_id
    groups = _grouped(("website", "ad_id"), ("hits", "clicks"))
    return _by_count(
        page,
        [(Clicks, [{"$match": match}, *groups])],
        columns=("website", "ad_id", "hits", "clicks"),
        counts=("clicks", "hits"),
    )


def _views_in(website: str | None, first: date | None, last: date | None) -> Row:
    since, until = str(first or "0000-00-00"), str(last or "9999-99-99")
    match: Row = {}
    if website is not None:
        match |= {"_id": key_range(website, since, to=until), "website": website}
    elif first or last:
        match["day"] = {"$gte": since, "$lte": until}
    return {"$match": match}


def _grouped(names: tuple[str, ...], counts: tuple[str, ...]) -> list[Row]:
    return [
        {
            "$group": {
                "_id": {name: f"${name}" for name in names},
                **{count: {"$sum": f"${count}"} for count in counts},
            }
        },
        {
            "$project": {
                "_id": 0,
                **{name: f"$_id.{name}" for name in names},
                **dict.fromkeys(counts, 1),
            }
        },
    ]


def _by_count(
    page: Page,
    sources: list[tuple[Any, list[Row]]],
    *,
    columns: tuple[str, ...],
    counts: tuple[str, ...],
    names: tuple[str, ...] | None = None,
) -> Report:
    """A page of the rows of several collections together, by counts and then by names.

    Names are, unless given, the columns that are no counts. A cursor holds the sort values of the
    last row given, so that the next page starts right after it, whatever was counted in between.
    """
    order = dict.fromkeys(counts, -1)
    for name in names or (column for column in columns if column not in counts):
        order[name] = 1
    after: list[Row] = []
    if page.cursor is not None:
        shape = GenericAlias(tuple, tuple(_Count if name in counts else str for name in order))
        after = [{"$match": _after(order, _decode(page.cursor, shape))}]
    tail = [*after, {"$sort": order}, {"$limit": page.limit + 1}]
    with deadline(REPORT_SECONDS):
        found = [list(collection(document).aggregate(rows + tail)) for document, rows in sources]

    def place(row: Row) -> tuple[Any, ...]:
        return tuple(-row[name] if order[name] == -1 else row[name] for name in order)

    rows = [{name: row[name] for name in columns} for row in heapq.merge(*found, key=place)]
    items = rows[: page.limit]
    more = len(rows) > page.limit
    return Report(columns, items, _encode([items[-1][name] for name in order]) if more else None)


def _after(order: dict[str, int], values: tuple[Any, ...]) -> Row:
    alternatives: list[Row] = []
    equal: Row = {}
    for (name, direction), value in zip(order.items(), values, strict=True):
        alternatives.append({**equal, name: {"$lt" if direction == -1 else "$gt": value}})
        equal = {**equal, name: value}
    return {"$or": alternatives}


def _encode(values: Sequence[Any]) -> str:
    # Compressed, as it goes into an address and a page can be long.
    return base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(values), 9)).decode()


def _decode(cursor: str, shape: Any) -> Any:
    try:
        packed = base64.urlsafe_b64decode(cursor)
        text = zlib.decompressobj().decompress(packed, MAX_CURSOR_BYTES)
        return msgspec.json.decode(text, type=shape)
    except (ValueError, zlib.error, msgspec.DecodeError) as error:
        raise InvalidRequest({"cursor": ["Not a cursor of this report."]}) from error
