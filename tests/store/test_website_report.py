from datetime import date

from app.domain.events import AdClick, AdImpression, PageView
from app.store import website_report
from app.store.ad_reports import AdReport, Rules
from app.store.counting import Counting
from app.store.database import Database
from app.store.paging import Row
from app.store.scope import EVERYTHING, Scope
from tests.support.counting import count_batch

DAY = date(2026, 11, 24)
NOON = 1_795_521_600_000


def count(database: Database, counting: Counting) -> None:
    for kind, events in (
        (PageView, [PageView(None, "a.com", "/", "2026-11-24", NOON)]),
        (PageView, [PageView(None, "a.com", "/b", "2026-11-23", NOON)]),
        (PageView, [PageView(None, "read.com", f"/{n}", "2026-11-24", NOON) for n in range(3)]),
        (AdImpression, [AdImpression(None, "a.com", "1", u, "2026-11", NOON) for u in "xyx"]),
        (AdImpression, [AdImpression(None, "shown.com", "2", "x", "2026-11", NOON)]),
        (AdClick, [AdClick(None, "a.com", "1", "x", NOON + n) for n in range(3)]),
    ):
        count_batch(database, counting, str(events), kind, events)


def rows(report: AdReport) -> dict[str, list[object]]:
    return {row["website"]: [row[name] for name in website_report.METRICS] for row in report.rows}


def read(
    database: Database,
    website: str | None = None,
    scope: Scope = EVERYTHING,
    days: tuple[date | None, date | None] = (DAY, DAY),
) -> AdReport:
    return website_report.website_report(database, website, *days, scope, Rules())


def test_every_website_with_views_or_ads_has_a_row(database: Database, counting: Counting) -> None:
    count(database, counting)
    report = read(database)
    assert rows(report) == {
        "a.com": [1, 3, 2, 1.5, 3, 1, 0.3333],
        "read.com": [3, 0, 0, None, 0, 0, None],
        "shown.com": [0, 1, 1, 1.0, 0, 0, 0.0],
    }
    total: Row = {"views": 4, "impressions": 4, "reach": 2, "frequency": 2.0}
    assert report.totals == total | {"hits": 3, "clicks": 1, "ctr": 0.25}


def test_it_has_only_the_days_and_the_website_that_are_asked_for(
    database: Database, counting: Counting
) -> None:
    count(database, counting)
    assert rows(read(database, "read.com")) == {"read.com": [3, 0, 0, None, 0, 0, None]}
    whole = read(database, "a.com", days=(None, None))
    assert rows(whole)["a.com"][0] == 2
    assert read(database, "other.com").rows == []


def test_it_has_only_what_is_in_the_scope(database: Database, counting: Counting) -> None:
    count(database, counting)
    theirs = read(database, scope=Scope(["read.com"]))
    assert list(rows(theirs)) == ["read.com"]
    assert theirs.totals["views"] == 3
    of_ads = read(database, scope=Scope(ads=["2"]))
    assert rows(of_ads) == {"shown.com": [None, 1, 1, 1.0, 0, 0, 0.0]}
    assert of_ads.totals["views"] is None
