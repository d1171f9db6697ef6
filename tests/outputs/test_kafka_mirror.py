import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException

from app.counting import delivery
from app.counting.pipeline import Pipeline
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.invalid_traffic import Invalid
from app.domain.reader import EventReader
from app.errors import Unavailable
from app.journal.batches import batches
from app.journal.redis_journal import RedisJournal
from app.outputs import kafka_mirror
from app.outputs.kafka_mirror import Mirror
from app.redis import counters, dead_letters
from app.settings import KafkaTopic, Settings
from app.store import reports
from app.store.counting import CountedPiece
from app.store.database import Database
from app.store.outbox import queues_left
from app.store.paging import Page
from tasks.page_view import page_view
from tests.support.kafka import Kafka
from tests.support.waiting import wait_until

NOW = 1_000 * int(time.time())
TODAY = time.strftime("%Y-%m-%d", time.gmtime(NOW / 1000))
EVENTS: dict[str, list[Event]] = {
    "b1": [
        PageView("e1", "site1.com:80", "/a%2Fb", TODAY, NOW),
        PageView(None, "[::1]:8000", "/", TODAY, NOW, Invalid("robot", TODAY)),
    ],
    "b2": [
        AdImpression("e2", "site1.com", "34", "u1", TODAY[:7], NOW),
        AdClick("e3", "site1.com", "34", "u1", NOW),
    ],
}
COUNTED = [CountedPiece(name, name, dict(enumerate(events))) for name, events in EVENTS.items()]


@pytest.fixture
def topic(kafka: Kafka) -> KafkaTopic:
    there = KafkaTopic(kafka.brokers, f"mirror-{time.monotonic_ns()}")
    kafka.make(there.topic)
    return there


@pytest.fixture
def task(
    settings: Settings,
    topic: KafkaTopic,
    database: Database,
    journal: RedisJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """The task that counts page views, with the mirror turned on."""
    pipeline = Pipeline(replace(settings, kafka_publish=topic), database, journal.redis)
    monkeypatch.setitem(page_view.__dict__, "pipeline", pipeline)
    return page_view


@pytest.fixture
def stopped(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stops the broker from answering until the test resumes it."""
    monkeypatch.setattr(kafka_mirror, "DELIVERY_SECONDS", 0.5)
    kafka.signal(signal.SIGSTOP)
    yield
    kafka.signal(signal.SIGCONT)


def test_counted_events_are_published_in_the_same_form_as_posts(
    kafka: Kafka, topic: KafkaTopic
) -> None:
    Mirror(*topic, {}).write(COUNTED)
    messages = kafka.messages(topic.topic, 4)
    sent = [event for events in EVENTS.values() for event in events]
    read, rejections = EventReader(UTC).read([value for _, value in messages])
    assert rejections == []
    want = [msgspec.structs.replace(sent[1], event_id="b1:1", invalid=None)]
    want += [event for event in sent if event is not sent[1]]
    assert sorted(read, key=lambda event: str(event.event_id)) == want
    assert {key for key, _ in messages} == {event.website.encode() for event in sent}
    [robots] = [value for _, value in messages if b"b1:1" in value]
    assert msgspec.json.decode(robots)["Invalid"] == "robot"


def test_only_the_counted_events_of_a_batch_are_mirrored(
    kafka: Kafka, topic: KafkaTopic, task: Any, journal: RedisJournal
) -> None:
    events = [PageView(event_id, "site1.com", "/a", TODAY) for event_id in ("e1", "e1", None)]
    for batch in batches(events):
        journal.write([batch])
    task.apply().get()
    assert journal.waiting()["page_view"] == 0
    values = [msgspec.json.decode(value) for _, value in kafka.messages(topic.topic, 2)]
    assert {value["EventId"] for value in values} == {f"{batch.id}:2", "e1"}


def test_without_kafka_events_are_counted_and_then_mirrored_once_it_is_back(
    database: Database,
    kafka: Kafka,
    topic: KafkaTopic,
    stopped: None,
    task: Any,
    journal: RedisJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_mirror, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.1)
    first, second = (
        batches([PageView(event_id, "site1.com", "/a", TODAY)])[0] for event_id in ("e1", "e2")
    )
    for batch in (first, second):
        journal.write([batch])
        task.apply().get()
    assert journal.waiting()["page_view"] == 0
    assert queues_left(database) == {"page_view"}
    applied = f"{counters.APPLIED.name}|PageView"
    assert journal.redis.hget(counters.KEY, applied) == b"2"
    kafka.signal(signal.SIGCONT)

    def mirrored() -> bool:
        task.apply().get()
        return not queues_left(database)

    wait_until(mirrored, every=0.2)
    values = [msgspec.json.decode(value) for _, value in kafka.messages(topic.topic, 2)]
    assert {value["EventId"] for value in values} == {"e1", "e2"}


def test_after_kafka_did_not_answer_nobody_waits_for_it_for_a_while(
    kafka: Kafka, topic: KafkaTopic, stopped: None
) -> None:
    there = Mirror(*topic, {})
    with pytest.raises(Unavailable, match="Kafka unavailable"):
        there.write(COUNTED)
    with pytest.raises(Unavailable, match="it did not answer a moment ago"):
        there.write(COUNTED)


def test_an_event_too_large_for_the_topic_becomes_a_dead_letter_and_its_batch_is_done(
    database: Database,
    kafka: Kafka,
    topic: KafkaTopic,
    settings: Settings,
    task: Any,
    journal: RedisJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(settings, kafka_publish=topic, kafka_config={"message.max.bytes": "1000"})
    monkeypatch.setitem(page_view.__dict__, "pipeline", Pipeline(config, database, journal.redis))
    events = [PageView(None, "site1.com", page, TODAY) for page in ("/a", "/" + "b" * 1_000, "/c")]
    [batch] = batches(events)
    journal.write([batch])
    task.apply().get()
    assert journal.waiting()["page_view"] == 0
    values = [msgspec.json.decode(value) for _, value in kafka.messages(topic.topic, 2)]
    assert {value["EventId"] for value in values} == {f"{batch.id}:0", f"{batch.id}:2"}
    [letter] = dead_letters.newest(journal.redis, 10)
    assert letter.reason == {"_schema": [dead_letters.UNPUBLISHED_REASON]}
    assert b"bbb" in bytes(letter.event)
    assert letter.truncated
    assert sum(row["views"] for row in reports.page_views(database, Page()).items) == 3


@pytest.mark.parametrize("fatal", [False, True])
def test_other_kafka_errors_make_a_batch_wait_and_fatal_ones_replace_the_producer(
    kafka: Kafka, topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch, fatal: bool
) -> None:
    monkeypatch.setattr(kafka_mirror, "RETRY_SECONDS", 0)
    there = Mirror(*topic, {})
    producer = there._producer
    error = KafkaError(KafkaError._UNKNOWN_TOPIC, "none such", fatal=fatal)

    class Failing:
        """A producer whose messages fail."""

        def produce(self, *_: Any, **__: Any) -> None:
            raise KafkaException(error)

        flush = producer.flush

    there._producer = Failing()
    with pytest.raises(Unavailable, match="none such"):
        there.write(COUNTED)
    assert isinstance(there._producer, Failing) is not fatal
    if fatal:
        there.write(COUNTED)
        assert len(kafka.messages(topic.topic, 4)) == 4
