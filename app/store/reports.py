"""The reports: pages of rows, sorted by count. Each call reads from one snapshot."""

import base64
import heapq
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import chain, islice
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
from app.store.scope import EVERYTHING, Scope

MAX_LIMIT = 1_000
DEFAULT_LIMIT = 100
REPORT_SECONDS = 10.0
MAX_CURSOR_BYTES = 65_536
FEW_VIEWS = 5_000
"""Up to this many views, which are at most as many rows, are simply summed up."""
PAGES_AT_ONCE = 1_000
KEYS_AT_ONCE = 500
MAX_KEYS = 50_000
MAX_ROWS = 50_000
"""How many rows are read at most if a report is of some ads."""
TOO_MUCH = "That is too much for one report: ask for fewer ads or websites."
_COUNT_LENGTH = len(rank(0, ""))

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
    *,
    scope: Scope = EVERYTHING,
) -> Report:
    """Rows of website, page and views, most viewed first, over the days from `first` to `last`.

    Like every report here, it tells only of what is in the scope; views belong to no ad. It raises
    InvalidRequest for a bad cursor, and Unavailable if the database can't be reached.
    """
    columns = ("website", "page", "views")
    if scope.ads is not None:
        return Report(columns, [])
    websites = scope.rows_of(website)
    if first or last:
        days = on_days(first, last)
        found = _by_totals(database, page, columns, websites, days, scope.sums_of(website))
        return found or _summed(database, page, columns, PageViews, _on_days(websites, days))
    return _ranked_of(database, page, columns, PageTotals, websites, counts=1)


def _by_totals(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    websites: Sequence[str] | None,
    days: Row,
    sums_of: Sequence[str],
) -> Report | None:
    """The most viewed pages of these days, found without summing up every page viewed on them.

    No page has more views on some days than on all days together. So pages are read in the order of
    their views on all days, until no further page can come before the rows found (Fagin, Lotem and
    Naor, "Optimal aggregation algorithms for middleware", 2003). Returns None if there are so few
    views that summing up is cheaper, or if looking up MAX_KEYS was not enough.
    """
    after = ""
    if page.cursor is not None:
        number, of = _after(page.cursor, 2)
        after = rank(number, *of)
    best: list[tuple[str, Row]] = []
    keys = 0
    with database.snapshot(REPORT_SECONDS) as session:
        views = _views_by_day(sums_of, days, session)
        if views.total() <= FEW_VIEWS:
            return None
        totals = _in_order(session, PageTotals, websites, "", PAGES_AT_ONCE + 1, counts=1)
        following = next(totals, None)
        while following is not None:
            chunk = [following, *islice(totals, PAGES_AT_ONCE - 1)]
            keys += len(chunk) * len(views)
            if keys > MAX_KEYS:
                return None
            rows = [
                (rank(number, *of), dict(zip(columns, (*of, number), strict=True)))
                for of, number in _views_on(chunk, list(views), session).items()
                if number > 0
            ]
            later = [row for row in rows if row[0] > after]
            best = heapq.nsmallest(page.limit + 1, best + later, key=itemgetter(0))
            following = next(totals, None)
            is_whole = len(best) > page.limit
            if following and is_whole and best[page.limit][0] <= following["rank"]:
                break
    found = [row for _, row in best]
    return _report(page, columns, found, lambda row: [row["views"], [row["website"], row["page"]]])


def _views_by_day(websites: Sequence[str], days: Row, session: Session) -> Counter[str]:
    """The views of each day that had any, of all these websites together."""
    views: Counter[str] = Counter()
    for website in websites:
        for row in session[DayTotals].find({"website_day": of_website(website, days)}):
            views[row["day"]] += row["views"]
    return views


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
    *,
    scope: Scope = EVERYTHING,
) -> Report:
    """Rows of website, type, reason and how many events count separately; most events first.

    Of which ads these were is not known.
    """
    columns = ("website", "type", "reason", "events")
    if scope.ads is not None:
        return Report(columns, [])
    matches = _on_days(scope.rows_of(website), on_days(first, last))
    return _summed(database, page, columns, Filtered, matches)


def differences(
    database: Database,
    page: Page,
    website: str | None = None,
    ad_id: str | None = None,
    first: date | None = None,
    last: date | None = None,
    *,
    scope: Scope = EVERYTHING,
) -> Report:
    """Rows of website, ad_id, type, reason and events, most events first.

    They are what can make an ad's figures differ from another system's: see
    `app.store.differences`.
    """
    columns = ("website", "ad_id", "type", "reason", "events")
    matches, ads = _on_days(scope.rows_of(website), on_days(first, last)), scope.ads_of(ad_id)
    if ads is not None:
        matches = [{**match, "ad_id": {"$in": ads}} for match in matches]
    return _summed(database, page, columns, AdDifferences, matches)


