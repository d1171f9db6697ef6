"""The reports: pages of rows, sorted by count. Each call reads from one snapshot."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import islice
from operator import itemgetter
from typing import Any

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
)
from app.store.paging import (
    MAX_LIMIT,
    REPORT_SECONDS,
    Page,
    Report,
    Row,
    count_and_names,
    decode_cursor,
    encode_cursor,
    in_order,
    of_website,
    on_days,
    only_row,
    queries_on_days,
    ranked,
    ranked_of,
    ranks_within,
    report_of,
    summed,
)
from app.store.scope import EVERYTHING, Scope, names_in_index

FEW_VIEWS = 5_000
"""Up to this many views, which are at most as many rows, are simply summed up."""
PAGES_AT_ONCE = 1_000
KEYS_AT_ONCE = 500
MAX_KEYS = 50_000
MAX_ROWS = 50_000
"""At most this many rows are read for a report on some ads."""
TOO_MUCH = "That is too much for one report: ask for fewer ads or websites."


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

    Like every report here, it covers only what is in the scope; views belong to no ad. It raises
    InvalidRequest for a bad cursor, and Unavailable if the database can't be reached.
    """
    columns = ("website", "page", "views")
    if scope.ads is not None:
        return Report(columns, [])
    websites = scope.rows_of(website)
    if first or last:
        days = on_days(first, last)
        found = _by_totals(database, page, columns, websites, days, scope.sums_of(website))
        return found or summed(database, page, columns, PageViews, queries_on_days(websites, days))
    return ranked_of(database, page, columns, PageTotals, websites, counts=1)


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
    views that summing up is cheaper, or if looking up MAX_KEYS keys was not enough.
    """
    after = ""
    if page.cursor is not None:
        number, of = count_and_names(page.cursor, 2)
        after = rank(number, *of)
    best: list[tuple[str, Row]] = []
    keys = 0
    with database.snapshot(REPORT_SECONDS) as session:
        views = _views_by_day(sums_of, days, session)
        if views.total() <= FEW_VIEWS:
            return None
        totals = in_order(session, PageTotals, websites, "", PAGES_AT_ONCE + 1, counts=1)
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
    return report_of(
        page, columns, found, lambda row: [row["views"], [row["website"], row["page"]]]
    )


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

    It is not known which ads these events belong to.
    """
    columns = ("website", "type", "reason", "events")
    if scope.ads is not None:
        return Report(columns, [])
    matches = queries_on_days(scope.rows_of(website), on_days(first, last))
    return summed(database, page, columns, Filtered, matches)


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
    matches, ads = (
        queries_on_days(scope.rows_of(website), on_days(first, last)),
        scope.ads_of(ad_id),
    )
    if ads is not None:
        matches = [{**match, "ad_id": {"$in": ads}} for match in matches]
    return summed(database, page, columns, AdDifferences, matches)


def filtered_by_reason(
    database: Database, website: str | None, first: date, last: date
) -> list[Row]:
    """Rows of type, reason and events: those of a website, or of all, that count separately."""
    columns = ("type", "reason", "events")
    matches = queries_on_days(None if website is None else [website], on_days(first, last))
    return summed(database, Page(MAX_LIMIT), columns, Filtered, matches).items


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
    """The views of a website, or of all websites, from the `first` day to the `last`."""
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

    Until a month is closed, its row has the current counts; after that, those of its aggregation.
    For some websites or ads only, see `app.store.month_report`.
    """
    columns = ("month", "website", "impressions", "visitors", "closed")
    if month is not None and website is not None:
        return only_row(database, columns, MonthCounts, key(month, website))
    if month is not None:
        return ranked(database, page, columns, MonthCounts, "month_rank", month)
    if website is not None:
        return ranked(database, page, columns, MonthCounts, "website_rank", website)
    return ranked(database, page, columns, MonthCounts)


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
        return ranked_of(database, page, columns, Clicks, websites, counts=2)
    if len(ads) == 1 and websites is None:
        return ranked(database, page, columns, Clicks, "ad_rank", quoted(ads[0]))
    if len(ads) == 1 and websites is not None and len(websites) == 1:
        return only_row(database, columns, Clicks, key(websites[0], ads[0]))
    after = "" if page.cursor is None else decode_cursor(page.cursor, str)
    with database.snapshot(REPORT_SECONDS) as session:
        rows = _clicks_of(session, websites, ads)
    later = (row for row in rows if row["rank"] > after)
    found = heapq.nsmallest(page.limit + 1, later, key=itemgetter("rank"))
    return report_of(page, columns, found, itemgetter("rank"))


def _clicks_of(session: Session, websites: Sequence[str] | None, ads: Sequence[str]) -> list[Any]:
    """The rows of these ads on these websites (None: all). Raises InvalidRequest for too many."""
    if websites is None and ads:
        # With few websites, looking up keys takes fewer queries than one for each ad.
        few = min(len(ads), MAX_KEYS // len(ads))
        known = list(islice(names_in_index(session, Clicks, "website_rank"), few + 1))
        websites = known if len(known) <= few else None
    if websites is not None and len(websites) * len(ads) <= MAX_KEYS:
        keys = [key(website, ad_id) for website in websites for ad_id in ads]
        queries: list[Row] = [
            {"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}}
            for start in range(0, len(keys), KEYS_AT_ONCE)
        ]
    else:
        queries = [{"ad_rank": ranks_within(quoted(ad_id))} for ad_id in ads]
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
