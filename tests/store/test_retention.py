from datetime import UTC, date, datetime, timedelta

import pytest

from app.domain.events import AdClick, AdImpression, PageView
from app.settings import read
from app.store import ad_months, documents, reports, retention
from app.store.ad_months import WHOLE_MONTH, sets_in
from app.store.ad_reports import Rules, ad_report
from app.store.ad_selection import Selection
from app.store.counting import Counting
from app.store.database import Database
from app.store.paging import Page
from tests.support.counting import count_batch

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def keys(database: Database, document: type) -> list[str]:
    return sorted(row["_id"] for row in database[document].find({}))


def expire(database: Database, now: datetime = NOW, days: int = 50) -> int:
    return retention.expire(database, days, now, seconds=20)


def hit(user: str, day: str) -> AdClick:
    moment = datetime.fromisoformat(f"{day}T12:00:00Z")
    return AdClick(None, "a.com", "1", user, int(moment.timestamp() * 1000))


def test_old_daily_views_of_a_page_are_dropped_and_its_totals_stay(
    database: Database, counting: Counting
) -> None:
    days = ["2026-10-04", "2026-10-05", "2026-11-24"]
    count_batch(
        database, counting, "b1", PageView, [PageView(None, "a.com", "/", day) for day in days]
    )
    assert expire(database) == 1
    assert keys(database, documents.PageViews) == ["a.com 2026-10-05 /", "a.com 2026-11-24 /"]
    assert [row["views"] for row in reports.page_views(database, Page()).items] == [3]
    whole = reports.daily_page_views(database, Page())
    assert sum(row["views"] for row in whole.items) == 3
    assert expire(database) == 0


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (datetime(2026, 11, 19, tzinfo=UTC), ["2026-09", "2026-10"]),
        (datetime(2026, 11, 20, tzinfo=UTC), ["2026-10"]),
    ],
)
def test_visitors_are_dropped_once_their_month_is_old_and_its_report_stays(
    database: Database, counting: Counting, now: datetime, kept: list[str]
) -> None:
    months = ["2026-09", "2026-10"]
    events = [AdImpression(None, "a.com", "1", "u1", month) for month in months]
    count_batch(database, counting, "b1", AdImpression, events)
    before = reports.impressions(database, Page()).items
    expire(database, now)
    months_kept = {
        row["month"] for row in database[documents.ImpressionMonth].find({}) if sets_in(row)
    }
    assert sorted(months_kept) == kept
    assert [row["month"] for row in database[documents.User].find({})] == ["2026-10"]
    assert reports.impressions(database, Page()).items == before


@pytest.mark.parametrize("inline", [0, 10_000])
def test_the_users_of_a_day_are_dropped_once_it_is_old_and_those_of_its_month_stay(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch, inline: int
) -> None:
    monkeypatch.setattr(ad_months, "INLINE_BYTES", inline)

    def show(batch: str, day: int, user: str) -> None:
        moment = datetime(2026, 10, day, 12, tzinfo=UTC)
        time = int(moment.timestamp() * 1000)
        shown = AdImpression(None, "a.com", "1", user, "2026-10", time)
        count_batch(database, counting, batch, AdImpression, [shown])

    def reach(first: int, last: int) -> int | None:
        selection = Selection(first=date(2026, 10, first), last=date(2026, 10, last))
        report = ad_report(database, selection, ["ad"], Rules())
        assert bool(report.notes) == (report.totals["reach"] is None)
        return report.totals["reach"]  # type: ignore[no-any-return]

    for day in (3, 4, 5, 6):
        show(f"{day}", day, f"u{day}")
    assert [expire(database), expire(database)] == [4, 0]  # the cells of the month
    kept = {day for row in database[documents.ImpressionMonth].find({}) for day in sets_in(row)}
    assert kept == {WHOLE_MONTH, 5, 6}
    days_apart = {row["of"].split()[-1] for row in database[documents.UserSet].find({})}
    assert days_apart == ({"0", "5", "6"} if inline == 0 else set())
    assert [reach(5, 6), reach(1, 31), reach(1, 2), reach(4, 6)] == [2, 4, 0, None]
    show("late", 4, "new")
    assert [reach(5, 6), reach(1, 31), reach(4, 6)] == [2, 5, None]
    assert expire(database, NOW + timedelta(days=1)) == 4
    assert [reach(6, 6), reach(1, 31), reach(5, 6)] == [1, 5, None]


def test_a_click_history_is_dropped_once_its_last_hit_is_old_and_its_clicks_stay(
    database: Database,
    counting: Counting,
) -> None:
    hits = [hit("gone", "2026-10-01")] * 4 + [hit("back", "2026-09-01"), hit("back", "2026-11-01")]
    count_batch(database, counting, "b1", AdClick, hits)
    count_batch(database, counting, "b2", AdClick, [hit("back", "2026-09-02")])
    before = reports.clicks(database, Page()).items
    assert (before[0]["hits"], before[0]["clicks"]) == (7, 2)
    assert expire(database) == 1
    assert keys(database, documents.HitTally) == ['["back"]']
    assert reports.clicks(database, Page()).items == before


def test_all_old_rows_are_dropped_however_many_there_are(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 3)
    shown = [AdImpression(None, "a.com", "1", str(n), "2026-09") for n in range(7)]
    count_batch(database, counting, "b1", AdImpression, shown)
    count_batch(
        database,
        counting,
        "b2",
        PageView,
        [PageView(None, "a.com", f"/{n}", "2026-09-01") for n in range(7)],
    )
    count_batch(database, counting, "b3", AdClick, [hit(str(n), "2026-09-01") for n in range(7)])
    assert retention.expire(database, 50, NOW, seconds=0) == 0
    # Seven users and the four documents for their month.
    assert expire(database) == 7 + 4 + 7 + 7
    assert expire(database) == 0


def test_the_shortest_retention_keeps_every_row_that_a_late_event_may_need() -> None:
    # An event may be 35 days late and then spend 7 among the dead letters.
    assert read({"RETENTION_DAYS": "43"}).retention_days == 35 + 7 + 1


def test_hourly_counts_are_dropped_after_ninety_days_and_daily_ones_stay(
    database: Database, counting: Counting
) -> None:
    moments = [NOW - timedelta(days=days) for days in (100, 92, 90, 0)]
    views = [
        PageView(None, "a.com", "/", f"{moment:%Y-%m-%d}", int(moment.timestamp() * 1000))
        for moment in moments
    ]
    count_batch(database, counting, "b1", PageView, views)
    assert retention.expire_hours(database, NOW, seconds=20) == 2 * 2
    hours = {row["hour"][:10] for row in database[documents.HourCounts].find({})}
    assert hours == {f"{moment:%Y-%m-%d}" for moment in moments[2:]}
    assert sum(row["views"] for row in database[documents.DayTotals].find({"website": "*"})) == 4
    assert retention.expire_hours(database, NOW, seconds=20) == 0