def filtered_by_reason(
    database: Database, website: str | None, first: date, last: date
) -> list[Row]:
    """Rows of type, reason and events, for events of a website, or of all, that count apart."""
    columns = ("type", "reason", "events")
    matches = _on_days(None if website is None else [website], on_days(first, last))
    return _summed(database, Page(MAX_LIMIT), columns, Filtered, matches).items


def _summed(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    matches: Sequence[Row],
) -> Report:
    """The sums of the last column over the documents found, grouped by the other columns.

    No group has documents that are found by two of the `matches`.
    """
    *names, count = columns
    pipeline: list[Row] = [
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
        found = chain.from_iterable(
            session[document].aggregate([{"$match": match}, *pipeline]) for match in matches
        )
        rows = heapq.nsmallest(
            page.limit + 1, found, key=lambda row: (-row[count], *(row[name] for name in names))
        )
    return _report(page, columns, rows, lambda row: [row[count], [row[name] for name in names]])


def daily_page_views(
    database: Database,
    page: Page,
    website: str | None = None,
    page_path: str | None = None,
    first: date | None = None,
    last: date | None = None,
    *,
    scope: Scope = EVERYTHING,
) -> Report:
    """Rows of day and views in order, including days without views.

    The default of `first` is the first day with a view, and that of `last` the last day with one.
    """
    columns = ("day", "views")
    if scope.ads is not None:
        return Report(columns, [])
    days = on_days(first, last)
    views: Counter[str] = Counter()
    with database.snapshot(REPORT_SECONDS) as session:
        if page_path is None:
            views = _views_by_day(scope.sums_of(website), days, session)
        else:
            for row in _days_of_page(page_path, scope.rows_of(website), session):
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
    *,
    scope: Scope = EVERYTHING,
) -> int:
    """The views of a website, or of all websites, from a first to a last day."""
    days = on_days(first, last)
    with database.snapshot(REPORT_SECONDS) as session:
        return _views_by_day(scope.sums_of(website), days, session).total()


def views_by_website(database: Database, day: date) -> dict[str, int]:
    """The views that each website had on a day, if any."""
    with database.snapshot(REPORT_SECONDS) as session:
        rows = session[DayTotals].find({"day": str(day)}, {"_id": 0, "website": 1, "views": 1})
        return {row["website"]: row["views"] for row in rows if row["website"] != ALL_WEBSITES}


def _days_of_page(path: str, websites: Sequence[str] | None, session: Session) -> Iterator[Any]:
    if websites is None:
        websites = [row["website"] for row in session[PageTotals].find({"page": path})]
    pages = [key(of, path) for of in websites]
    for start in range(0, len(pages), KEYS_AT_ONCE):
        query = {"website_page": {"$in": pages[start : start + KEYS_AT_ONCE]}}
        yield from session[PageViews].find(query)


