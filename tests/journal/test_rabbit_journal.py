"""What is specific to RabbitMQ; tests of both journals are in test_redis_journal.py."""

import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from app.domain.events import Rejection
from app.errors import Unavailable
from app.journal.batches import Batch
from app.journal.journal import OutcomeUnknown
from app.journal.rabbit import DEAD, DELIVERY_LIMIT, Rabbit, Unconfirmed, name_of
from app.journal.rabbit_journal import ALONE_AFTER, ORPHANED_SECONDS, RabbitJournal
from app.redis import dead_letters
from app.redis.connection import connect
from tests.support.rabbit import RabbitServer, needs_rabbit, rabbit, rabbit_journal
from tests.support.servers import Server
from tests.support.waiting import wait_until

__all__ = ["rabbit", "rabbit_journal"]

pytestmark = needs_rabbit

BATCH = Batch("b1", "page_view", b"[]")
OTHER = Batch("b2", "page_view", b"[]")
CLICK = Batch("b3", "ad_click", b"[]")


@pytest.fixture
def another(rabbit_journal: RabbitJournal, rabbit: RabbitServer) -> Iterator[RabbitJournal]:
    """The same journal in another process."""
    found = RabbitJournal(rabbit_journal.redis, rabbit.url)
    yield found
    found.release()


def taken_from(journal: RabbitJournal, queue: str = "page_view") -> list[Batch]:
    """What a worker gets from a queue, once RabbitMQ is up and has noticed which workers died."""
    found: list[Batch] = []

    def take() -> list[Batch]:
        with suppress(Unavailable):
            found.extend(journal.take(queue))
        return found

    wait_until(take)
    return found


@pytest.mark.proof
def test_written_batches_survive_a_kill_of_rabbitmq(
    rabbit_journal: RabbitJournal, rabbit: RabbitServer
) -> None:
    letters = dead_letters.keeping([Rejection(0, b"5", {"Type": ["bad"]})])
    rabbit_journal.write([BATCH, CLICK], letters)
    rabbit.kill()
    rabbit.start()
    assert taken_from(rabbit_journal) == [BATCH]
    assert taken_from(rabbit_journal, "ad_click") == [CLICK]
    assert len(dead_letters.newest(rabbit_journal.redis, 10)) == 1
    rabbit_journal.write([OTHER])


def test_an_unavailable_rabbitmq_is_reported(rabbit_journal: RabbitJournal) -> None:
    away = RabbitJournal(rabbit_journal.redis, "amqp://127.0.0.1:1//")
    for call in (lambda: away.write([BATCH]), lambda: away.take("page_view"), away.check_writable):
        with pytest.raises(Unavailable, match="broker") as caught:
            call()
        assert not isinstance(caught.value, OutcomeUnknown), (
            "it is certain that nothing was written"
        )
    assert not rabbit_journal.holds(BATCH)


def test_the_next_address_is_tried_if_one_is_unavailable(
    rabbit_journal: RabbitJournal, rabbit: RabbitServer
) -> None:
    either = RabbitJournal(rabbit_journal.redis, f"amqp://127.0.0.1:1//;{rabbit.url}")
    either.write([BATCH])
    assert rabbit_journal.take("page_view") == [BATCH]


def test_a_batch_that_rabbitmq_did_not_confirm_is_refused_and_never_counted(
    rabbit_journal: RabbitJournal, rabbit: RabbitServer
) -> None:
    rabbit_journal.write([OTHER])
    looking = Rabbit(rabbit.url)

    def is_queued_though_refused() -> bool:
        rabbit.signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable) as caught:
                rabbit_journal.write([BATCH])
        finally:
            rabbit.signal(signal.SIGCONT)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert not rabbit_journal.holds(BATCH)
        try:
            wait_until(lambda: looking.state(name_of("page_view")).ready > 1, 5)
        except AssertionError:
            return False
        return True

    # RabbitMQ usually finds the batch in its socket when it resumes, unless that was reset.
    assert any(is_queued_though_refused() for _ in range(5))
    looking.close()
    assert rabbit_journal.take("page_view") == [OTHER]
    rabbit_journal.remove([OTHER])
    assert rabbit_journal.take("page_view") == []
    assert sum(rabbit_journal.waiting().values()) == 0


