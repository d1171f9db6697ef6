from datetime import UTC, datetime, timedelta

import celeryconfig
from app.domain.events import PageView
from app.store import clock, documents
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from tasks.sweep import expire
from tests.conftest import SetClock
from tests.support.counting import count_batch

VIEW = PageView("e1", "a.com", "/", "2026-11-24")


def test_a_clock_days_ahead_drops_no_claims_so_no_event_is_counted_twice(
    database: Database,
    set_clock: SetClock,
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    count_batch(database, counting, "b1", PageView, [VIEW])
    set_clock(timedelta(days=30))
    assert expire.apply().get() == 0
    count_batch(database, counting, "b2", PageView, [VIEW])
    assert database[documents.Claim].count_documents({}) == 1
    database[documents.Expiry].update_many(
        {}, {"$set": {"at": datetime.now(UTC) - timedelta(seconds=1)}}
    )
    set_clock(timedelta())
    assert expire.apply().get() == 3


def test_a_worker_whose_clock_is_a_minute_ahead_drops_no_task_from_beat() -> None:
    for entry in celeryconfig.beat_schedule.values():
        expires = entry.get("options", {}).get("expires")
        assert expires is None or expires > clock.TOLERATED.total_seconds() + 20
