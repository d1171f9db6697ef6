import pytest

from app.domain.events import AdClick, AdImpression, Event, PageView
from app.outputs.live_summary import counted
from app.redis.live import MAX_NAMES_AT_ONCE
from app.store.counting import ClickRule, Counting
from app.store.database import Database

VIEWS = [PageView(None, "site1.com", "/a", day) for day in ("2026-11-23", "2026-11-24")]
IMPRESSIONS = [AdImpression(None, "site1.com", "34", "u1", "2026-11") for _ in range(2)]
CLICKS = [AdClick(None, "site1.com", "34", "u1", number) for number in range(4)]


@pytest.mark.parametrize(
    ("events", "names", "rows"),
    [
        (
            VIEWS,
            {"*": 2, "site1.com": 2, "site1.com /a": 2},
            {
                "views": [
                    {"website": website, "day": day, "views": 1}
                    for website in ("site1.com", "*")
                    for day in ("2026-11-23", "2026-11-24")
                ],
                "pages": [
                    {"website": "site1.com", "page": "/a", "day": day, "views": 1}
                    for day in ("2026-11-23", "2026-11-24")
                ],
            },
        ),
        (
            IMPRESSIONS,
            {"*": 2, "site1.com": 2, "site1.com 34": 2},
            {
                "months": [
                    {"month": "2026-11", "website": website, "impressions": 2, "visitors": 0}
                    for website in ("site1.com", "*")
                ]
            },
        ),
        (
            CLICKS,
            {"*": 4, "site1.com": 4, "site1.com 34": 4},
            {
                "clicks": [
                    {"website": website, "hits": 4, "clicks": 1} for website in ("site1.com", "*")
                ],
                "ads": [{"website": "site1.com", "ad_id": "34", "hits": 4, "clicks": 1}],
            },
        ),
    ],
)
def test_viewers_get_what_the_reports_will_hold(
    database: Database, events: list[Event], names: dict[str, int], rows: dict[str, object]
) -> None:
    applied = Counting(database, ClickRule(3, "user")).apply(type(events[0]), {"b1": events})
    summary = counted(applied.changes)
    assert summary.events == names
    assert summary.counts.shown() == rows


def test_viewers_get_nothing_that_was_counted_before(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    counting.apply(PageView, {"b1": VIEWS})
    assert not counted(counting.apply(PageView, {"b1": VIEWS}).changes).counts


def test_viewers_get_only_the_largest_of_many_rows_but_the_sum_of_all(database: Database) -> None:
    views = [
        PageView(None, "site1.com", f"/{page}", "2026-11-24")
        for page in range(MAX_NAMES_AT_ONCE * 2)
        for _ in range(1 + page % 2)
    ]
    summary = counted(
        Counting(database, ClickRule(3, "user")).apply(PageView, {"b1": views}).changes
    )
    assert summary.events["*"] == summary.events["site1.com"] == len(views)
    pages = {name: number for name, number in summary.events.items() if " " in name}
    assert len(pages) == MAX_NAMES_AT_ONCE
    assert set(pages.values()) == {2}
