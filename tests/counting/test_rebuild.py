import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.counting.rebuild import Plan, Rebuilt, rebuild
from app.domain.calendar import day_of
from app.domain.events import OTHER, Actual, AdClick, AdImpression, Event, PageView
from app.errors import InvalidRequest
from app.journal.redis_journal import RedisJournal
from app.outputs.archive import Archive, RewriteTurn, rewriting
from app.store import histories, offsets, reports
from app.store.counting import Applied, ClickRule, CountedPiece, Counting
from app.store.database import Database, Session
from app.store.documents import key
from app.store.ledger import Piece
from app.store.offsets import Progress
from app.store.outbox import Outbox
from app.store.paging import Page
from tests.support.counting import count_batch
from tests.support.servers import Server, url_in

NOW = datetime.now(UTC)
TODAY = NOW.date()
PLAN = Plan(
    ("page_view", "ad_impression", "ad_click"),
    None,
    None,
    UTC,
    ClickRule(3, "user"),
    hashed_monthly=False,
    retention_days=None,
)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(f"file://{tmp_path}/archive")


@pytest.fixture
def turn(journal: RedisJournal) -> Iterator[RewriteTurn]:
    with rewriting(journal.redis) as turn:
        yield turn


def view(day: str, at: datetime | None = None, event_id: str | None = None) -> PageView:
    return PageView(event_id, "a.com", "/", day, int(at.timestamp() * 1000) if at else None)


def views(database: Database) -> dict[str, int]:
    rows = reports.daily_page_views(database, Page()).items
    return {row["day"]: row["views"] for row in rows if row["views"]}


