import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from app.domain.events import Rejection
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from app.redis.dead_letters import Budget

BATCH = Batch("b1", "ad_click", b'[{"any":1}]')


def keep(journal: RedisJournal, *events: bytes) -> None:
    rejections = [Rejection(n, event, {"Type": ["bad"]}) for n, event in enumerate(events)]
    journal.write([], dead_letters.keeping(rejections))


def kept(journal: RedisJournal, limit: int = 100, before: str | None = None) -> list[Any]:
    letters = dead_letters.newest(journal.redis, limit, before)
    return [msgspec.json.decode(letter.event) for letter in letters]


def test_a_rejected_event_is_kept_unchanged_with_its_reason_and_time(
    journal: RedisJournal,
) -> None:
    keep(journal, b'{"Type": "Sale"}')
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert bytes(letter.event) == b'{"Type": "Sale"}'
    assert letter.reason == {"Type": ["bad"]}
    assert abs(letter.time - datetime.now(UTC)) < timedelta(seconds=10)
    assert dead_letters.get(journal.redis, letter.id) == letter


def test_a_failed_batch_is_kept_with_its_queue_and_id(journal: RedisJournal) -> None:
    journal.bury(BATCH, "it can't be counted")
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert (letter.queue, letter.batch_id, bytes(letter.batch)) == ("ad_click", "b1", BATCH.payload)
    assert dead_letters.get(journal.redis, letter.id) == letter
    dead_letters.remove(journal.redis, letter.id)
    assert dead_letters.newest(journal.redis, 10) == []


def test_letters_are_read_newest_first_in_pages(journal: RedisJournal) -> None:
    keep(journal, b"1", b"2", b"3")
    assert kept(journal) == [3, 2, 1]
    (newest, second) = dead_letters.newest(journal.redis, 2)
    assert kept(journal, 2, second.id) == [1]
    assert newest.id > second.id


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_events_and_batches_are_paged_together_even_if_they_have_the_same_id(
    journal: RedisJournal, limit: int
) -> None:
    of_event: dict[Any, Any] = {"reason": "{}", "event": "1"}
    of_batch: dict[Any, Any] = {"reason": "{}", "queue": "q", "id": "b", "batch": "[]"}
    for letter_id in ("5-0", "5-1", "7-0"):
        journal.redis.xadd("dead_letters:events", of_event, id=letter_id)
        journal.redis.xadd("dead_letters:batches", of_batch, id=letter_id)
    found: list[str] = []
    while letters := dead_letters.newest(journal.redis, limit, found[-1] if found else None):
        assert len(letters) <= limit
        found += [letter.id for letter in letters]
    assert found == ["7-0b", "7-0", "5-1b", "5-1", "5-0b", "5-0"]


def test_rejected_events_are_bounded_and_never_push_out_a_batch(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "EVENTS", Budget(2, 1024**2))
    journal.bury(BATCH, "it can't be counted")
    keep(journal, b"1", b"2", b"3")
    letters = dead_letters.newest(journal.redis, 10)
    assert [(bytes(letter.event), letter.batch_id) for letter in letters] == [
        (b"3", ""),
        (b"2", ""),
        (b"null", "b1"),
    ]


@pytest.mark.parametrize(
    "event",
    ['{"Url":"é' + "é" * dead_letters.MAX_EVENT_BYTES + '"}', '{"Url":"é'],
    ids=["large", "no JSON"],
)
def test_an_event_that_cannot_be_kept_unchanged_is_kept_as_text(
    journal: RedisJournal, event: str
) -> None:
    keep(journal, event.encode(), b"\xff")
    not_unicode, letter = dead_letters.newest(journal.redis, 10)
    assert letter.truncated
    assert msgspec.json.decode(letter.event).startswith('{"Url":"é')
    assert len(msgspec.json.decode(letter.event).encode()) <= dead_letters.MAX_EVENT_BYTES + 2
    assert msgspec.json.decode(not_unicode.event) == "\ufffd"


@pytest.mark.parametrize("character", ["a", "\x01", '"', "é", "\U0001f600", "\ud800"])
def test_the_size_limit_of_an_event_applies_to_its_stored_form(
    journal: RedisJournal, character: str
) -> None:
    for length in (1_000, 8_000, 20_000):
        keep(journal, b"{" + (character * length).encode(errors="surrogatepass"))
    entries: Any = journal.redis.xrange("dead_letters:events")
    sizes = [len(fields[b"event"]) for _, fields in entries]
    assert max(sizes) <= dead_letters.MAX_EVENT_BYTES
    # No more is cut off than necessary.
    assert sizes[-1] > dead_letters.MAX_EVENT_BYTES - 12
    assert all(letter.truncated for letter in dead_letters.newest(journal.redis, 10))
    assert all(str(event).startswith("{") for event in kept(journal))


def test_the_size_limit_of_a_reason_applies_to_its_stored_form(journal: RedisJournal) -> None:
    journal.write([], dead_letters.keeping([Rejection(0, b"1", {"Url": ["\x01" * 5_000]})]))
    journal.bury(BATCH, '"' * 5_000)
    for stream in ("dead_letters:events", "dead_letters:batches"):
        entries: Any = journal.redis.xrange(stream)
        assert len(entries[0][1][b"reason"]) <= dead_letters.MAX_REASON_BYTES
    of_batch, of_event = dead_letters.newest(journal.redis, 10)
    assert of_batch.reason.startswith('"""')
    assert of_event.reason.startswith('{"Url":')


