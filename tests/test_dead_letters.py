import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app import dead_letters
from app.domain.events import Rejection
from app.journal import Journal


def keep(journal: Journal, *events: Any) -> None:
    rejections = [Rejection(n, event, {"Type": ["bad"]}) for n, event in enumerate(events)]
    journal.write([], rejections)


def kept(journal: Journal, limit: int = 100, before: str | None = None) -> list[Any]:
    return [letter.event for letter in dead_letters.newest(journal.redis, limit, before)]


def test_a_rejected_event_is_kept_with_its_reason_and_time(journal: Journal) -> None:
    keep(journal, {"Type": "Sale"})
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert letter.event == {"Type": "Sale"}
    assert letter.reason == {"Type": ["bad"]}
    assert abs(letter.time - datetime.now(UTC)) < timedelta(seconds=10)
    assert dead_letters.get(journal.redis, letter.id) == letter


def test_letters_are_read_newest_first_in_pages(journal: Journal) -> None:
    keep(journal, "a", "b", "c")
    assert kept(journal) == ["c", "b", "a"]
    (newest, second) = dead_letters.newest(journal.redis, 2)
    assert kept(journal, 2, second.id) == ["a"]
    assert newest.id > second.id


def test_the_number_of_letters_is_bounded(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_LETTERS", 2)
    keep(journal, "a", "b", "c")
    assert kept(journal) == ["c", "b"]


def test_a_large_event_is_kept_cut_short(journal: Journal) -> None:
    keep(journal, {"Url": "é" * dead_letters.MAX_EVENT_BYTES})
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert letter.truncated
    assert letter.event.startswith('{"Url":"éé')
    assert len(letter.event.encode()) <= dead_letters.MAX_EVENT_BYTES


def test_letters_age_out(journal: Journal) -> None:
    old = int((time.time() - dead_letters.KEPT_SECONDS - 60) * 1000)
    journal.redis.xadd("dead_letters", {"reason": '"old"', "event": '"old"'}, id=f"{old}-0")
    keep(journal, "new")
    dead_letters.expire(journal.redis)
    assert kept(journal) == ["new"]


def test_a_letter_without_a_timestamp_counts_from_when_it_came_in() -> None:
    time = datetime(2026, 11, 1, tzinfo=UTC)
    letter = dead_letters.DeadLetter("1-0", time, {}, {"Type": "PageView"})
    assert letter.event_as_of_receipt() == {"Type": "PageView", "Timestamp": time.isoformat()}
    stamped = dead_letters.DeadLetter("1-0", time, {}, {"Timestamp": 5})
    assert stamped.event_as_of_receipt() == {"Timestamp": 5}
    assert dead_letters.DeadLetter("1-0", time, {}, "text").event_as_of_receipt() == "text"