def unconfirmed_once(monkeypatch: pytest.MonkeyPatch, journal: RabbitJournal, then: object) -> None:
    """Let the next publish succeed but its confirm arrive too late, after calling `then`."""
    publish = journal._outgoing.publish

    def late(messages: object) -> None:
        monkeypatch.undo()
        publish(messages)  # type: ignore[arg-type]
        then()  # type: ignore[operator]
        raise Unconfirmed("broker", "late")

    monkeypatch.setattr(journal._outgoing, "publish", late)


def test_an_unconfirmed_write_is_accepted_whole_if_a_worker_already_took_a_batch_of_it(
    rabbit_journal: RabbitJournal, another: RabbitJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Batch] = []
    unconfirmed_once(monkeypatch, rabbit_journal, lambda: taken.extend(another.take("page_view")))
    rabbit_journal.write([BATCH, CLICK])
    assert taken == [BATCH]
    another.remove(taken)
    assert another.take("ad_click") == [CLICK], "its second copy is not a separate batch"
    assert another.take("page_view") == [BATCH], "it is a copy, which the ledger recognizes"


def test_a_batch_refused_while_redis_was_down_too_is_withdrawn_once_redis_is_back(
    rabbit_journal: RabbitJournal, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfirmed_once(monkeypatch, rabbit_journal, redis.kill)
    with pytest.raises(OutcomeUnknown):
        rabbit_journal.write([BATCH])
    redis.start()
    rabbit_journal.write([OTHER], withdrawn=[BATCH])
    assert rabbit_journal.take("page_view") == [OTHER]


def test_a_confirmed_batch_is_accepted_even_if_redis_is_then_unavailable(
    rabbit_journal: RabbitJournal, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = rabbit_journal._outgoing.publish

    def and_then(messages: object) -> None:
        publish(messages)  # type: ignore[arg-type]
        redis.kill()

    monkeypatch.setattr(rabbit_journal._outgoing, "publish", and_then)
    try:
        assert rabbit_journal.write([BATCH])["page_view"].needs_bell
    finally:
        redis.start()
    assert rabbit_journal.overdue("page_view", -1)
    assert rabbit_journal.take("page_view") == [BATCH]


def test_the_batches_of_a_worker_that_died_are_given_to_another(
    rabbit_journal: RabbitJournal, another: RabbitJournal
) -> None:
    rabbit_journal.write([BATCH, OTHER])
    assert another.take("page_view") == [BATCH, OTHER]
    assert rabbit_journal.take("page_view") == []
    another._incoming._drop()  # as the system does when a process is killed
    assert set(taken_from(rabbit_journal)) == {BATCH, OTHER}


def test_giving_a_batch_back_uses_up_no_delivery(
    rabbit_journal: RabbitJournal, another: RabbitJournal
) -> None:
    rabbit_journal.write([BATCH])
    for _ in range(DELIVERY_LIMIT + 2):
        another.give_back(taken_from(another))
        another.release()
    another.clean_up()
    assert dead_letters.newest(rabbit_journal.redis, 10) == []
    assert taken_from(rabbit_journal) == [BATCH]


def test_a_batch_that_every_worker_died_with_becomes_a_dead_letter(
    rabbit_journal: RabbitJournal,
) -> None:
    rabbit_journal.write([BATCH, CLICK])
    for _ in range(DELIVERY_LIMIT + 1):
        assert taken_from(rabbit_journal) == [BATCH]
        rabbit_journal.release()

    def buried() -> bool:
        rabbit_journal.clean_up()
        return bool(dead_letters.newest(rabbit_journal.redis, 10))

    wait_until(buried)
    (letter,) = dead_letters.newest(rabbit_journal.redis, 10)
    assert (letter.batch_id, letter.queue, bytes(letter.batch)) == BATCH[:3]
    assert not rabbit_journal.holds(BATCH)
    assert rabbit_journal.holds(CLICK)
    assert rabbit_journal._incoming.state(DEAD).ready == 0


def test_a_batch_that_workers_died_with_is_counted_alone(rabbit_journal: RabbitJournal) -> None:
    rabbit_journal.write([BATCH])
    for _ in range(ALONE_AFTER):
        assert taken_from(rabbit_journal) == [BATCH]
        rabbit_journal.release()
    rabbit_journal.write([OTHER])
    assert taken_from(rabbit_journal) == [BATCH]
    assert rabbit_journal.take("page_view") == [OTHER]


def test_redis_forgets_batches_that_a_killed_web_process_announced_but_never_wrote(
    rabbit_journal: RabbitJournal, another: RabbitJournal
) -> None:
    rabbit_journal.write([OTHER])
    long_ago = time.time() - ORPHANED_SECONDS - 1
    rabbit_journal.redis.zadd("journal:page_view:writing", {"b1": long_ago})
    rabbit_journal.redis.zadd("journal:page_view:waiting", {"b2": long_ago})
    another.clean_up()
    assert rabbit_journal.waiting()["page_view"] == 2, "what is in the queue may be this batch"
    taken = taken_from(rabbit_journal)
    another.clean_up()
    assert rabbit_journal.waiting()["page_view"] == 2, "what a worker has taken may be this batch"
    rabbit_journal.remove(taken)
    another.clean_up()
    assert rabbit_journal.waiting()["page_view"] == 0


def test_batches_that_redis_lost_track_of_are_still_overdue_and_counted(
    rabbit_journal: RabbitJournal,
) -> None:
    rabbit_journal.write([BATCH])
    rabbit_journal.redis.flushall()
    assert rabbit_journal.overdue("page_view", 60)
    assert not rabbit_journal.overdue("ad_click", 60)
    assert rabbit_journal.take("page_view") == [BATCH]


def test_a_deleted_queue_is_created_again(
    rabbit_journal: RabbitJournal, rabbit: RabbitServer
) -> None:
    rabbit_journal.write([OTHER])
    rabbit.run("rabbitmqctl", "delete_queue", name_of("page_view"))
    with pytest.raises(Unavailable, match="refused"):
        rabbit_journal.write([BATCH])
    rabbit_journal.write([BATCH._replace(id="b4")])
    assert [batch.id for batch in rabbit_journal.take("page_view")] == ["b4"]


@pytest.mark.proof
def test_a_rabbitmq_short_of_memory_accepts_nothing_and_says_so_at_once(
    rabbit_journal: RabbitJournal, rabbit: RabbitServer
) -> None:
    rabbit_journal.write([OTHER])
    rabbit.run("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        accepted = []
        for number in range(3):
            batch = Batch(f"n{number}", "page_view", b"[]")
            try:
                rabbit_journal.write([batch])
                accepted.append(batch)
            except Unavailable:
                continue
        with pytest.raises(Unavailable, match="short of memory or disk"):
            rabbit_journal.write([BATCH])
        with pytest.raises(Unavailable, match="short of memory or disk"):
            rabbit_journal.check_writable()
    finally:
        rabbit.run("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "512MB")

    def is_writable() -> bool:
        try:
            rabbit_journal.check_writable()
        except Unavailable:
            return False
        return True

    wait_until(is_writable)
    rabbit_journal.write([CLICK])
    assert rabbit_journal.take("page_view") == [OTHER, *accepted]
    assert rabbit_journal.take("ad_click") == [CLICK]


def test_an_unavailable_redis_uses_up_no_delivery(
    rabbit_journal: RabbitJournal, rabbit: RabbitServer
) -> None:
    rabbit_journal.write([BATCH])
    away = RabbitJournal(connect("redis://127.0.0.1:1/0"), rabbit.url)
    for _ in range(ALONE_AFTER):
        with pytest.raises(Unavailable):
            away.take("page_view")
    message = rabbit_journal._incoming.get(name_of("page_view"))
    assert message
    assert message.returns == 0