def impressions(
    database: Database, page: Page, month: str | None = None, website: str | None = None
) -> Report:
    """Rows of month, website ("*": all together), impressions, visitors and closed.

    Until a month is closed, it shows the current counts; after that, those of its aggregation. For
    some websites or ads only, see `app.store.month_report`.
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
    database: Database,
    page: Page,
    website: str | None = None,
    ad_id: str | None = None,
    *,
    scope: Scope = EVERYTHING,
) -> Report:
    """Rows of website, ad_id, hits and clicks, most clicks first, then most hits."""
    columns = ("website", "ad_id", "hits", "clicks")
    websites, ads = scope.rows_of(website), scope.ads_of(ad_id)
    if ads is None:
        return _ranked_of(database, page, columns, Clicks, websites, counts=2)
    if len(ads) == 1 and websites is None:
        return _ranked(database, page, columns, Clicks, "ad_rank", quoted(ads[0]))
    if len(ads) == 1 and websites is not None and len(websites) == 1:
        return _one(database, columns, Clicks, key(websites[0], ads[0]))
    after = "" if page.cursor is None else decode_cursor(page.cursor, str)
    with database.snapshot(REPORT_SECONDS) as session:
        rows = _clicks_of(session, websites, ads)
    later = (row for row in rows if row["rank"] > after)
    found = heapq.nsmallest(page.limit + 1, later, key=itemgetter("rank"))
    return _report(page, columns, found, itemgetter("rank"))


def _clicks_of(session: Session, websites: Sequence[str] | None, ads: Sequence[str]) -> list[Any]:
    """The rows of these ads on these websites (None: all). Raises InvalidRequest if too many."""
    if websites is not None and len(websites) * len(ads) <= MAX_KEYS:
        keys = [key(website, ad_id) for website in websites for ad_id in ads]
        queries: list[Row] = [
            {"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}}
            for start in range(0, len(keys), KEYS_AT_ONCE)
        ]
    else:
        queries = [{"ad_rank": _within(quoted(ad_id))} for ad_id in ads]
    theirs = None if websites is None else set(websites)
    read = (row for query in queries for row in session[Clicks].find(query))
    rows = list(islice(read, MAX_ROWS + 1))
    if len(rows) > MAX_ROWS:
        raise InvalidRequest({"website": [TOO_MUCH]})
    return [row for row in rows if theirs is None or row["website"] in theirs]


def click_totals(database: Database, website: str | None = None, scope: Scope = EVERYTHING) -> Row:
    """Hits and clicks of all ads of a website, or of all websites."""
    with database.snapshot(REPORT_SECONDS) as session:
        if scope.ads is None:
            keys = [key(name) for name in scope.sums_of(website)]
            found = [
                row
                for start in range(0, len(keys), KEYS_AT_ONCE)
                for row in session[ClickTotals].find(
                    {"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}}
                )
            ]
        else:
            found = _clicks_of(session, scope.rows_of(website), scope.ads)
    return {name: sum(row[name] for row in found) for name in ("hits", "clicks")}


def is_known(database: Database, website: str, scope: Scope = EVERYTHING) -> bool:
    """Whether anything was counted for a website. Raises Unavailable."""
    with database.snapshot(REPORT_SECONDS) as session:
        return any(_is_known(session, name) for name in scope.sums_of(website))


def _is_known(session: Session, website: str) -> bool:
    within = {"$gte": key(website, ""), "$lt": key(website, "~")}
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


def _on_days(websites: Sequence[str] | None, days: Row) -> list[Row]:
    """Queries for these websites, or one for all, on the days within these bounds."""
    if websites is None:
        return [{"day": days}]
    return [{"website_day": of_website(website, days)} for website in websites]


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


def _ranked_of(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    websites: Sequence[str] | None,
    *,
    counts: int,
) -> Report:
    """A page of the documents of these websites (None: all), in the order of their ranks."""
    if websites is None:
        return _ranked(database, page, columns, document)
    if len(websites) == 1:
        return _ranked(database, page, columns, document, "website_rank", websites[0])
    after = "" if page.cursor is None else decode_cursor(page.cursor, str)
    with database.snapshot(REPORT_SECONDS) as session:
        found = _in_order(session, document, websites, after, page.limit + 1, counts=counts)
        return _report(page, columns, list(islice(found, page.limit + 1)), itemgetter("rank"))


def _in_order(
    session: Session,
    document: type[Document],
    websites: Sequence[str] | None,
    after: str,
    at_once: int,
    *,
    counts: int,
) -> Iterator[Any]:
    """The documents of these websites (None: all) whose `rank` is after this one, in its order.

    `counts` is how many counts a rank begins with.
    """
    if websites is None:
        return _one_by_one(session, document, "rank", {"$gt": after}, at_once)
    each = max(2, at_once // max(1, len(websites)))
    return heapq.merge(
        *(
            _one_by_one(session, document, "website_rank", _after_rank(name, after, counts), each)
            for name in websites
        ),
        key=itemgetter("rank"),
    )


def _one_by_one(
    session: Session, document: type[Document], field: str, bounds: Row, at_once: int
) -> Iterator[Any]:
    """The documents within these bounds in order, read when they are needed."""
    while True:
        rows = list(session[document].find({field: bounds}).sort(field, 1).limit(at_once))
        yield from rows
        if len(rows) < at_once:
            return
        bounds = {**bounds, "$gt": rows[-1][field]}


def _after_rank(website: str, after: str, counts: int) -> Row:
    """The bounds of the ranks in a website that come after this rank among all websites."""
    bounds = _within(website)
    if not after:
        return bounds
    length = counts * _COUNT_LENGTH
    of, _, name = after[length:].partition(" ")
    same = key(website, after[:length].rstrip(" "))
    if website == of:
        return {**bounds, "$gt": key(same, name)}
    # All with the same counts come after it or before it: a space follows their counts.
    return {**bounds, "$gt": same if website > of else f"{same}!"}


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
