from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.schedules import crontab

import celeryconfig
from app.domain.events import AdImpression
from app.errors import Unavailable
from app.journal.redis_journal import RedisJournal
from app.settings import Settings
from app.store import months, reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from tasks import month_end as module
from tasks.month_end import month_end
from tests.conftest import SetClock
from tests.support.counting import count_batch


def rows(database: Database) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in reports.impressions(database, Page()).items]


def test_the_task_aggregates_what_is_due_at_the_time_it_is_given(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    count_batch(
        database, counting, "b1", AdImpression, [AdImpression(None, "a.com", "1", "u1", "2026-10")]
    )
    assert month_end(now="2026-10-31T23:54:00+00:00") == []
    assert month_end(now="2026-10-31T23:55:00+00:00") == ["2026-10"]
    assert rows(database) == [("2026-10", "*", 1, 1, False), ("2026-10", "a.com", 1, 1, False)]
    assert month_end(now="2026-11-01T01:00:00+00:00") == ["2026-10"]
    assert rows(database) == [("2026-10", "*", 1, 1, True), ("2026-10", "a.com", 1, 1, True)]
    assert month_end() == []


def test_a_task_that_takes_too_long_sends_another_for_the_rest(
    database: Database, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    events = [AdImpression(None, f"s{n}.com", "1", "u1", "2026-10") for n in range(5)]
    count_batch(database, counting, "b1", AdImpression, events)
    monkeypatch.setattr(months, "PORTION", 2)
    monkeypatch.setattr(module, "MONTH_END_SECONDS", 0)
    closed = []
    for sent in (1, 2, 3):
        assert month_end(now="2026-11-01T01:00:00+00:00") == []
        assert journal.redis.llen("maintenance") == sent
        closed.append(sum(row[-1] for row in rows(database)))
    assert month_end(now="2026-11-01T01:00:00+00:00") == ["2026-10"]
    assert journal.redis.llen("maintenance") == 3
    assert closed == sorted(set(closed))
    assert sum(row[-1] for row in rows(database)) == 6


def test_an_aggregation_that_failed_is_started_again(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    count_batch(
        database, counting, "b1", AdImpression, [AdImpression(None, "a.com", "1", "u1", "2026-10")]
    )
    monkeypatch.setattr(module, "MONTH_END_SECONDS", 0)
    assert month_end(now="2026-11-01T01:00:00+00:00") == []
    with monkeypatch.context() as broken:
        broken.setattr(Database, "transaction", raise_unavailable)
        with pytest.raises(Unavailable):
            month_end(now="2026-11-01T01:00:00+00:00")
    assert month_end(now="2026-11-01T01:00:00+00:00") == []
    assert month_end(now="2026-11-01T01:00:00+00:00") == ["2026-10"]
    assert rows(database) == [("2026-10", "*", 1, 1, True), ("2026-10", "a.com", 1, 1, True)]


def raise_unavailable(*_: Any) -> None:
    raise Unavailable("database", "away")


@pytest.mark.parametrize("moment", ["2026-10-31T23:55:00", "2026-11-01T01:00:00"])
def test_beat_sends_it_at_the_end_of_the_month_among_other_times(moment: str) -> None:
    schedule: Any = celeryconfig.beat_schedule["month-end"]["schedule"]
    assert isinstance(schedule, crontab)
    time = datetime.fromisoformat(moment)
    assert time.minute in schedule.minute
    assert time.hour in schedule.hour
    assert time.day in schedule.day_of_month


def test_no_month_is_closed_while_this_machines_clock_is_ahead(
    database: Database,
    set_clock: SetClock,
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    month = str(datetime.now(UTC))[:7]
    count_batch(
        database, counting, "b1", AdImpression, [AdImpression(None, "a.com", "1", "u1", month)]
    )
    set_clock(timedelta(days=32))
    assert month_end() == []
    assert not any(row[-1] for row in rows(database))
