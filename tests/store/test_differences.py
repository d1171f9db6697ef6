from datetime import date, timedelta, timezone
from typing import Any

from msgspec.structs import replace

from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.invalid_traffic import Invalid
from app.store import folding, reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.documents import AdDifferences
from app.store.paging import Page
from tests.support.counting import count_batch

ROBOT = Invalid("robot", "2026-11-24")
NOON = 1_795_521_600_000
"""2026-11-24T12:00Z."""
IMPRESSION = AdImpression(None, "a.com", '1 "x', "u", "2026-11", NOON)
CLICK = AdClick(None, "a.com", '1 "x', "u", NOON)


def found(database: Database, **filters: object) -> dict[tuple[str, ...], int]:
    report = reports.differences(database, Page(), **filters)  # type: ignore[arg-type]
    return {tuple(row[name] for name in report.columns[:-1]): row["events"] for row in report.items}


def test_events_of_an_ad_that_are_filtered_late_or_collide_are_listed_by_its_days(
    database: Database, counting: Counting
) -> None:
    event: Any
    for number, event in enumerate((IMPRESSION, CLICK)):
        events: list[Event] = [
            event,
            replace(event, invalid=ROBOT),
            replace(event, invalid=ROBOT),
            replace(event, late=True),
            replace(event, late=True, invalid=ROBOT),
            replace(event, ad_id="2", late=True),
            replace(event, event_id="e1"),
            replace(event, event_id="e1"),
            replace(event, event_id="e1", ad_id="2"),
        ]
        events = [replace(each, website=f"{number}.com") for each in events]
        count_batch(database, counting, f"{number}", type(event), events)
    expected = {
        (f"{number}.com", ad_id, kind, reason): events
        for number, kind in enumerate(("AdImpression", "AdClick"))
        for ad_id, reason, events in (
            ('1 "x', "robot", 3),
            ('1 "x', "late", 1),
            ("2", "late", 1),
            ("2", "collision", 1),
        )
    }
    day = date(2026, 11, 24)
    assert found(database) == found(database, first=day, last=day) == expected
    assert found(database, first=day + timedelta(days=1)) == {}
    for website in ("0.com", "1.com"):
        of_ad = {
            names: events
            for names, events in expected.items()
            if names[0] == website and names[1] == "2"
        }
        assert found(database, website=website, ad_id="2") == of_ad


def test_days_are_those_of_the_time_zone(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user"), timezone(timedelta(hours=12)))
    count_batch(database, counting, "1", AdClick, [replace(CLICK, late=True)])
    assert [row["day"] for row in database[AdDifferences].find()] == ["2026-11-25"]


def test_ads_that_were_only_rendered_are_no_impressions_that_could_differ(
    database: Database, counting: Counting
) -> None:
    late = replace(IMPRESSION, late=True)
    events = [replace(late, viewable=viewable) for viewable in (False, True, None)]
    events += [replace(IMPRESSION, viewable=False, invalid=ROBOT)]
    count_batch(database, counting, "1", AdImpression, events)
    assert list(found(database).values()) == [2]


def test_page_views_have_no_ad_to_differ(database: Database, counting: Counting) -> None:
    view = PageView("e", "a.com", "/", "2026-11-24", NOON, ROBOT)
    count_batch(database, counting, "1", PageView, [view])
    counting.apply(PageView, {"2": [replace(view, page="/collides")]})
    assert found(database) == {}
    assert folding.unfolded_since(database) is None


def test_a_batch_in_which_every_event_collides_is_noted_too(
    database: Database, counting: Counting
) -> None:
    first, other = replace(CLICK, event_id="e"), replace(CLICK, event_id="e", ad_id="2")
    count_batch(database, counting, "1", AdClick, [first])
    applied = counting.apply(AdClick, {"2": [other]})
    assert (applied.events, applied.collided) == (0, 1)
    assert AdDifferences in applied.changes
    assert folding.fold(database, AdClick.__name__)
    assert found(database) == {("a.com", "2", "AdClick", "collision"): 1}
    counting.apply(AdClick, {"2": [other]})
    assert folding.fold(database, AdClick.__name__)
    assert found(database) == {("a.com", "2", "AdClick", "collision"): 1}


def test_an_impression_without_a_time_is_listed_under_its_month(
    database: Database, counting: Counting
) -> None:
    old = replace(IMPRESSION, event_id="e", time=None)
    count_batch(database, counting, "1", AdImpression, [old, replace(old, ad_id="2")])
    assert [row["day"] for row in database[AdDifferences].find()] == ["2026-11"]
