"""The report of websites: the views, impressions, reach and clicks of each, over any days."""

from collections import Counter
from collections.abc import Sequence
from datetime import date

from app.store.ad_reports import AdReport, Rules, ad_report_in
from app.store.ad_selection import Selection
from app.store.database import Database, Session
from app.store.documents import ALL_WEBSITES, DayTotals
from app.store.paging import REPORT_SECONDS, Row, on_days, queries_on_days
from app.store.scope import Scope

METRICS = ("views", "impressions", "reach", "frequency", "hits", "clicks", "ctr")


def website_report(
    database: Database,
    website: str | None,
    first: date | None,
    last: date | None,
    scope: Scope,
    rules: Rules,
) -> AdReport:
    """A row of METRICS for each website of the scope, or for one, that anything was counted for.

    Ads have no views, so in a scope of some ads `views` is null. All figures are read at the same
    moment. Raises InvalidRequest if the report would be too large, and Unavailable if the database
    can't be reached.
    """
    websites = scope.rows_of(website)
    selection = Selection(websites, scope.ads, first=first, last=last)
    with database.snapshot(REPORT_SECONDS) as session:
        report = ad_report_in(session, selection, ("website",), rules)
        views = None if scope.ads is not None else _views(session, websites, on_days(first, last))
    rows = {row["website"]: row for row in report.rows}
    nothing = {"impressions": 0, "reach": 0, "frequency": None, "hits": 0, "clicks": 0, "ctr": None}
    for name in views or ():
        rows.setdefault(name, {"website": name, **nothing})
    shown = [
        {"website": name, "views": None if views is None else views[name]}
        | {metric: row[metric] for metric in METRICS[1:]}
        for name, row in rows.items()
    ]
    total = {"views": None if views is None else views.total()} | {
        metric: report.totals[metric] for metric in METRICS[1:]
    }
    return AdReport(("website",), shown, total, report.notes)


def _views(session: Session, websites: Sequence[str] | None, days: Row) -> Counter[str]:
    """The views of each website."""
    views: Counter[str] = Counter()
    for match in queries_on_days(websites, days):
        for row in session[DayTotals].aggregate(
            [
                {"$match": match},
                {"$match": {"website": {"$ne": ALL_WEBSITES}}},
                {"$group": {"_id": "$website", "views": {"$sum": "$views"}}},
            ]
        ):
            views[row["_id"]] += row["views"]
    return views
