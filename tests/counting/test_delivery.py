from pathlib import Path
from typing import Any

import pytest

from app.counting import delivery
from app.counting.delivery import Delivery
from app.errors import Unavailable
from app.journal.redis_journal import RedisJournal
from app.outputs.archive import Archive
from app.redis import dead_letters
from app.settings import Settings, read
from app.store.database import Database
from app.store.outbox import FROM_JOURNAL, Outbox, Undelivered
from tests.store.test_counting import view
from tests.store.test_outbox import left_by


@pytest.fixture
def config(settings: Settings, tmp_path: Path) -> Settings:
    return read(
        {
            "REDIS_URL": settings.redis_url,
            "MONGODB_URL": settings.mongodb_url,
            "ARCHIVE_URL": f"file://{tmp_path}/archive",
            "ARCHIVE": "1",
        }
    )


@pytest.fixture
def outbox(database: Database, config: Settings) -> Outbox:
    return Outbox(database, FROM_JOURNAL, keeps_counted=config.archive)


@pytest.fixture
def make(config: Settings, outbox: Outbox, journal: RedisJournal) -> Any:
    return lambda: Delivery(config, journal.redis, outbox)


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    """A file in place of the archive's folder: while it exists, the archive is unavailable."""
    file = tmp_path / "archive"
    file.touch()
    return file


def archived(config: Settings) -> list[dict[str, Any]]:
    archive = Archive(config.archive_url)
    return [archive.read(file) for file in archive.files("page_view")]


def test_counted_events_are_archived_and_collisions_become_dead_letters(
    database: Database, config: Settings, outbox: Outbox, make: Any, journal: RedisJournal
) -> None:
    mine = make()
    mine.add(left_by(database, outbox, "b1", view("/a", "1"), view("/b", "1")))
    mine.deliver()
    assert archived(config) == [{"b1": [view("/a", "1")]}]
    [letter] = dead_letters.newest(journal.redis, 10)
    assert letter.reason == {"EventId": [dead_letters.COLLISION_REASON]}
    assert outbox.rows_left() == []


def test_what_another_process_left_is_delivered_at_the_second_look(
    database: Database, config: Settings, outbox: Outbox, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "AT_ONCE", 2)
    for number in range(5):
        left_by(database, outbox, f"b{number}", view())
    next_one = make()
    next_one.deliver_left("ad_click")
    next_one.deliver_left("page_view")
    assert len(outbox.rows_left()) == 5
    next_one.deliver_left("page_view")
    assert outbox.rows_left() == []
    assert sorted(name for file in archived(config) for name in file) == [
        f"b{number}" for number in range(5)
    ]


def test_a_member_that_takes_over_delivers_at_once(
    database: Database, config: Settings, outbox: Outbox, make: Any
) -> None:
    left_by(database, outbox, "b1", view())
    make().deliver_all_left()
    assert [list(file) for file in archived(config)] == [["b1"]]


def test_without_the_archive_counting_continues_until_too_much_is_left(
    database: Database,
    config: Settings,
    outbox: Outbox,
    make: Any,
    in_the_way: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.0)
    mine = make()
    mine.add(left_by(database, outbox, "b1", view()))
    with pytest.raises(Unavailable):
        mine.deliver()
    mine.deliver()  # it keeps nothing itself: the events are in the outbox
    mine.deliver_left("page_view")
    mine.deliver_left("page_view")
    monkeypatch.setattr(delivery, "MAX_LEFT", 0)
    with pytest.raises(Unavailable):
        mine.deliver_left("page_view")
    in_the_way.unlink()
    mine.deliver_left("page_view")
    assert archived(config) == [{"b1": [view()]}]


def test_an_unavailable_archive_does_not_cause_events_to_be_mirrored_again(
    database: Database,
    config: Settings,
    outbox: Outbox,
    make: Any,
    in_the_way: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published: list[str] = []
    mine = make()
    monkeypatch.setattr(mine, "_publish", lambda new: published.extend(one.row for one in new))
    left: list[Undelivered] = left_by(database, outbox, "b1", view())
    for _ in range(2):
        mine.add(left)
        with pytest.raises(Unavailable):
            mine.deliver()
    in_the_way.unlink()
    mine.add(left)
    mine.deliver()
    assert published == ["b1"]
