import signal
import time

import msgspec
import pytest

from app import dead_letters
from app import journal as module
from app.domain.events import AdClick, AdImpression, Event, PageView, Rejection
from app.errors import Unavailable
from app.journal import MAX_BATCH, Batch, Journal, OutcomeUnknown, batches, connect
from tests.conftest import Server

VIEW = PageView(None, "site1.com", "/a", "2026-11-24")
BATCH = Batch("b1", "page_view", b"[]")
OTHER = Batch("b2", "page_view", b"[]")


def keys(journal: Journal) -> set[bytes]:
    """All but whether a worker was told, which the next one to find nothing takes back."""
    found: list[bytes] = journal.redis.keys()  # type: ignore[assignment]
    return {name for name in found if not name.endswith(b":rung")}


def test_events_are_split_by_kind_in_order() -> None:
    impression = AdImpression("e", "site1.com", "1", "u", "2026-11")
    click = AdClick(None, "site1.com", "1", "u", 5)
    events: list[Event] = [VIEW, click, impression, VIEW]
    made = {batch.queue: batch.payload for batch in batches(events)}
    assert {
        queue: msgspec.json.decode(payload, type=list[kind])  # type: ignore[valid-type]
        for (queue, payload), kind in zip(
            made.items(), (PageView, AdClick, AdImpression), strict=True
        )
    } == {"page_view": [VIEW, VIEW], "ad_click": [click], "ad_impression": [impression]}


def test_a_batch_holds_no_more_than_its_bound() -> None:
    made = batches([VIEW] * (MAX_BATCH + 1))
    assert [len(msgspec.json.decode(batch.payload)) for batch in made] == [MAX_BATCH, 1]
    assert made[0].id != made[1].id


def test_a_batch_is_kept_until_it_is_removed(journal: Journal) -> None:
    journal.write([BATCH, OTHER])
    assert journal.holds(BATCH)
    assert journal.waiting() == {"page_view": 2, "ad_impression": 0, "ad_click": 0}
    journal.remove([BATCH])
    assert not journal.holds(BATCH)
    assert journal.waiting()["page_view"] == 1
    journal.remove([OTHER])
    assert keys(journal) == set()


def test_a_withdrawn_batch_is_taken_out_again(journal: Journal) -> None:
    journal.write([BATCH])
    journal.write([OTHER], withdrawn=[BATCH])
    assert not journal.holds(BATCH)
    assert journal.holds(OTHER)


def test_a_buried_batch_is_in_the_dead_letters_and_nowhere_else(journal: Journal) -> None:
    journal.write([BATCH])
    journal.bury(BATCH, "it does not decode")
    assert keys(journal) == {b"dead_letters:batches"}
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert (letter.batch_id, letter.queue, letter.reason) == (
        "b1",
        "page_view",
        "it does not decode",
    )


def test_what_is_written_outlives_a_kill_of_redis(journal: Journal, redis: Server) -> None:
    journal.write([BATCH], [Rejection(0, b"5", {"Type": ["bad"]})])
    redis.kill()
    redis.start()
    assert journal.holds(BATCH)
    assert len(dead_letters.newest(journal.redis, 10)) == 1


def test_a_full_redis_is_said_and_takes_nothing(journal: Journal) -> None:
    journal.write([BATCH])
    journal.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="OutOfMemory"):
            journal.write([OTHER])
    finally:
        journal.redis.config_set("maxmemory", 0)
    assert journal.waiting()["page_view"] == 1


def test_a_redis_that_is_away_is_said() -> None:
    away = Journal(connect("redis://127.0.0.1:1/0"))
    for call in (
        lambda: away.write([BATCH]),
        lambda: away.holds(BATCH),
        lambda: away.remove([BATCH]),
        away.waiting,
    ):
        with pytest.raises(Unavailable, match="broker") as caught:
            call()
        assert not isinstance(caught.value, OutcomeUnknown), "surely nothing was written"


def test_a_write_that_gets_no_answer_is_told_from_one_that_never_left(
    journal: Journal, redis: Server
) -> None:
    journal.add_counts({"any": 1})
    redis.signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            journal.write([BATCH])
        with pytest.raises(Unavailable) as caught:
            journal.write([OTHER])
        assert not isinstance(caught.value, OutcomeUnknown)
    finally:
        redis.signal(signal.SIGCONT)


