import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from redis import Redis

from app.domain.events import AdClick, AdImpression, Event, PageView, Rejection
from app.errors import SettingsError, Unavailable
from app.journal import batches as limits
from app.journal import redis_journal as module
from app.journal import redis_writer
from app.journal.batches import MAX_BATCH, Batch, batches
from app.journal.journal import OutcomeUnknown
from app.journal.rabbit_journal import RabbitJournal
from app.journal.redis_journal import RedisJournal
from app.journal.shares import LATE
from app.redis import dead_letters
from app.redis.connection import connect
from tests.support.rabbit import needs_rabbit, rabbit, rabbit_journal
from tests.support.replaced import two_redis
from tests.support.servers import Server, redis_answers
from tests.support.waiting import wait_until

__all__ = ["rabbit", "rabbit_journal"]

Either = RedisJournal | RabbitJournal
VIEW = PageView(None, "site1.com", "/a", "2026-11-24")
BATCH = Batch("b1", "page_view", b"[]")
OTHER = Batch("b2", "page_view", b"[]")
WITHDRAWN = b"journal:withdrawn:"


def keys(journal: Either) -> set[bytes]:
    """All keys but two kinds.

    They say whether a worker was called, until one finds nothing, and which batches were withdrawn.
    """
    found: list[bytes] = journal.redis.keys()  # type: ignore[assignment]
    return {
        name for name in found if not name.endswith(b":rung") and not name.startswith(WITHDRAWN)
    }


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=needs_rabbit)])
def either(request: pytest.FixtureRequest) -> Either:
    """A journal in Redis and then one in RabbitMQ, for what is true of both."""
    name = "journal" if request.param == "redis" else "rabbit_journal"
    found: Either = request.getfixturevalue(name)
    return found


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


def test_a_batch_holds_a_bounded_number_of_events() -> None:
    made = batches([VIEW] * (MAX_BATCH + 1))
    assert [len(msgspec.json.decode(batch.payload)) for batch in made] == [MAX_BATCH, 1]
    assert made[0].id != made[1].id


def test_a_batch_takes_bounded_bytes_unless_a_single_event_takes_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_BATCH_BYTES", 1_000)
    lengths = [400, 400, 10, 2_000, 10, 10, 900, 1, 1]
    views = [PageView(None, "site1.com", "/" + "a" * n, "2026-11-24") for n in lengths]
    made = batches(views)
    assert [view for batch in made for view in decoded(batch)] == views
    assert [len(decoded(batch)) for batch in made] == [2, 1, 1, 2, 1, 2]
    assert all(len(batch.payload) <= 1_000 or len(decoded(batch)) == 1 for batch in made)


def decoded(batch: Batch) -> list[PageView]:
    return msgspec.json.decode(batch.payload, type=list[PageView])


def test_a_batch_is_kept_until_it_is_removed(either: Either) -> None:
    either.write([BATCH, OTHER])
    assert either.holds(BATCH)
    assert either.waiting() == {"page_view": 2, "ad_impression": 0, "ad_click": 0}
    either.remove([BATCH])
    assert not either.holds(BATCH)
    assert either.waiting()["page_view"] == 1
    either.remove([OTHER])
    assert keys(either) == set()


def test_a_withdrawn_batch_is_removed(either: Either) -> None:
    either.write([BATCH])
    either.write([OTHER], withdrawn=[BATCH])
    assert not either.holds(BATCH)
    assert either.holds(OTHER)


def test_a_buried_batch_is_in_the_dead_letters_and_nowhere_else(either: Either) -> None:
    either.write([BATCH])
    either.bury(BATCH, "it does not decode")
    assert keys(either) == {b"dead_letters:batches", b"dead_letters:sizes"}
    (letter,) = dead_letters.newest(either.redis, 10)
    assert (letter.batch_id, letter.queue, letter.reason) == (
        "b1",
        "page_view",
        "it does not decode",
    )


def test_written_batches_survive_a_kill_of_redis(journal: RedisJournal, redis: Server) -> None:
    journal.write([BATCH], dead_letters.keeping([Rejection(0, b"5", {"Type": ["bad"]})]))
    redis.kill()
    redis.start()
    assert journal.holds(BATCH)
    assert len(dead_letters.newest(journal.redis, 10)) == 1


def test_a_full_redis_is_reported_and_accepts_nothing(either: Either) -> None:
    either.write([BATCH])
    either.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="OutOfMemory"):
            either.write([OTHER])
    finally:
        either.redis.config_set("maxmemory", 0)
    assert either.waiting()["page_view"] == 1


def test_an_unavailable_redis_is_reported() -> None:
    away = RedisJournal(connect("redis://127.0.0.1:1/0"))
    for call in (
        lambda: away.write([BATCH]),
        lambda: away.holds(BATCH),
        lambda: away.remove([BATCH]),
        away.waiting,
    ):
        with pytest.raises(Unavailable, match="broker") as caught:
            call()
        assert not isinstance(caught.value, OutcomeUnknown), (
            "it is certain that nothing was written"
        )