def test_a_batch_that_is_archived_twice_counts_once(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    for _ in range(2):
        archive.write("page_view", {"b1": [view("2026-11-24"), view("2026-11-24")]})
    archive.write("page_view", {"b2": [view("2026-11-24")]})
    assert rebuild(PLAN, archive, turn, database).events["page_view"] == 3
    assert views(database) == {"2026-11-24": 3}


def test_events_counted_as_other_stay_so_and_reports_can_be_filtered_by_other(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    day = str(TODAY)
    views: list[Event] = [
        PageView(None, "a.com", OTHER, day, actual=Actual("a.com", "/1")),
        PageView(None, OTHER, OTHER, day, actual=Actual("b.com", "/1")),
    ]
    click = AdClick(None, "a.com", OTHER, "u1", 0, actual=Actual("a.com", "34"))
    archive.write("page_view", {"b1": views})
    archive.write("ad_click", {"b2": [click]})
    assert archive.forget(["u1"], turn) == 1
    rebuild(PLAN, archive, turn, database)
    for website in ("a.com", OTHER):
        row = {"website": website, "page": OTHER, "views": 1}
        assert reports.page_views(database, Page(), website).items == [row]
        assert reports.page_views(database, Page(), website, TODAY, TODAY).items == [row]
    assert reports.clicks(database, Page(), "a.com", OTHER).items[0]["hits"] == 1


def test_an_event_id_that_was_counted_again_after_a_week_is_counted_twice(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    for batch in ("b1", "b2"):
        archive.write("page_view", {batch: [view("2026-11-24", event_id="e1")]})
    rebuild(PLAN, archive, turn, database)
    assert views(database) == {"2026-11-24": 2}


def test_workers_can_continue_with_the_new_database_and_count_nothing_again(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    archive.write("page_view", {"b1": [view("2026-11-24", event_id="e1")]})
    rebuild(PLAN, archive, turn, database)
    counting = Counting(database, ClickRule(3, "user"))
    assert count_batch(database, counting, "b1", PageView, [view("2026-11-24")]) is None
    assert count_batch(database, counting, "b2", PageView, [view("2026-11-24", event_id="e1")]) == 0


def test_days_and_months_are_those_of_todays_time_zone(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    late = datetime(2026, 10, 31, 23, 30, tzinfo=UTC)
    shown = AdImpression(None, "a.com", "1", "u1", "2026-10", int(late.timestamp() * 1000))
    archive.write("page_view", {"b1": [view("2026-10-31", late)]})
    archive.write("ad_impression", {"b2": [shown]})
    tokyo = replace(PLAN, timezone=ZoneInfo("Asia/Tokyo"))
    rebuild(tokyo, archive, turn, database)
    assert views(database) == {"2026-11-01": 1}
    assert {row["month"] for row in reports.impressions(database, Page()).items} == {"2026-11"}


def test_events_without_a_time_stay_on_their_day_and_are_reported(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    archive.write("page_view", {"b1": [view("2026-10-31")]})
    tokyo = replace(PLAN, timezone=ZoneInfo("Asia/Tokyo"))
    assert rebuild(tokyo, archive, turn, database).without_time == 1
    assert views(database) == {"2026-10-31": 1}


def test_only_events_of_the_requested_days_are_counted(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    days = [NOW + timedelta(days=n) for n in range(-1, 3)]
    events = [view(day_of(int(day.timestamp() * 1000), UTC), day) for day in days]
    archive.write("page_view", {"b1": events})
    plan = replace(PLAN, queues=["page_view"], first=TODAY, last=TODAY + timedelta(days=1))
    assert rebuild(plan, archive, turn, database) == Rebuilt({"page_view": 2})
    assert list(views(database)) == [str(TODAY), str(TODAY + timedelta(days=1))]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"first": TODAY - timedelta(days=1)}, "from"),
        ({"first": TODAY + timedelta(days=2), "last": TODAY + timedelta(days=1)}, "to"),
        ({"first": date(2126, 1, 2), "queues": ["ad_impression"]}, "from"),
        ({"last": date(2126, 1, 2), "queues": ["ad_impression"]}, "to"),
        ({"first": date(2126, 1, 1), "queues": ["ad_click"]}, "from"),
        ({"retention_days": 400, "queues": ["ad_click"]}, "only"),
    ],
)
def test_a_rebuild_that_cannot_be_exact_is_refused(
    database: Database, archive: Archive, turn: RewriteTurn, changes: dict[str, Any], named: str
) -> None:
    archive.write("page_view", {"b1": [view("2026-11-24")]})
    with pytest.raises(InvalidRequest) as caught:
        rebuild(replace(PLAN, **changes), archive, turn, database)
    assert list(caught.value.errors) == [named]


def test_a_rebuild_of_whole_months_or_of_clicks_up_to_a_day_can_be_exact(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    archive.write("ad_impression", {"b1": [AdImpression(None, "a.com", "1", "u", "2026-10")]})
    archive.write("ad_impression", {"b2": [AdImpression(None, "a.com", "1", "u", "2126-02")]})
    archive.write("ad_click", {"b3": [AdClick(None, "a.com", "1", "u", 5)]})
    until = replace(PLAN, last=date(2126, 1, 31))
    done = rebuild(until, archive, turn, database)
    assert done.events == {"ad_click": 1, "ad_impression": 1, "page_view": 0}


def test_monthly_ids_from_another_time_zone_are_refused(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    late = int(datetime(2026, 10, 31, 23, 30, tzinfo=UTC).timestamp() * 1000)
    archive.write(
        "ad_impression", {"b1": [AdImpression(None, "a.com", "1", "u1", "2026-10", late)]}
    )
    plan = replace(PLAN, timezone=ZoneInfo("Asia/Tokyo"), hashed_monthly=True)
    with pytest.raises(InvalidRequest, match="TIMEZONE"):
        rebuild(plan, archive, turn, database)


def test_an_empty_archive_is_refused(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    with pytest.raises(InvalidRequest, match="archive"):
        rebuild(PLAN, archive, turn, database)


def test_a_database_that_is_not_empty_stays_unchanged(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    count_batch(
        database, Counting(database, ClickRule(3, "user")), "b1", PageView, [view("2026-11-24")]
    )
    archive.write("page_view", {"b2": [view("2026-11-24")]})
    with pytest.raises(InvalidRequest, match="into"):
        rebuild(PLAN, archive, turn, database)
    assert views(database) == {"2026-11-24": 1}


def test_kafka_consumers_can_continue_with_the_new_database(
    database: Database, archive: Archive, turn: RewriteTurn, mongodb: Server
) -> None:
    before = Database(url_in(mongodb, f"before_{time.monotonic_ns()}"))
    progress = Progress(before, "events", "collector")
    progress.read([0, 1])
    outbox = Outbox(before, key("events", "collector"), keeps_counted=True)

    def also_write(session: Session, applied: Mapping[type[Event], Applied]) -> None:
        progress.move({0: 0}, {0: 7}, session)
        outbox.leave(applied, session)

    # As if a consumer had been killed before it archived these.
    counting = Counting(before, ClickRule(3, "user"), archives=True)
    counting.apply_pieces({PageView: [Piece("b2", [view("2026-11-24")])]}, also_write)
    archive.write("page_view", {"b1": [view("2026-11-24")]})
    rebuild(replace(PLAN, queues=["page_view"]), archive, turn, database, offsets.known(before))
    assert views(database) == {"2026-11-24": 2}
    progress = Progress(database, "events", "collector")
    assert progress.read([0, 1]) == {0: 7, 1: 0}
    outbox = Outbox(database, key("events", "collector"), keeps_counted=True)
    counted = CountedPiece("b2", "b2", {0: view("2026-11-24")})
    assert outbox.read(outbox.rows_left()) == [("b2", "page_view", counted, False)]


def test_a_partly_archived_batch_can_be_continued_with_the_new_database(
    database: Database, archive: Archive, turn: RewriteTurn
) -> None:
    views_of_batch = [view("2026-11-24") for _ in range(4)]
    archive.write("page_view", {"b1:0-2": views_of_batch[:2], "b1:3-4": views_of_batch[3:]})
    rebuild(replace(PLAN, queues=["page_view"]), archive, turn, database)
    assert (
        Counting(database, ClickRule(3, "user")).apply(PageView, {"b1": views_of_batch}).events == 1
    )


def test_events_too_many_for_one_transaction_are_rebuilt_in_parts_and_once(
    database: Database,
    archive: Archive,
    turn: RewriteTurn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(histories, "READ_BYTES", 100)
    time = 1_000 * int(datetime(2026, 11, 24, tzinfo=UTC).timestamp())
    hits = [AdClick(None, "site1.com", "34", f"u{n}", time + n) for n in range(9)]
    for name in ("b1", "b2", "b1"):
        archive.write("ad_click", {name: hits})
    rebuild(replace(PLAN, queues=["ad_click"]), archive, turn, database)
    assert [row["hits"] for row in reports.clicks(database, Page()).items] == [18]
    assert (
        Counting(database, ClickRule(3, "user")).apply(AdClick, {"b1": [*hits, *hits]}).events == 0
    )
