from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.events import ALL_WEBSITES, OTHER, AdClick, AdImpression, Event, PageView
from app.store import drops
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.documents import HourCounts
from app.store.drops import Drop, find
from tests.support.counting import count_batch
from tests.support.hours import put_hour

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = "2026-11-25T12:00"
TIME = datetime(2026, 11, 25, 12, tzinfo=UTC)
_batches = count()


def had(
    database: Database,
    website: str,
    numbers: Iterable[int | None],
    kind: type[Event] = PageView,
    time: datetime = TIME,
    timezone: tzinfo = UTC,
) -> None:
    """Count events in the hour that begins at `time`, and in the same hour of each week before."""
    local = time.astimezone(timezone)
    events: list[Event] = []
    for week, number in enumerate(numbers):
        at = int((local - timedelta(weeks=week)).timestamp() * 1000)
        for n in range(number or 0):
            made: dict[type[Event], Event] = {
                PageView: PageView(None, website, "/", "2026-11-25", at + n),
                AdImpression: AdImpression(None, website, "1", "u", "2026-11", at + n),
                AdClick: AdClick(None, website, "1", f"u{n}", at + n),
            }
            events.append(made[kind])
    counting = Counting(database, ClickRule(3, "user"), timezone)
    count_batch(database, counting, str(next(_batches)), kind, events)


@pytest.mark.parametrize("kind", [PageView, AdImpression, AdClick])
def test_an_hour_with_less_than_a_third_of_the_mean_is_a_drop(
    database: Database, kind: type[Event]
) -> None:
    had(database, "a.com", [33, 100, 100, 100, 100], kind)
    had(database, "b.com", [34, 100, 100, 100, 102], kind)
    had(database, "c.com", [0, 99, 99, 99, 102], kind)
    had(database, "d.com", [50, 140, 160, 150, 150], kind)
    assert find(database, HOUR, UTC) == [Drop("a.com", kind.__name__, 33, 100.0)]


def test_a_website_without_any_event_in_the_hour_drops_too(database: Database) -> None:
    had(database, "a.com", [0, 130, 120, 110, 100])
    assert find(database, HOUR, UTC) == [Drop("a.com", "PageView", 0, 115.0)]


def test_each_kind_of_event_is_compared_on_its_own(database: Database) -> None:
    had(database, "a.com", [100, 100, 100, 100, 100])
    had(database, "a.com", [10, 100, 100, 100, 100], AdImpression)
    assert [drop.kind for drop in find(database, HOUR, UTC)] == ["AdImpression"]


def test_hours_before_the_website_was_first_seen_are_not_known(database: Database) -> None:
    had(database, "a.com", [0, 200, 100])
    had(database, "new.com", [0, 500])
    assert find(database, HOUR, UTC) == [Drop("a.com", "PageView", 0, 150.0)]


def test_an_empty_hour_is_known_if_the_website_was_seen_before_or_in_it(
    database: Database,
) -> None:
    for website in ("a.com", "b.com", "c.com"):
        had(database, website, [0, 250, 0, 150 if website == "b.com" else 0])
    had(database, "a.com", [1], AdClick, TIME - timedelta(weeks=2))  # by any kind of event
    had(database, "b.com", [1], PageView, TIME - timedelta(weeks=4, hours=1))
    had(database, "c.com", [1], PageView, TIME - timedelta(weeks=2) + timedelta(hours=1))
    assert find(database, HOUR, UTC) == [
        Drop("a.com", "PageView", 0, 125.0),
        Drop("b.com", "PageView", 0, 100.0),
    ]


def test_the_largest_drops_come_first(database: Database) -> None:
    for number in range(1, 6):
        had(database, f"{number}.com", [30, *[100 + 10 * number] * 2])
    assert [drop.website for drop in find(database, HOUR, UTC)] == [
        f"{number}.com" for number in range(5, 0, -1)
    ]


def test_only_websites_drop_not_their_sum_nor_names_beyond_the_budget(database: Database) -> None:
    for website in (ALL_WEBSITES, OTHER, "a.com"):
        for days in (7, 14):
            put_hour(database, website, TIME - timedelta(days=days), 1_000)
    assert [drop.website for drop in find(database, HOUR, UTC)] == ["a.com"]


@pytest.mark.parametrize(
    ("time", "timezone"),
    [
        (datetime(2026, 10, 28, 11, tzinfo=UTC), BERLIN),
        (datetime(2026, 4, 1, 10, tzinfo=UTC), BERLIN),
        (datetime(2026, 11, 25, 6, 30, tzinfo=UTC), ZoneInfo("Asia/Kolkata")),
    ],
)
def test_the_same_hour_is_that_of_the_clocks(
    database: Database, time: datetime, timezone: tzinfo
) -> None:
    had(database, "a.com", [10, 100, 100, 100, 100], time=time, timezone=timezone)
    assert find(database, f"{time:%Y-%m-%dT%H:%M}", timezone) == [
        Drop("a.com", "PageView", 10, 100.0)
    ]


def test_an_hour_that_the_clocks_skipped_is_not_known(database: Database) -> None:
    # On 29 March 2026 there is no hour from 2 to 3 in Berlin.
    time = datetime(2026, 4, 5, 2, tzinfo=BERLIN).astimezone(UTC)
    for week in (0, 2, 3, 4):
        at = datetime(2026, 4, 5, 2, tzinfo=BERLIN) - timedelta(weeks=week)
        had(database, "a.com", [100 if week else 20], time=at.astimezone(UTC), timezone=BERLIN)
    hour = f"{time:%Y-%m-%dT%H:%M}"
    assert find(database, hour, BERLIN) == [Drop("a.com", "PageView", 20, 100.0)]


def test_few_websites_are_looked_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "MAX_LOOKED_UP", 1)
    for number in range(3):
        had(database, f"{number}.com", [0, 100, 100 + number])
    had(database, "known.com", [0, 100, 100, 100, 100])
    assert {drop.website for drop in find(database, HOUR, UTC)} == {"2.com", "known.com"}


def test_more_rows_than_can_be_read_have_no_drop(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    had(database, "a.com", [1, 100, 100])
    monkeypatch.setattr(drops, "MAX_ROWS", 3)
    assert len(find(database, HOUR, UTC)) == 1
    monkeypatch.setattr(drops, "MAX_ROWS", 2)
    assert find(database, HOUR, UTC) == []
    assert "too many websites" in caplog.text


@given(
    st.integers(0, 200),
    st.lists(st.integers(0, 400), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_drops_are_those_of_a_plain_model(
    database: Database, now: int, weeks: list[int], seen_weeks_ago: int
) -> None:
    website = "a.com"
    database[HourCounts].delete_many({})
    for week, events in enumerate([now, *weeks]):
        if events:
            put_hour(database, website, TIME - timedelta(weeks=week), events)
    put_hour(database, website, TIME - timedelta(weeks=seen_weeks_ago, hours=3), 1)
    known = weeks[: max([seen_weeks_ago, *(n for n in range(1, 5) if weeks[n - 1])])]
    mean = sum(known) / len(known) if known else 0
    is_drop = len(known) >= 2 and mean >= 100 and now < mean / 3
    expected = [Drop(website, "PageView", now, mean)] if is_drop else []
    assert find(database, HOUR, UTC) == expected