def test_a_write_without_an_answer_is_distinguished_from_one_never_sent(
    journal: RedisJournal, redis: Server
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


def test_a_write_that_redis_gets_to_too_late_has_no_effect(
    journal: RedisJournal, redis: Server
) -> None:
    journal.write([BATCH])
    redis.signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            journal.write([OTHER])
    finally:
        redis.signal(signal.SIGCONT)
    # Once this is answered, Redis has got to everything that was in its sockets before.
    wait_until(lambda: redis_answers(redis.url))
    assert journal.take("page_view") == [BATCH]


def test_a_write_succeeds_even_if_the_clock_was_changed(journal: RedisJournal) -> None:
    journal.write([BATCH])
    journal._writer._clock_ahead -= 3600
    journal.write([OTHER])
    assert journal.take("page_view") == [BATCH, OTHER]


def test_a_worker_takes_waiting_batches_in_order_and_nobody_else_gets_them(either: Either) -> None:
    either.write([BATCH])
    either.write([OTHER, Batch("b3", "ad_click", b"[]")])
    assert either.take("page_view") == [BATCH, OTHER]
    assert either.take("page_view") == []
    assert either.waiting()["page_view"] == 2


def test_late_batches_are_taken_after_all_others_alone_and_only_on_request(
    journal: RedisJournal,
) -> None:
    late = BATCH._replace(due=time.time() + LATE)
    journal.write([late])
    journal.write([OTHER])
    assert journal.take("page_view", late=False) == [OTHER]
    assert journal.take("page_view", late=False) == []
    journal.write([OTHER])
    assert journal.take("page_view") == [OTHER]
    [taken] = journal.take("page_view")
    assert taken[:3] == late[:3]
    assert taken.due is not None


def test_a_write_returns_when_the_waiting_batches_are_due(journal: RedisJournal) -> None:
    assert journal.write([])["page_view"] == (0, False, 0.0, 0.0)
    first, last = time.time() + 60, time.time() + 90
    journal.write([BATCH._replace(due=last)])
    line = journal.write([OTHER._replace(due=first)])["page_view"]
    assert (line.first, line.last) == pytest.approx((first, last))


def test_redis_is_crowded_once_half_of_the_memory_for_events_is_used(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_writer, "LOOK_EVERY_SECONDS", 0)
    used = journal.redis.info("memory")["used_memory"]
    journal.redis.config_set("maxmemory", int(used / redis_writer.FULL_SHARE * 4))
    journal.write([])
    assert not journal.is_crowded
    journal.redis.config_set("maxmemory", int(used / redis_writer.FULL_SHARE * 1.5))
    journal.write([])
    assert journal.is_crowded


def test_the_amount_taken_at_once_is_bounded(
    either: Either, monkeypatch: pytest.MonkeyPatch
) -> None:
    either.write([Batch(str(n), "page_view", b"[1,2,3]") for n in range(10)])
    monkeypatch.setattr(limits, "TAKEN_AT_ONCE", 3)
    assert len(either.take("page_view")) == 3
    monkeypatch.setattr(limits, "TAKEN_BYTES", 8)
    assert len(either.take("page_view")) == 2


def test_a_batch_that_a_worker_gives_back_waits_again(either: Either) -> None:
    either.write([BATCH])
    either.give_back(either.take("page_view"))
    assert either.take("page_view") == [BATCH]


def test_a_batch_that_a_worker_has_held_too_long_waits_again(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKEN_SECONDS", -1)
    journal.write([BATCH])
    assert journal.take("page_view") == [BATCH]
    assert journal.overdue("page_view", 60)
    assert journal.take("page_view") == [BATCH]
    journal.remove([BATCH])
    assert keys(journal) == set()


def test_a_worker_must_be_called_once_until_it_finds_nothing(either: Either) -> None:
    assert either.write([BATCH])["page_view"][:2] == (1, True)
    assert either.write([OTHER])["page_view"][:2] == (2, False)
    assert len(either.take("page_view")) == 2
    assert either.take("page_view", stops_if_empty=False) == []
    assert either.write([BATCH])["page_view"][:2] == (1, False)
    either.take("page_view")
    assert either.take("page_view") == []
    assert either.write([BATCH])["page_view"][:2] == (1, True)


def test_only_a_write_to_a_queue_can_be_asked_to_call_its_worker(either: Either) -> None:
    either.write([BATCH])
    either.take("page_view")
    either.take("page_view")
    either.give_back([BATCH])
    assert either.write([], dead_letters.keeping([Rejection(0, b"5", {})]))["page_view"][:2] == (
        1,
        False,
    )
    assert either.write([OTHER])["page_view"][:2] == (2, True)


def test_a_withdrawn_batch_is_not_given_to_a_worker(either: Either) -> None:
    either.write([BATCH])
    either.write([], withdrawn=[BATCH])
    assert either.take("page_view") == []
    assert keys(either) == set()


def test_batches_can_still_be_taken_from_and_removed_from_a_full_redis(either: Either) -> None:
    either.write([BATCH])
    either.redis.config_set("maxmemory", 1)
    try:
        assert either.take("page_view") == [BATCH]
        either.remove([BATCH])
    finally:
        either.redis.config_set("maxmemory", 0)
    assert keys(either) == set()


def test_each_operation_adds_its_counts_even_if_redis_is_full(either: Either) -> None:
    either.write([BATCH], counts={"seen|a": 2})
    either.redis.config_set("maxmemory", 1)
    try:
        either.give_back(either.take("page_view"), {"seen|a": 1})
        either.remove(either.take("page_view"), {"seen|b": 5})
    finally:
        either.redis.config_set("maxmemory", 0)
    assert either.redis.hgetall("metrics") == {b"seen|a": b"3", b"seen|b": b"5"}
    assert keys(either) == {b"metrics"}


def test_the_backlog_says_how_many_batches_wait_and_for_how_long(either: Either) -> None:
    either.write([BATCH, OTHER, Batch("b3", "ad_click", b"[]")])
    either.redis.zadd("journal:page_view:waiting", {"b2": time.time() - 61})
    either.take("ad_click")
    backlog = either.backlog()
    assert backlog["page_view"][:2] == (2, 0)
    assert 61 <= backlog["page_view"].oldest_seconds < 90
    assert backlog["ad_click"] == (0, 1, 0)
    assert backlog["ad_impression"] == (0, 0, 0)


def test_a_queue_is_overdue_once_a_batch_has_waited_long(either: Either) -> None:
    either.write([BATCH])
    assert not either.overdue("page_view", 60)
    either.redis.zadd("journal:page_view:waiting", {"b1": time.time() - 61})
    assert either.overdue("page_view", 60)
    assert not either.overdue("ad_click", 60)


def test_a_batch_dated_by_a_clock_an_hour_ahead_is_overdue_at_once(either: Either) -> None:
    either.write([BATCH])
    either.redis.zadd("journal:page_view:waiting", {"b1": time.time() + 3_600})
    assert either.overdue("page_view", 60)


@pytest.mark.parametrize("rest", ["127.0.0.1:99999/0", "127.0.0.1:x/0", "h?nope=1"])
def test_an_invalid_redis_url_is_reported_in_a_sentence(rest: str) -> None:
    with pytest.raises(SettingsError, match=r"^REDIS_URL or BROKER_URL can't be used: .+"):
        connect(f"redis://{rest}")


def test_an_unknown_way_to_verify_certificates_is_reported_in_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"can't be used: .* Requirements Flag: any$"):
        connect("rediss://127.0.0.1:1/0?ssl_cert_reqs=any")


def test_a_missing_certificate_file_is_reported_in_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"can't be used: .*No such file.*'/nonexistent.pem'"):
        connect("rediss://127.0.0.1:1/0?ssl_ca_certs=/nonexistent.pem")