@pytest.mark.parametrize("size", [10, 1_000, 8_000])
def test_rejected_events_take_bounded_memory_and_the_oldest_are_dropped(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(dead_letters, "EVENTS", Budget(100_000, 64 * 1024))
    letters = 200_000 // (size + 100)
    for start in range(0, letters, 100):
        keep(journal, *(b'"%0*d"' % (size, n) for n in range(start, min(start + 100, letters))))
        assert memory_of(journal, "events") <= 64 * 1024
    left = [int(event[-8:]) for event in kept(journal, 10_000)]
    assert left == list(range(letters - 1, letters - 1 - len(left), -1))
    assert len(left) * (size + 200) > 32 * 1024, "no fewer are kept than there is room for"
    counted = journal.redis.hget("metrics", "eventstream_dead_letters_dropped|events")
    assert counted == str(letters - len(left)).encode()


def test_removed_letters_make_room_for_new_ones(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "EVENTS", Budget(100_000, 64 * 1024))
    for _ in range(4):
        keep(journal, *[b'"%5000d"' % 1] * 7)
        for letter in dead_letters.newest(journal.redis, 100):
            assert dead_letters.remove(journal.redis, letter.id)
    keep(journal, *[b'"%5000d"' % 2] * 7)
    assert len(kept(journal)) == 7


def test_letters_of_an_earlier_release_count_towards_the_budget_at_once(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(50):
        journal.redis.xadd("dead_letters:events", {"reason": "{}", "event": "1" * 4_000})
    monkeypatch.setattr(dead_letters, "EVENTS", Budget(100_000, 64 * 1024))
    keep(journal, b"2")
    assert memory_of(journal, "events") <= 64 * 1024
    assert kept(journal)[0] == 2


def test_with_too_many_failed_batches_the_oldest_is_dropped_and_that_is_logged(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dead_letters, "BATCHES", Budget(1_000, 64 * 1024))
    with caplog.at_level(logging.ERROR):
        for n in range(5):
            journal.bury(Batch(f"b{n}", "ad_click", b'["%25000d"]' % n), "it can't be counted")
            assert memory_of(journal, "batches") <= 64 * 1024
    left = [letter.batch_id for letter in dead_letters.newest(journal.redis, 10)]
    assert left == ["b4", "b3"]
    assert len(caplog.records) == 3
    counted = journal.redis.hget("metrics", "eventstream_dead_letters_dropped|batches")
    assert counted == b"3"


def test_a_batch_can_be_buried_even_if_redis_is_full(journal: RedisJournal) -> None:
    journal.write([BATCH])
    journal.redis.config_set("maxmemory", 1)
    try:
        journal.bury(BATCH, "it can't be counted")
    finally:
        journal.redis.config_set("maxmemory", 0)
    assert not journal.holds(BATCH)
    assert len(dead_letters.newest(journal.redis, 10)) == 1


def test_all_letters_of_a_kind_are_dropped(journal: RedisJournal) -> None:
    keep(journal, b"1", b"2")
    journal.bury(BATCH, "it can't be counted")
    assert dead_letters.remove_all(journal.redis, ["events"]) == 2
    assert dead_letters.numbers(journal.redis) == {"events": 0, "batches": 1}
    assert dead_letters.remove_all(journal.redis) == 1
    assert dead_letters.newest(journal.redis, 10) == []


def memory_of(journal: RedisJournal, kind: str) -> int:
    return int(journal.redis.memory_usage(f"dead_letters:{kind}", samples=0) or 0)


def test_old_letters_expire(journal: RedisJournal) -> None:
    old = int((time.time() - dead_letters.KEPT_SECONDS - 60) * 1000)
    journal.redis.xadd("dead_letters:events", {"reason": "{}", "event": "1"}, id=f"{old}-0")
    keep(journal, b"2")
    dead_letters.expire(journal.redis)
    assert kept(journal) == [2]


@pytest.mark.parametrize("letter_id", ["", "0-0", "0-0b", "1-1", "x", "-", "+", "1-1 +"])
def test_an_unknown_id_finds_no_letter(journal: RedisJournal, letter_id: str) -> None:
    keep(journal, b"1")
    assert dead_letters.get(journal.redis, letter_id) is None
    assert not dead_letters.remove(journal.redis, letter_id)


def test_no_letters_are_older_than_the_lowest_id(journal: RedisJournal) -> None:
    keep(journal, b"1")
    assert kept(journal, before="0-0") == []
    assert kept(journal, before="0-0b") == []


def test_a_letter_records_invalid_traffic_and_refused_senders(
    journal: RedisJournal,
) -> None:
    rejections = [Rejection(0, b"1", {}, "robot"), Rejection(1, b"2", {}, refused=True)]
    journal.write([], dead_letters.keeping(rejections))
    found = dead_letters.newest(journal.redis, 10)
    assert [(letter.invalid, letter.refused) for letter in found] == [("", True), ("robot", False)]
