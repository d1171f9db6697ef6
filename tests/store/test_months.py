from datetime import datetime
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.domain.events import AdImpression
from app.errors import Unavailable
from app.store import months, reports
from app.store.counting import Counting
from app.store.database import Database, Session
from app.store.paging import Page
from tests.support.counting import count_batch

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


CLOSING = at("2026-12-01T01:00:00")


def count(database: Database, counting: Counting, *users: str, month: str = "2026-11") -> None:
    events = [AdImpression(None, "site1.com", "34", user, month) for user in users]
    count_batch(
        database, counting, f"batch {users} {month} {datetime.now(BERLIN)}", AdImpression, events
    )


def month_rows(database: Database, month: str = "2026-11") -> list[tuple[Any, ...]]:
    report = reports.impressions(database, Page(), month=month)
    return [tuple(row.values())[1:] for row in report.items]


def test_nothing_is_due_before_the_months_last_five_minutes(
    database: Database, counting: Counting
) -> None:
    count(database, counting, "u1")
    assert months.aggregate_due(database, at("2026-11-30T23:54:00")) == []


def test_a_provisional_report_is_made_on_the_last_day_and_closed_on_the_first(
    database: Database,
    counting: Counting,
) -> None:
    count(database, counting, "u1", "u1", "u2")
    assert months.aggregate_due(database, at("2026-11-30T23:55:00")) == ["2026-11"]
    assert month_rows(database) == [("*", 3, 2, False), ("site1.com", 3, 2, False)]
    assert months.aggregate_due(database, at("2026-12-01T00:55:00")) == []
    assert months.aggregate_due(database, at("2026-12-01T01:00:00")) == ["2026-11"]
    assert month_rows(database) == [("*", 3, 2, True), ("site1.com", 3, 2, True)]
    assert months.aggregate_due(database, at("2026-12-01T01:05:00")) == []


@pytest.mark.parametrize("provisional", [True, False])
def test_a_month_is_not_closed_before_one_oclock_even_if_it_is_aggregated_after_midnight(
    database: Database, counting: Counting, provisional: bool
) -> None:
    count(database, counting, "u1")
    if provisional:
        months.aggregate_due(database, at("2026-11-30T23:55:00"))
        count(database, counting, "u2")
    assert months.aggregate_due(database, at("2026-12-01T00:05:00")) == ["2026-11"]
    assert not any(closed for *_, closed in month_rows(database))
    count(database, counting, "u3")
    assert months.aggregate_due(database, at("2026-12-01T01:00:00")) == ["2026-11"]
    number = 2 + provisional
    assert month_rows(database) == [(name, number, number, True) for name in ("*", "site1.com")]


def test_an_event_for_a_closed_month_triggers_another_aggregation(
    database: Database, counting: Counting
) -> None:
    count(database, counting, "u1")
    months.aggregate_due(database, at("2026-12-01T01:00:00"))
    count(database, counting, "u2")
    assert month_rows(database) == [("*", 1, 1, True), ("site1.com", 1, 1, True)]
    assert months.aggregate_due(database, at("2026-12-09T13:05:00")) == ["2026-11"]
    assert month_rows(database) == [("*", 2, 2, True), ("site1.com", 2, 2, True)]


def test_months_missed_while_beat_was_down_are_aggregated_later(
    database: Database, counting: Counting
) -> None:
    count(database, counting, "u1", month="2026-09")
    count(database, counting, "u1", month="2026-11")
    count(database, counting, "u1", month="2026-12")
    assert months.aggregate_due(database, at("2026-12-15T10:00:00")) == ["2026-09", "2026-11"]
    assert month_rows(database, "2026-09") == [("*", 1, 1, True), ("site1.com", 1, 1, True)]
    assert month_rows(database, "2026-12") == [("*", 1, 1, False), ("site1.com", 1, 1, False)]


def test_a_provisional_month_left_behind_is_closed_even_if_nothing_changed(
    database: Database,
    counting: Counting,
) -> None:
    count(database, counting, "u1")
    months.aggregate_due(database, at("2026-11-30T23:55:00"))
    assert months.aggregate_due(database, at("2027-02-03T04:05:00")) == ["2026-11"]
    assert month_rows(database)[0] == ("*", 1, 1, True)


def test_aggregating_again_changes_nothing(database: Database, counting: Counting) -> None:
    count(database, counting, "u1", "u2")
    now = at("2026-12-01T01:00:00")
    assert months.aggregate(database, "2026-11", now) == 1
    before = month_rows(database)
    assert months.aggregate(database, "2026-11", now) == 1
    assert month_rows(database) == before


