import gc
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from kombu.exceptions import OperationalError

from app.domain.events import AdClick, PageView, Rejection
from app.errors import Unavailable
from app.ingest import publisher as module
from app.ingest.publisher import PUBLISH_SECONDS, Publisher, bell
from app.journal import redis_writer, shares
from app.journal.batches import Batch
from app.journal.journal import NOTHING, OutcomeUnknown, QueueState
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from app.redis.commands import Command
from tests.support.servers import Server
from tests.support.waiting import wait_until

VIEW = PageView(None, "site1.com", "/a", "2026-11-24")
OTHER_VIEW = PageView(None, "site2.com", "/b", "2026-11-24")
CLICK = AdClick(None, "site1.com", "1", "u", 5)
SIZE = len(msgspec.json.encode(VIEW))


class HeldJournal(RedisJournal):
    """A journal whose writes wait until they are released."""

    def __init__(self, journal: RedisJournal) -> None:
        super().__init__(journal.redis)
        self.go = threading.Event()
        self.writing = threading.Semaphore(0)
        self.writes: list[list[Batch]] = []

    def write(
        self,
        new: Sequence[Batch],
        letters: Sequence[Command] = (),
        withdrawn: Sequence[Batch] = (),
        counts: Mapping[str, int] = NOTHING,
    ) -> dict[str, QueueState]:
        self.writes.append(list(new))
        self.writing.release()
        assert self.go.wait(10)
        return super().write(new, letters, withdrawn, counts)


@pytest.fixture
def held(journal: RedisJournal) -> Iterator[HeldJournal]:
    held = HeldJournal(journal)
    yield held
    held.go.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_events_are_in_the_journal_before_publish_returns_and_then_the_bell_rings(
    journal: RedisJournal,
) -> None:
    rung: list[Batch] = []
    Publisher(journal, rung.append).publish([VIEW, VIEW])
    assert journal.waiting()["page_view"] == 1
    wait_until(lambda: rung)
    payload = journal.redis.hget("journal:page_view", rung[0].id)
    assert payload is not None
    assert msgspec.json.decode(payload, type=list[PageView]) == [VIEW, VIEW]


def test_requests_that_wait_together_share_one_write(
    held: HeldJournal, threads: ThreadPoolExecutor
) -> None:
    rung: list[Batch] = []
    publisher = Publisher(held, rung.append)
    first = threads.submit(publisher.publish, [VIEW])
    assert held.writing.acquire(timeout=10)
    others = [threads.submit(publisher.publish, [VIEW, VIEW]) for _ in range(10)]
    wait_until(lambda: len(publisher._gathered) == 10)
    held.go.set()
    for future in (first, *others):
        future.result()
    assert len(held.writes) == 2
    assert [len(msgspec.json.decode(batch.payload)) for batch in held.take("page_view")] == [1, 20]


