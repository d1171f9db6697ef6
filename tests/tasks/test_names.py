import pytest

import celeryconfig
from app.journal.redis_journal import RedisJournal
from app.redis.known_names import LOADED_KEY
from app.settings import Settings
from tasks import names
from tasks.names import load_names


def test_names_are_loaded_until_all_are_known(
    settings: Settings, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "settings", lambda: settings)
    names._loading.cache_clear()
    assert load_names.apply().get() is True
    assert journal.redis.exists(LOADED_KEY)
    names._loading.cache_clear()


def test_beat_sends_it_and_it_does_not_delay_other_tasks_for_long() -> None:
    entry = celeryconfig.beat_schedule["load-names"]
    assert entry["task"] == load_names.name
    assert entry["schedule"] / 2 > names.LOAD_SECONDS