def test_a_month_without_impressions_has_no_rows(database: Database) -> None:
    assert months.aggregate(database, "2026-11", at("2026-12-01T01:00:00")) == 0
    assert months.aggregate_due(database, at("2026-12-01T01:00:00")) == []
    assert month_rows(database) == []


def test_an_open_month_aggregated_by_hand_stays_up_to_date(
    database: Database, counting: Counting
) -> None:
    count(database, counting, "u1")
    months.aggregate(database, "2026-11", at("2026-11-10T12:00:00"))
    count(database, counting, "u2")
    assert month_rows(database) == [("*", 2, 2, False), ("site1.com", 2, 2, False)]
    assert months.aggregate_due(database, at("2026-11-10T12:05:00")) == ["2026-11"]
    assert months.aggregate_due(database, at("2026-11-10T12:10:00")) == []
    assert month_rows(database) == [("*", 2, 2, False), ("site1.com", 2, 2, False)]


@pytest.fixture
def many(database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A month with enough websites to be aggregated in four portions."""
    websites = [f"s{n}.com" for n in range(10)]
    events = [AdImpression(None, website, "34", "u1", "2026-11") for website in websites]
    count_batch(database, counting, "many", AdImpression, events)
    monkeypatch.setattr(months, "PORTION", 3)
    return websites


def closed(rows: list[tuple[Any, ...]]) -> int:
    return sum(row[-1] for row in rows)


def test_a_month_with_many_websites_is_aggregated_in_portions_and_their_total_last(
    database: Database,
    many: list[str],
) -> None:
    seen = [closed(month_rows(database)) for _ in months.portions(database, "2026-11", CLOSING)]
    assert len(seen) == 4
    assert seen == sorted(set(seen)), "each run closes some more"
    assert [b - a for a, b in pairwise([0, *seen])] == [2, 3, 3, 2]
    assert month_rows(database) == [
        ("*", 10, 1, True),
        *((website, 1, 1, True) for website in many),
    ]
    assert months.due(database, CLOSING) == []


def test_an_aggregation_that_was_killed_is_still_due_and_resumes_where_it_stopped(
    database: Database, many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    portions = months.portions(database, "2026-11", CLOSING)
    assert sum(islice(portions, 2)) == 5
    portions.close()  # type: ignore[attr-defined]
    assert month_rows(database)[0] == ("*", 10, 1, False)
    assert closed(month_rows(database)) == 5
    assert months.due(database, CLOSING) == ["2026-11"]
    written: list[str] = []
    aggregate_websites = months._aggregate_websites

    def spy(ids: list[str], session: Session) -> None:
        written.extend(ids)
        aggregate_websites(ids, session)

    monkeypatch.setattr(months, "_aggregate_websites", spy)
    assert months.aggregate(database, "2026-11", CLOSING) == 10
    assert len(written) == 5
    assert closed(month_rows(database)) == 11
    assert months.due(database, CLOSING) == []


@pytest.mark.parametrize("website", ["s0.com", "s9.com", "new.com"])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_an_event_that_arrives_between_portions_triggers_another_aggregation(
    database: Database, counting: Counting, many: list[str], website: str, after: int
) -> None:
    portions = months.portions(database, "2026-11", CLOSING)
    list(islice(portions, after))
    late = [AdImpression(None, website, "34", "u2", "2026-11")]
    count_batch(database, counting, "late", AdImpression, late)
    list(portions)
    assert month_rows(database)[0] == ("*", 10, 1, True), (
        "as of the moment when the aggregation began"
    )
    assert months.due(database, CLOSING) == ["2026-11"]
    assert months.aggregate_due(database, CLOSING) == ["2026-11"]
    new = website not in many
    assert closed(month_rows(database)) == 11 + new
    assert month_rows(database)[0] == ("*", 11, 2, True)
    assert sum(impressions for _, impressions, _, _ in month_rows(database)) == 22
    assert (website, 1 + (not new), 1 + (not new), True) in month_rows(database)
    assert months.due(database, CLOSING) == []


def test_an_aggregation_that_began_earlier_does_not_undo_a_later_one(
    database: Database, counting: Counting, many: list[str]
) -> None:
    slow = months.portions(database, "2026-11", CLOSING)
    next(slow)
    provisional = months.portions(database, "2026-11", at("2026-11-30T23:55:00"))
    next(provisional)
    count(database, counting, "u2")
    months.aggregate(database, "2026-11", CLOSING)
    after = month_rows(database)
    assert after[0] == ("*", 11, 2, True)
    list(slow)
    list(provisional)
    assert month_rows(database) == after


def test_an_unavailable_database_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database("mongodb://127.0.0.1:1/nowhere")
    monkeypatch.setattr(months, "FIND_SECONDS", 0.2)
    with pytest.raises(Unavailable, match="database"):
        months.aggregate_due(database, at("2026-12-01T01:00:00"))