def test_the_bell_rings_for_an_idle_worker_and_once_per_number_of_waiting_batches(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RING_EVERY", 3)
    rung: list[Batch] = []
    publisher = Publisher(journal, rung.append)
    for _ in range(7):
        publisher.publish([VIEW])
    publisher.publish([CLICK])
    wait_until(lambda: len(rung) == 4)
    waiting = journal.take("page_view")
    assert rung == [waiting[0], waiting[2], waiting[5], *journal.take("ad_click")]
    publisher.publish([VIEW])
    assert len(rung) == 4, "a worker that has taken a batch continues until nothing waits"
    assert len(journal.take("page_view")) == 1
    assert journal.take("page_view") == []
    publisher.publish([VIEW])
    assert len(rung) == 5


def test_written_events_are_accepted_even_if_their_message_cannot_be_sent(
    journal: RedisJournal,
) -> None:
    def broken_bell(batch: Batch) -> None:
        raise ConnectionError(batch.id)

    publisher = Publisher(journal, broken_bell)
    publisher.publish([VIEW])
    publisher.publish([VIEW])
    assert journal.waiting()["page_view"] == 2


def test_events_are_refused_only_while_a_queue_is_full(
    journal: RedisJournal,
) -> None:
    rung: list[Batch] = []
    publisher = Publisher(journal, rung.append, queue_limit=2)
    publisher.publish([VIEW])
    publisher.publish([VIEW])
    with pytest.raises(Unavailable, match="too many batches"):
        publisher.publish([VIEW])
    publisher.publish([], [Rejection(0, b"5", {"_schema": ["bad"]})])
    assert journal.redis.xlen("dead_letters:events") == 1
    journal.remove(journal.take("page_view"))
    publisher.publish([VIEW])
    assert journal.waiting()["page_view"] == 1


def test_events_beyond_a_senders_share_are_counted_after_those_of_others(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SHARE_BYTES", 2 * SIZE)
    publisher = Publisher(journal, lambda _: None)
    publisher.publish([VIEW] * 100, sender="greedy")
    publisher.publish([VIEW] * 3, sender="greedy")
    publisher.publish([OTHER_VIEW], sender="modest")
    taken = [
        msgspec.json.decode(batch.payload, type=list[PageView])
        for _ in range(2)
        for batch in journal.take("page_view")
    ]
    first = int(shares.BURST_SECONDS * 2)
    assert taken == [[VIEW] * first, [OTHER_VIEW], [VIEW] * (100 - first), [VIEW] * 3]


def test_only_senders_beyond_their_share_are_refused_while_a_queue_is_half_full(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SHARE_BYTES", 2 * SIZE)
    publisher = Publisher(journal, lambda _: None, queue_limit=4)
    publisher.publish([VIEW] * 100, sender="greedy")
    with pytest.raises(Unavailable, match="share"):
        publisher.publish([VIEW], sender="greedy")
    publisher.publish([VIEW], sender="modest")
    while taken := journal.take("page_view"):
        journal.remove(taken)
    with pytest.raises(Unavailable, match="share"):
        publisher.publish([VIEW], sender="greedy")
    publisher.publish([VIEW], sender="greedy")


def test_the_bell_reports_an_unavailable_broker(
    journal: RedisJournal, redis: Server, threads: ThreadPoolExecutor
) -> None:
    ring = bell()
    redis.kill()
    rung = threads.submit(ring, Batch("b1", "page_view", b"[]"))
    try:
        with pytest.raises(OperationalError):
            rung.result(timeout=PUBLISH_SECONDS)
    finally:
        redis.start()


def test_rejections_are_kept_in_the_same_write(journal: RedisJournal) -> None:
    Publisher(journal, lambda _: None).publish([], [Rejection(0, b"5", {"_schema": ["bad"]})])
    assert journal.redis.xlen("dead_letters:events") == 1


def test_when_too_much_waits_large_requests_are_refused_before_small_ones(
    held: HeldJournal, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 20 * SIZE)
    publisher = Publisher(held, lambda _: None)
    first = threads.submit(publisher.publish, [VIEW] * 12)
    assert held.writing.acquire(timeout=10)
    for too_many in (5, 100):
        with pytest.raises(Unavailable, match="too many bytes"):
            publisher.publish([VIEW] * too_many)
    second = threads.submit(publisher.publish, [VIEW] * 4)
    wait_until(lambda: publisher._waiting_bytes == 16 * SIZE)
    with pytest.raises(Unavailable, match="too many bytes"):
        publisher.publish([VIEW] * 3)
    third = threads.submit(publisher.publish, [VIEW])
    wait_until(lambda: publisher._waiting_bytes == 17 * SIZE)
    held.go.set()
    for future in (first, second, third):
        future.result()
    publisher.publish([VIEW] * 30)
    assert sum_of_events(held) == 47


def test_a_large_request_is_written_alone_after_the_small_ones(
    held: HeldJournal, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WRITE_BYTES", 10 * SIZE)
    publisher = Publisher(held, lambda _: None)
    first = threads.submit(publisher.publish, [VIEW])
    assert held.writing.acquire(timeout=10)
    others = []
    for number in (50, 6, 1, 4, 2):
        others.append(threads.submit(publisher.publish, [VIEW] * number))
        wait_until(lambda: len(publisher._gathered) == len(others))
    held.go.set()
    for future in (first, *others):
        future.result()
    assert [len(batch) for new in held.writes for batch in map(decoded, new)] == [1, 7, 6, 50]


def test_a_failed_write_fails_only_the_requests_in_it(
    held: HeldJournal, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RedisJournal.write

    def fails_if_large(
        journal: RedisJournal, new: Sequence[Batch], *rest: Any
    ) -> dict[str, QueueState]:
        if sum(len(batch.payload) for batch in new) > 20 * SIZE:
            raise OutcomeUnknown("broker", "too slow")
        return write(journal, new, *rest)

    monkeypatch.setattr(RedisJournal, "write", fails_if_large)
    monkeypatch.setattr(module, "MAX_WRITE_BYTES", 10 * SIZE)
    publisher = Publisher(held, lambda _: None)
    first = threads.submit(publisher.publish, [VIEW])
    assert held.writing.acquire(timeout=10)
    large = threads.submit(publisher.publish, [VIEW] * 50)
    small = [threads.submit(publisher.publish, [VIEW]) for _ in range(5)]
    wait_until(lambda: len(publisher._gathered) == 6)
    held.go.set()
    for future in (first, *small):
        future.result()
    with pytest.raises(OutcomeUnknown):
        large.result()
    assert sum_of_events(held) == 6


def test_every_request_is_written_once_whatever_its_size(
    journal: RedisJournal, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WRITE_BYTES", 5 * SIZE)
    publisher = Publisher(journal, lambda _: None)
    numbers = [1, 1, 2, 9, 1, 4, 5, 6, 3, 20] * 20
    for future in [threads.submit(publisher.publish, [VIEW] * number) for number in numbers]:
        future.result()
    assert sum_of_events(journal) == sum(numbers)
    assert publisher._waiting_bytes == 0


def decoded(batch: Batch) -> list[PageView]:
    return msgspec.json.decode(batch.payload, type=list[PageView])


def test_a_request_that_waited_too_long_is_refused_and_its_events_are_not_counted(
    held: HeldJournal, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(held, lambda _: None)
    first = threads.submit(publisher.publish, [VIEW])
    assert held.writing.acquire(timeout=10)
    monkeypatch.setattr(module, "PUBLISH_SECONDS", 0.05)
    with pytest.raises(Unavailable, match="too slow"):
        publisher.publish([VIEW, VIEW])
    held.go.set()
    first.result()
    publisher.publish([VIEW])
    assert sum_of_events(held) == 2


def test_an_unreachable_broker_refuses_every_waiting_request_and_then_recovers(
    journal: RedisJournal, redis: Server, threads: ThreadPoolExecutor
) -> None:
    publisher = Publisher(journal, lambda _: None)
    redis.kill()
    futures = [threads.submit(publisher.publish, [VIEW]) for _ in range(8)]
    for future in futures:
        with pytest.raises(Unavailable, match="broker"):
            future.result()
    redis.start()
    publisher.publish([VIEW])
    assert sum_of_events(journal) == 1


def test_events_refused_because_the_broker_did_not_answer_are_withdrawn_when_it_does(
    journal: RedisJournal, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_writer, "IN_TIME_SECONDS", 60)
    publisher = Publisher(journal, lambda _: None)
    publisher.publish([VIEW])
    redis.signal(signal.SIGSTOP)
    try:
        # Redis will find this in its socket and write it when it resumes.
        with pytest.raises(OutcomeUnknown):
            publisher.publish([VIEW])
    finally:
        redis.signal(signal.SIGCONT)
    wait_until(lambda: sum_of_events(journal) == 1)
    publisher.publish([VIEW])
    assert sum_of_events(journal) == 2


def test_the_memory_of_a_refused_request_is_released_at_once(
    journal: RedisJournal, redis: Server
) -> None:
    publisher = Publisher(journal, lambda _: None)
    publisher.publish([VIEW])
    gc.collect()
    gc.disable()
    redis.signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            publisher.publish([VIEW])
        assert not [found for found in gc.get_objects() if type(found) is module._Request]
    finally:
        redis.signal(signal.SIGCONT)
        gc.enable()


def sum_of_events(journal: RedisJournal) -> int:
    payloads: list[bytes] = journal.redis.hvals("journal:page_view")  # type: ignore[assignment]
    return sum(len(msgspec.json.decode(payload)) for payload in payloads)


def test_publishing_needs_no_thread_of_its_own(journal: RedisJournal) -> None:
    before = threading.active_count()
    Publisher(journal, lambda _: None).publish([VIEW])
    assert threading.active_count() == before


def test_each_request_prepares_its_own_rejected_events_for_the_write(
    held: HeldJournal, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(held, lambda _: None)
    makers = []
    keeping = dead_letters.keeping

    def noted(rejections: Sequence[Rejection]) -> list[Command]:
        makers.append((threading.current_thread(), rejections))
        return keeping(rejections)

    monkeypatch.setattr(dead_letters, "keeping", noted)

    def bring(position: int) -> threading.Thread:
        publisher.publish([], [Rejection(position, b"5", {"Type": ["bad"]})])
        return threading.current_thread()

    first = threads.submit(bring, 0)
    held.writing.acquire()
    later = [threads.submit(bring, position) for position in (1, 2)]
    wait_until(lambda: len(makers) == 3)
    held.go.set()
    threads_of = {position: run.result(10) for position, run in enumerate([first, *later])}
    assert {rejections[0].position: thread for thread, rejections in makers} == threads_of
    assert len(dead_letters.newest(held.redis, 10)) == 3
