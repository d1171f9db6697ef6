from collections.abc import Collection
from datetime import date
from functools import partial

import pytest

from app.domain.periods import PERIOD_OF
from app.store.ad_months import ALL_ADS, NO_MONTH, WHOLE_MONTH, add_clicks, with_totals
from app.store.ad_selection import Bucket, Documents, Labels, Selection, buckets, months_of
from app.store.database import Database
from app.store.documents import ClickMonth

WEEKS: Labels = lambda day: (PERIOD_OF["week"](day),)  # noqa: E731
TOGETHER: Labels = lambda _: (None,)  # noqa: E731


def days(first: str | None = None, last: str | None = None) -> Selection:
    return Selection(
        first=date.fromisoformat(first) if first else None,
        last=date.fromisoformat(last) if last else None,
    )


def test_a_month_that_is_selected_as_a_whole_is_one_bucket() -> None:
    whole = Bucket(None, list(range(1, 31)), is_whole=True)
    assert buckets("2026-11", days(), TOGETHER) == [whole]
    assert buckets("2026-11", days("2026-10-05", "2026-11-30"), TOGETHER) == [whole]


def test_days_of_a_month_are_grouped_and_undated_counts_are_under_none() -> None:
    assert buckets("2026-11", days("2026-11-28", "2026-12-01"), WEEKS) == [
        Bucket("2026-W48", [28, 29], is_whole=False),
        Bucket("2026-W49", [30], is_whole=False),
        Bucket(None, (), is_whole=False),
    ]
    *weeks, undated = buckets("2026-11", days(), WEEKS)
    assert sum(len(week.days) for week in weeks) == 30
    assert undated == Bucket(None, (WHOLE_MONTH,), is_whole=False)


def test_counts_without_a_month_are_only_in_reports_without_days() -> None:
    assert buckets(NO_MONTH, days(), TOGETHER) == [Bucket(None, (), is_whole=True)]
    assert buckets(NO_MONTH, days(), WEEKS) == [Bucket(None, (WHOLE_MONTH,), is_whole=False)]


@pytest.fixture
def clicked(database: Database) -> Database:
    """A database with hits on ads and websites in three months, one of which is unknown."""
    for month in (NO_MONTH, "2026-09", "2026-11"):
        for website, ad_id in (("a.com", "1"), ("a.com", "2"), ("b.com", "1")):
            added = {cell: {5: [1, 0]} for cell in with_totals(website, ad_id, month)}
            database.transaction(partial(add_clicks, added))
    return database


def test_the_months_are_the_known_ones_that_are_selected(clicked: Database) -> None:
    with clicked.snapshot(5) as session:
        known = ["2026-09", "2026-10", "2026-11"]
        assert months_of(days(), session) == [NO_MONTH, *known]
        assert months_of(days("2026-01-01"), session) == known
        assert months_of(days("2026-10-31", "2026-11-01"), session) == known[1:]


@pytest.mark.parametrize(
    ("websites", "ads", "per_website", "per_ad", "found"),
    [
        (None, None, False, False, [("*", "")]),
        (None, None, True, False, [("a.com", ""), ("b.com", "")]),
        (None, None, False, True, [("*", "1"), ("*", "2")]),
        (None, None, True, True, [("a.com", "1"), ("a.com", "2"), ("b.com", "1")]),
        (None, ["1"], False, True, [("*", "1")]),
        (None, ["1"], True, True, [("a.com", "1"), ("b.com", "1")]),
        (["a.com"], None, False, False, [("a.com", "")]),
        (["a.com"], None, False, True, [("a.com", "1"), ("a.com", "2")]),
        (["a.com"], ["2", "3"], True, True, [("a.com", "2")]),
        ([], None, False, False, []),
        (None, [], False, True, []),
    ],
)
def test_the_fewest_documents_are_read_that_hold_each_event_once(
    clicked: Database,
    websites: Collection[str] | None,
    ads: Collection[str] | None,
    per_website: bool,
    per_ad: bool,
    found: list[tuple[str, str]],
) -> None:
    with clicked.snapshot(5) as session:
        rows = Documents(session).cells(
            ClickMonth, "2026-11", websites, ads, per_ad=per_ad, per_website=per_website
        )
        assert sorted((row["website"], row.get("ad_id", ALL_ADS)) for row in rows) == found