def test_a_worker_takes_what_waits_in_order_and_nobody_else_does(journal: Journal) -> None:
    journal.write([BATCH])
    journal.write([OTHER, Batch("b3", "ad_click", b"[]")])
    assert journal.take("page_view") == [BATCH, OTHER]
    assert journal.take("page_view") == []
    assert journal.waiting()["page_view"] == 2


def test_what_is_taken_at_once_is_bounded(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.write([Batch(str(n), "page_view", b"[1,2,3]") for n in range(10)])
    monkeypatch.setattr(module, "TAKEN_AT_ONCE", 3)
    assert len(journal.take("page_view")) == 3
    monkeypatch.setattr(module, "TAKEN_BYTES", 8)
    assert len(journal.take("page_view")) == 2


def test_what_a_worker_gives_back_waits_again(journal: Journal) -> None:
    journal.write([BATCH])
    journal.give_back(journal.take("page_view"))
    assert journal.take("page_view") == [BATCH]


def test_what_a_worker_had_for_too_long_waits_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKEN_SECONDS", -1)
    journal.write([BATCH])
    assert journal.take("page_view") == [BATCH]
    assert journal.overdue("page_view", 60)
    assert journal.take("page_view") == [BATCH]
    journal.remove([BATCH])
    assert keys(journal) == set()


def test_a_worker_must_be_told_once_until_it_rests(journal: Journal) -> None:
    assert journal.write([BATCH])["page_view"] == (1, True)
    assert journal.write([OTHER])["page_view"] == (2, False)
    assert len(journal.take("page_view")) == 2
    assert journal.take("page_view", rests=False) == []
    assert journal.write([BATCH])["page_view"] == (1, False)
    journal.take("page_view")
    assert journal.take("page_view") == []
    assert journal.write([BATCH])["page_view"] == (1, True)


def test_only_who_writes_to_a_queue_can_be_asked_to_tell_its_worker(journal: Journal) -> None:
    journal.write([BATCH])
    journal.take("page_view")
    journal.take("page_view")
    journal.give_back([BATCH])
    assert journal.write([], [Rejection(0, b"5", {})])["page_view"] == (1, False)
    assert journal.write([OTHER])["page_view"] == (2, True)


def test_a_withdrawn_batch_is_not_given_to_a_worker(journal: Journal) -> None:
    journal.write([BATCH])
    journal.write([], withdrawn=[BATCH])
    assert journal.take("page_view") == []
    assert keys(journal) == set()


def test_a_full_redis_still_gives_and_takes_back_what_it_has(journal: Journal) -> None:
    journal.write([BATCH])
    journal.redis.config_set("maxmemory", 1)
    try:
        assert journal.take("page_view") == [BATCH]
        journal.remove([BATCH])
    finally:
        journal.redis.config_set("maxmemory", 0)
    assert keys(journal) == set()


def test_counts_are_added_by_each_write_even_where_redis_is_full(journal: Journal) -> None:
    journal.write([BATCH], counts={"seen|a": 2})
    journal.redis.config_set("maxmemory", 1)
    try:
        journal.give_back(journal.take("page_view"), {"seen|a": 1})
        journal.remove(journal.take("page_view"), {"seen|b": 5})
    finally:
        journal.redis.config_set("maxmemory", 0)
    assert journal.redis.hgetall("metrics") == {b"seen|a": b"3", b"seen|b": b"5"}
    assert keys(journal) == {b"metrics"}


def test_the_backlog_tells_who_waits_and_since_when(journal: Journal) -> None:
    journal.write([BATCH, OTHER, Batch("b3", "ad_click", b"[]")])
    journal.redis.zadd("journal:page_view:waiting", {"b2": time.time() - 61})
    journal.take("ad_click")
    backlog = journal.backlog()
    assert backlog["page_view"][:2] == (2, 0)
    assert 61 <= backlog["page_view"].oldest_seconds < 90
    assert backlog["ad_click"] == (0, 1, 0)
    assert backlog["ad_impression"] == (0, 0, 0)


def test_a_queue_is_overdue_once_a_batch_has_waited_long(journal: Journal) -> None:
    journal.write([BATCH])
    assert not journal.overdue("page_view", 60)
    journal.redis.zadd("journal:page_view:waiting", {"b1": time.time() - 61})
    assert journal.overdue("page_view", 60)
    assert not journal.overdue("ad_click", 60)
