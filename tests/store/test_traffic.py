import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import hour_of, local_hour
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.periods import PERIOD_OF
from app.errors import InvalidRequest
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from app.store.traffic import BY, COLUMNS, HOUR, traffic
from tests.support.counting import count_batch

FIRST = datetime(2026, 10, 20, tzinfo=UTC)
DAYS = 20
WEBSITES = ("a.com", "b.com", "c.com")


def random_events(rng: random.Random, zone: tzinfo) -> list[Event]:
    """Events over days on which the clocks change; each hit is by a different user."""
    events: list[Event] = []
    for number in range(120):
        moment = FIRST + timedelta(minutes=rng.randrange(DAYS * 24 * 60))
        time, local = int(moment.timestamp() * 1000), moment.astimezone(zone)
        website = rng.choice(WEBSITES)
        kinds: list[Event] = [
            PageView(None, website, "/", f"{local:%Y-%m-%d}", time),
            AdImpression(None, website, "1", "u", f"{local:%Y-%m}", time),
            AdClick(None, website, "1", f"u{number}", time),
        ]
        events.append(rng.choice(kinds))
    return events


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata"])
def test_traffic_is_what_was_counted_in_each_period(database: Database, zone: str) -> None:
    rng, timezone = random.Random(zone), ZoneInfo(zone)
    events = random_events(rng, timezone)
    counting = Counting(database, ClickRule(1, "user"), timezone)
    for kind in (PageView, AdImpression, AdClick):
        of_kind = [event for event in events if isinstance(event, kind)]
        for number in range(0, len(of_kind), 7):
            batch = of_kind[number : number + 7]
            count_batch(database, counting, f"{kind} {number}", kind, batch)
    for by in BY:
        for websites in (None, ["b.com"], ["a.com", "c.com"]):
            first = FIRST.date() + timedelta(days=rng.randrange(-3, DAYS))
            last = first + timedelta(days=rng.randrange(DAYS))
            counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
            for event in events:
                assert event.time is not None
                hour = local_hour(hour_of(event.time, timezone), timezone)
                day = date.fromisoformat(hour[:10])
                if first <= day <= last and (websites is None or event.website in websites):
                    of_period = counts[hour if by == HOUR else PERIOD_OF[by](day)]
                    of_period[(PageView, AdImpression, AdClick).index(type(event))] += 1
                    of_period[3] += isinstance(event, AdClick)
            report = traffic(
                database,
                Page(1_000),
                by,
                timezone,
                websites=websites,
                first=first,
                last=last,
            )
            assert report.columns == COLUMNS
            found = {row.pop("time"): list(row.values()) for row in report.items}
            assert {time: row for time, row in found.items() if any(row)} == counts
            assert len(found) == len(report.items)


def test_without_given_days_traffic_runs_from_the_first_to_the_last_count(
    database: Database, counting: Counting
) -> None:
    assert traffic(database, Page(), "day", UTC).items == []
    days = ["2026-11-24", "2026-11-22"]
    views = [PageView(None, "a.com", "/", day, 1795348800000) for day in days]
    count_batch(database, counting, "b", PageView, views)
    report = traffic(database, Page(), "day", UTC)
    assert [(row["time"], row["views"]) for row in report.items] == [
        ("2026-11-22", 1),
        ("2026-11-23", 0),
        ("2026-11-24", 1),
    ]


@pytest.mark.parametrize(("by", "days"), [("hour", 401), ("day", 40_001)])
def test_more_days_than_can_be_listed_are_refused(database: Database, by: str, days: int) -> None:
    last = date(2026, 11, 24)
    with pytest.raises(InvalidRequest, match="At most"):
        traffic(database, Page(), by, UTC, first=last - timedelta(days=days - 1), last=last)
