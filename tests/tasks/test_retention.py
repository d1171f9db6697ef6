from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import celeryconfig
from app.domain.events import PageView
from app.journal.redis_journal import RedisJournal
from app.outputs.archive import Archive, rewriting
from app.settings import Settings
from app.store import documents
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from celeryconfig import task_time_limit
from tasks import resources, retention
from tests.conftest import SetClock
from tests.support.counting import count_batch

VIEW = PageView(None, "a.com", "/", "2026-01-01")

WithSettings = Callable[..., None]


@pytest.fixture
def with_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> WithSettings:
    def change(**changes: Any) -> None:
        for module in (retention, resources):
            monkeypatch.setattr(module, "settings", lambda: replace(settings, **changes))
        resources.archive.cache_clear()

    return change


@pytest.fixture
def archive(settings: Settings) -> Archive:
    return Archive(settings.archive_url)


def test_old_rows_and_archived_days_are_dropped_if_there_is_a_limit(
    database: Database, with_settings: WithSettings, archive: Archive, settings: Settings
) -> None:
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, [VIEW])
    archive.write("page_view", {"b1": [VIEW]})
    folder = Path(settings.data_dir / "archive")
    (today,) = folder.iterdir()
    old = today.rename(folder / str(datetime.now(UTC).date() - timedelta(days=51)))
    with_settings(archive=True)
    assert retention.retain.apply().get() == 0
    with_settings(archive=True, retention_days=51)
    assert retention.retain.apply().get() == 1
    assert old.exists()
    with_settings(archive=True, retention_days=50)
    assert retention.retain.apply().get() == 0
    assert not old.exists()
    assert database[documents.PageViews].count_documents({}) == 0


def test_the_archive_is_tidied_unless_another_process_is_working_on_it(
    with_settings: WithSettings, archive: Archive, settings: Settings, journal: RedisJournal
) -> None:
    for batch in ("b1", "b2"):
        archive.write("page_view", {batch: [VIEW]})
    (hour,) = (settings.data_dir / "archive").glob("*/*")
    yesterday = hour.parent.with_name(str(datetime.now(UTC).date() - timedelta(days=1)))
    yesterday.mkdir()
    hour.rename(yesterday / hour.name)
    with_settings(archive=True)
    with rewriting(journal.redis):
        retention.tidy.apply().get()
        assert len(archive.files("page_view")) == 2
    with_settings(archive=False)
    retention.tidy.apply().get()
    assert len(archive.files("page_view")) == 2
    with_settings(archive=True)
    retention.tidy.apply().get()
    (joined,) = archive.files("page_view")
    assert list(archive.read(joined)) == ["b1", "b2"]


def test_beat_sends_both_and_neither_delays_its_queue_for_long() -> None:
    tasks = {entry["task"] for entry in celeryconfig.beat_schedule.values()}
    assert {retention.retain.name, retention.tidy.name} <= tasks
    assert max(retention.RETAIN_SECONDS, retention.TIDY_SECONDS) < task_time_limit / 10


def test_nothing_is_dropped_while_this_machines_clock_is_wrong(
    database: Database, with_settings: WithSettings, set_clock: SetClock
) -> None:
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, [VIEW])
    with_settings(retention_days=1)
    set_clock(timedelta(days=2))
    assert retention.retain.apply().get() == 0
    set_clock(timedelta())
    assert retention.retain.apply().get() == 1
