"""The report of months for some websites or ads only: its `*` is what these have together."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from operator import itemgetter

from app.domain.calendar import last_day_of
from app.errors import InvalidRequest
from app.store import reports
from app.store.ad_reports import Rules, ad_report_in
from app.store.ad_selection import TOO_MUCH, Selection
from app.store.database import Database, Session
from app.store.documents import ALL_WEBSITES, MonthCounts, key, rank, shown
from app.store.paging import REPORT_SECONDS, Page, Report, Row, decode_cursor, encode_cursor
from app.store.reports import KEYS_AT_ONCE
from app.store.scope import EVERYTHING, Scope

COLUMNS = ("month", "website", "impressions", "visitors", "closed")


def impressions(
    database: Database,
    page: Page,
    month: str | None = None,
    website: str | None = None,
    *,
    scope: Scope = EVERYTHING,
) -> Report:
    """The same as `app.store.reports.impressions`, but only for what is in the scope.

    The visitors of `*` are null if the sets of a closed month's users were dropped. Raises
    InvalidRequest for a bad cursor or if the report would be too large, and Unavailable.
    """
    if scope.is_everything:
        return reports.impressions(database, page, month, website)
    after = "" if page.cursor is None else decode_cursor(page.cursor, str)
    with database.snapshot(REPORT_SECONDS) as session:
        found = _rows(session, month, website, scope)
    ranked = [(rank(row["impressions"], row["month"], row["website"]), row) for row in found]
    later = (one for one in ranked if one[0] > after)
    best = heapq.nsmallest(page.limit + 1, later, key=itemgetter(0))
    cursor = encode_cursor(best[page.limit - 1][0]) if len(best) > page.limit else None
    return Report(COLUMNS, [row for _, row in best[: page.limit]], cursor)


def is_known(database: Database, website: str, scope: Scope) -> bool:
    """Whether any ad of the scope was shown or clicked on a website. Raises Unavailable."""
    selection = Selection(scope.rows_of(website), scope.ads)
    with database.snapshot(REPORT_SECONDS) as session:
        return bool(ad_report_in(session, selection, ("website",), Rules()).rows)


def _rows(session: Session, month: str | None, website: str | None, scope: Scope) -> list[Row]:
    rows = _reached(session, ("month", "website"), month, scope.rows_of(website), scope)
    rows = _with_closed(session, rows, scope)
    if website not in (None, ALL_WEBSITES):
        return rows
    parts: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[row["month"]].append(row)
    totals = [
        _total(row, parts[row["month"]])
        for row in _reached(session, ("month",), month, scope.websites, scope)
    ]
    return totals if website == ALL_WEBSITES else [*rows, *totals]


def _total(reached: Row, parts: Sequence[Row]) -> Row:
    """The row of all websites of a month together, from their rows and the users they reached."""
    return {
        "month": reached["month"],
        "website": ALL_WEBSITES,
        "impressions": sum(row["impressions"] for row in parts),
        "visitors": parts[0]["visitors"] if len(parts) == 1 else reached["visitors"],
        "closed": all(row["closed"] for row in parts),
    }


def _reached(
    session: Session,
    by: Sequence[str],
    month: str | None,
    websites: Sequence[str] | None,
    scope: Scope,
) -> list[Row]:
    """The impressions and visitors of months that have any."""
    selection = Selection(websites, scope.ads)
    try:
        if month is not None:
            first = date.fromisoformat(f"{month}-01")
            selection = selection._replace(first=first, last=last_day_of(month))
    except ValueError:  # in year 0, or the last month that a date can have
        return []
    try:
        found = ad_report_in(session, selection, by, Rules()).rows
    except InvalidRequest as error:
        raise InvalidRequest({"website": [TOO_MUCH]}) from error
    return [
        {name: row[name] for name in by}
        | {"impressions": row["impressions"], "visitors": row["reach"]}
        for row in found
        if row["impressions"]
    ]


def _with_closed(session: Session, rows: Sequence[Row], scope: Scope) -> list[Row]:
    """These rows of websites with `closed`. Rows for all ads get a closed month's own figures."""
    keys = [key(row["month"], row["website"]) for row in rows]
    stored = {
        row["_id"]: shown(row)
        for start in range(0, len(keys), KEYS_AT_ONCE)
        for row in session[MonthCounts].find({"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}})
    }
    found = []
    for of, row in zip(keys, rows, strict=True):
        figures = stored.get(of, {})
        kept = row if scope.ads is not None else row | figures
        closed = figures.get("closed", False)
        found.append({name: kept[name] for name in COLUMNS[:-1]} | {"closed": closed})
    return found