def test_a_journal_moves_on_when_another_redis_takes_over_the_name(tmp_path: Path) -> None:
    with two_redis(tmp_path) as redis:
        journal = RedisJournal(connect(redis.url))
        journal.write([BATCH])
        assert journal.take("page_view") == [BATCH]
        redis.replace()

        def is_writable() -> bool:
            with suppress(Unavailable):
                journal.check_writable()
                journal.write([OTHER])
                return True
            return False

        wait_until(is_writable)
        wait_until(lambda: _taken(journal) == [OTHER])
        journal.remove([BATCH, OTHER])
        assert journal.waiting()["page_view"] == 0
        with Redis.from_url(redis.second.url) as second:
            assert second.info("replication")["role"] == "master"
            assert not second.exists("journal:page_view")


def _taken(journal: RedisJournal) -> list[Batch]:
    with suppress(Unavailable):
        return journal.take("page_view")
    return []


def test_a_nearly_full_redis_accepts_no_writes_but_its_backlog_drains(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_writer, "LOOK_EVERY_SECONDS", 0)
    used = journal.redis.info("memory")["used_memory"]
    journal.redis.config_set("maxmemory", used + 20 * 1024**2)
    written: list[Batch] = []

    def fill() -> None:
        while True:
            batch = Batch(f"b{len(written)}", "page_view", b"[" + b" " * 500_000 + b"]")
            journal.write([batch])
            written.append(batch)

    try:
        with pytest.raises(Unavailable, match="little memory"):
            fill()
        assert written
        journal.redis.lpush("left", b"for those that count")
        while taken := journal.take("page_view"):
            journal.remove(taken)
            for batch in taken:
                written.remove(batch)
        assert written == []
        journal.write([BATCH])
    finally:
        journal.redis.config_set("maxmemory", 0)
