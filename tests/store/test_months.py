from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.domain.events import AdImpression
from app.errors import Unavailable
from app.store import connection, months, reports
from app.store.counting import Counting
from tests.conftest import count_batch

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


def count(counting: Counting, *users: str, month: str = "2026-11") -> None:
    events = [AdImpression(None, "site1.com", "34", user, month) for user in users]
    count_batch(counting, f"batch {users} {month} {datetime.now(BERLIN)}", AdImpression, events)


def month_rows(month: str = "2026-11") -> list[tuple[Any, ...]]:
    report = reports.impressions(reports.Page(), month=month)
    return [tuple(row.values())[1:] for row in report.items]


def test_nothing_is_due_before_the_months_last_five_minutes(counting: Counting) -> None:
    count(counting, "u1")
    assert months.aggregate_due(at("2026-11-30T23:54:00")) == []


def test_the_last_day_leads_to_a_provisional_report_and_the_first_closes_it(
    counting: Counting,
) -> None:
    count(counting, "u1", "u1", "u2")
    assert months.aggregate_due(at("2026-11-30T23:55:00")) == ["2026-11"]
    assert month_rows() == [("*", 3, 2, False), ("site1.com", 3, 2, False)]
    assert months.aggregate_due(at("2026-12-01T00:55:00")) == []
    assert months.aggregate_due(at("2026-12-01T01:00:00")) == ["2026-11"]
    assert month_rows() == [("*", 3, 2, True), ("site1.com", 3, 2, True)]
    assert months.aggregate_due(at("2026-12-01T01:05:00")) == []


def test_an_event_for_a_closed_month_has_it_aggregated_afresh(counting: Counting) -> None:
    count(counting, "u1")
    months.aggregate_due(at("2026-12-01T01:00:00"))
    count(counting, "u2")
    assert month_rows() == [("*", 1, 1, True), ("site1.com", 1, 1, True)]
    assert months.aggregate_due(at("2026-12-09T13:05:00")) == ["2026-11"]
    assert month_rows() == [("*", 2, 2, True), ("site1.com", 2, 2, True)]


def test_months_missed_while_beat_was_down_are_caught_up(counting: Counting) -> None:
    count(counting, "u1", month="2026-09")
    count(counting, "u1", month="2026-11")
    count(counting, "u1", month="2026-12")
    assert months.aggregate_due(at("2026-12-15T10:00:00")) == ["2026-09", "2026-11"]
    assert month_rows("2026-09") == [("*", 1, 1, True), ("site1.com", 1, 1, True)]
    assert month_rows("2026-12") == [("*", 1, 1, False), ("site1.com", 1, 1, False)]


def test_a_provisional_month_left_behind_is_closed_even_if_nothing_changed(
    counting: Counting,
) -> None:
    count(counting, "u1")
    months.aggregate_due(at("2026-11-30T23:55:00"))
    assert months.aggregate_due(at("2027-02-03T04:05:00")) == ["2026-11"]
    assert month_rows()[0] == ("*", 1, 1, True)


def test_aggregating_again_changes_nothing(counting: Counting) -> None:
    count(counting, "u1", "u2")
    now = at("2026-12-01T01:00:00")
    assert months.aggregate("2026-11", now) == 1
    before = month_rows()
    assert months.aggregate("2026-11", now) == 1
    assert month_rows() == before


def test_a_month_without_impressions_has_no_rows() -> None:
    assert months.aggregate("2026-11", at("2026-12-01T01:00:00")) == 0
    assert months.aggregate_due(at("2026-12-01T01:00:00")) == []
    assert month_rows() == []


def test_an_open_month_aggregated_by_hand_follows_what_is_counted(counting: Counting) -> None:
    count(counting, "u1")
    months.aggregate("2026-11", at("2026-11-10T12:00:00"))
    count(counting, "u2")
    months.aggregate_due(at("2026-11-10T12:05:00"))
    assert month_rows() == [("*", 2, 2, False), ("site1.com", 2, 2, False)]


def test_a_database_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.connect("mongodb://127.0.0.1:1/nowhere")
    monkeypatch.setattr(months, "AGGREGATE_SECONDS", 0.2)
    with pytest.raises(Unavailable, match="database"):
        months.aggregate_due(at("2026-12-01T01:00:00"))
