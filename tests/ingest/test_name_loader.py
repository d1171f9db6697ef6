from collections.abc import Iterator
from dataclasses import replace

import pytest

from app.domain.events import AdClick, AdImpression, Event, PageView
from app.errors import Unavailable
from app.ingest import name_loader
from app.ingest.name_loader import Loading, load_at_start
from app.journal.redis_journal import RedisJournal
from app.redis import known_names
from app.redis.known_names import KnownNames
from app.settings import Settings
from app.store import names
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from tests.support.counting import count_batch

EVENTS: list[Event] = [
    PageView(None, "a.com", "/1", "2026-11-24"),
    PageView(None, "a.com", "/2", "2026-11-24"),
    AdImpression(None, "b.com", "shown", "u", "2026-11"),
    AdClick(None, "c.com", "clicked", "u", 0),
]


@pytest.fixture(autouse=True)
def _counted(database: Database) -> None:
    """A database that already holds EVENTS, as in an upgrade."""
    counting = Counting(database, ClickRule(3, "user"))
    for kind in (PageView, AdImpression, AdClick):
        events = [event for event in EVENTS if isinstance(event, kind)]
        count_batch(database, counting, kind.__name__, kind, events)


@pytest.fixture
def known(settings: Settings, journal: RedisJournal) -> KnownNames:
    """Known names with budgets that allow no new name."""
    budgets = {"max_websites": 0, "max_pages": 0, "max_ads": 0}
    return KnownNames(journal.redis, replace(settings, **budgets))  # type: ignore[arg-type]


def test_counted_names_are_known(database: Database, known: KnownNames) -> None:
    assert Loading(database, known).go_on(10)
    new = PageView(None, "a.com", "/3", "2026-11-24")
    counted, other = known.within_budgets([*EVENTS, new], lambda: "a")
    assert counted[:-1] == EVENTS
    assert other == {"page": 1}
    assert known.within_budgets([PageView(None, "d.com", "/", "d")], lambda: "a")[1] == {
        "website": 1
    }


def test_loading_resumes_where_it_stopped_and_refuses_nothing_meanwhile(
    database: Database, known: KnownNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str, str]] = []
    every = names.names

    def noted(database: Database) -> Iterator[tuple[str, str, str]]:
        for name in every(database):
            read.append(name)
            yield name

    monkeypatch.setattr(names, "names", noted)
    monkeypatch.setattr(name_loader, "AT_ONCE", 1)
    loading = Loading(database, known)
    assert not loading.go_on(0.001)
    assert known.within_budgets([PageView(None, "d.com", "/", "d")], lambda: "a")[1] == {}
    while not loading.go_on(0.001):
        pass
    assert len(read) == len(set(read)) == len(EVENTS)


def test_loading_waits_for_an_unavailable_database(
    database: Database, known: KnownNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_loader, "READ_SECONDS", 0.1)
    loading = Loading(database, known)
    monkeypatch.setattr(loading, "_database", Database("mongodb://127.0.0.1:1/eventstream"))
    with pytest.raises(Unavailable):
        loading.go_on(10)
    assert not known.are_loaded()
    monkeypatch.undo()
    assert loading.go_on(10)
    assert known.within_budgets(EVENTS, lambda: "a") == (EVENTS, {})


def test_a_collector_loads_the_names_when_it_starts_even_if_there_are_none(
    known: KnownNames, settings: Settings, journal: RedisJournal
) -> None:
    load_at_start(settings)
    assert known.are_loaded()
    assert known.within_budgets(EVENTS, lambda: "a") == (EVENTS, {})
    journal.redis.flushall()
    load_at_start(replace(settings, mongodb_url=f"{settings.mongodb_url}_empty"))
    assert journal.redis.keys("*") == [known_names.LOADED_KEY.encode()]


def test_a_start_does_not_wait_for_unavailable_stores(
    settings: Settings, known: KnownNames
) -> None:
    load_at_start(replace(settings, mongodb_url="mongodb://127.0.0.1:1/eventstream"))
    load_at_start(replace(settings, redis_url="redis://127.0.0.1:1/0"))
    assert not known.are_loaded()
