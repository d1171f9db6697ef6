import pytest

from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.invalid_traffic import Invalid
from app.outputs.live_summary import counted
from app.redis.live import MAX_NAMES_AT_ONCE, MAX_ROWS
from app.store.counting import ClickRule, Counting
from app.store.database import Database

TIME = 1_795_500_000_000
MINUTE = TIME // 60_000
VIEWS = [PageView(None, "site1.com", "/a", day, TIME) for day in ("2026-11-23", "2026-11-24")]
IMPRESSIONS = [
    AdImpression(None, "site1.com", "34", "u1", "2026-11", TIME, viewable=viewable)
    for viewable in (True, None, False)
]
CLICKS = [AdClick(None, "site1.com", "34", "u1", TIME + 20_000 * number) for number in range(4)]


@pytest.mark.parametrize(
    ("events", "number", "by_minute", "rows"),
    [
        (
            VIEWS,
            2,
            {("site1.com", "/a", MINUTE): 2},
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
            2,
            {("site1.com", "34", MINUTE): 2},
            {
                "months": [
                    {"month": "2026-11", "website": website, "impressions": 2, "visitors": 0}
                    for website in ("site1.com", "*")
                ]
            },
        ),
        (
            CLICKS,
            4,
            {("site1.com", "34", MINUTE): 3, ("site1.com", "34", MINUTE + 1): 1},
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
    database: Database,
    events: list[Event],
    number: int,
    by_minute: dict[tuple[str, str, int], int],
    rows: dict[str, object],
) -> None:
    applied = Counting(database, ClickRule(3, "user")).apply(type(events[0]), {"b1": events})
    summary = counted(applied)
    assert summary.events == {"*": number, "site1.com": number}
    assert summary.by_minute == by_minute
    assert summary.counts.shown() == rows


def test_viewers_get_nothing_that_was_counted_before(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    counting.apply(PageView, {"b1": VIEWS})
    again = counted(counting.apply(PageView, {"b1": VIEWS}))
    assert not again.counts
    assert not again.by_minute


def test_viewers_get_only_the_largest_of_many_rows_but_the_sum_of_all(database: Database) -> None:
    views = [
        PageView(None, "site1.com", f"/{page}", "2026-11-24")
        for page in range(MAX_NAMES_AT_ONCE * 2)
        for _ in range(1 + page % 2)
    ]
    summary = counted(Counting(database, ClickRule(3, "user")).apply(PageView, {"b1": views}))
    assert summary.events["*"] == summary.events["site1.com"] == len(views)
    pages = summary.counts.shown()["pages"]
    assert len(pages) == MAX_ROWS
    assert {row["views"] for row in pages} == {2}


def test_hits_that_only_repeat_others_are_in_no_minute(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user", window=30))
    summary = counted(counting.apply(AdClick, {"b1": CLICKS}))
    found = {place: number for place, number in summary.by_minute.items() if number}
    assert found == {("site1.com", "34", MINUTE): 2}


def test_what_counts_separately_is_in_no_minute(database: Database) -> None:
    robot = Invalid("robot", "2026-11-24")
    view = PageView(None, "site1.com", "/a", "2026-11-24", TIME, invalid=robot)
    summary = counted(Counting(database, ClickRule(3, "user")).apply(PageView, {"b1": [view]}))
    assert not summary.by_minute
