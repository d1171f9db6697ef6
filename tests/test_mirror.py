import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from typing import Any

import msgspec
import pytest

from app import counters, mirror
from app.applying import Applying
from app.domain.events import OTHER, Actual, AdClick, AdImpression, Event, PageView
from app.domain.reader import EventReader
from app.domain.traffic import Invalid
from app.errors import Unavailable
from app.journal import Journal, batches
from app.mirror import Mirror
from app.settings import KafkaTopic, Settings
from app.store import connection
from tasks.page_view import page_view
from tests.conftest import Kafka, wait_until

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


OTHERS: list[tuple[Event, dict[str, Any]]] = [
    (
        PageView("e1", "a.com", OTHER, TODAY, actual=Actual("a.com", "/1")),
        {"Type": "PageView", "Other": "page", "Url": "http://a.com/1", "EventId": "e1"},
    ),
    (
        PageView("e1", OTHER, OTHER, TODAY, actual=Actual("a.com:80", "/1")),
        {"Type": "PageView", "Other": "website", "Url": "https://a.com:80/1", "EventId": "e1"},
    ),
    (
        AdClick("e1", "a.com", OTHER, "u1", NOW, actual=Actual("a.com", "34")),
        {
            **{"Type": "AdClick", "Other": "ad", "Url": "http://a.com/", "EventId": "e1"},
            **{"Meta": {"UserId": "u1", "AdId": "34"}, "Timestamp": NOW},
        },
    ),
]


@pytest.mark.parametrize(("event", "want"), OTHERS)
def test_what_counts_under_other_is_sent_as_what_it_is_and_says_so(
    event: Event, want: dict[str, Any]
) -> None:
    website, sent = mirror._sent(event, "made up")
    assert sent == want
    assert event.actual
    assert website == event.actual.website
    assert EventReader(UTC).read([msgspec.json.encode(sent)])[1] == []


@pytest.fixture
def topic(kafka: Kafka) -> KafkaTopic:
    there = KafkaTopic(kafka.brokers, f"mirror-{time.monotonic_ns()}")
    kafka.make(there.topic)
    return there


@pytest.fixture
def task(
    settings: Settings, topic: KafkaTopic, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The task of page views, where they are mirrored."""
    connection.connect(settings.mongodb_url)
    applying = Applying(replace(settings, kafka_publish=topic), journal.redis)
    monkeypatch.setitem(page_view.__dict__, "applying", applying)
    return page_view


@pytest.fixture
def stopped(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A broker that no longer answers, until it is to go on."""
    monkeypatch.setattr(mirror, "DELIVERY_SECONDS", 0.5)
    kafka.signal(signal.SIGSTOP)
    yield
    kafka.signal(signal.SIGCONT)


def test_what_counted_is_published_in_the_form_that_posts_have(
    kafka: Kafka, topic: KafkaTopic
) -> None:
    Mirror(*topic, {}).write(EVENTS)
    messages = kafka.messages(topic.topic, 4)
    sent = [event for events in EVENTS.values() for event in events]
    read, rejections = EventReader(UTC, keep_time=True).read([value for _, value in messages])
    assert rejections == []
    want = [msgspec.structs.replace(sent[1], event_id="b1:1", invalid=None)]
    want += [event for event in sent if event is not sent[1]]
    assert sorted(read, key=lambda event: str(event.event_id)) == want
    assert {key for key, _ in messages} == {event.website.encode() for event in sent}
    [robots] = [value for _, value in messages if b"b1:1" in value]
    assert msgspec.json.decode(robots)["Invalid"] == "robot"


def test_a_batch_leaves_the_journal_once_it_is_mirrored_and_only_what_counted_is(
    kafka: Kafka, topic: KafkaTopic, task: Any, journal: Journal
) -> None:
    events = [PageView(event_id, "site1.com", "/a", TODAY) for event_id in ("e1", "e1", None)]
    for batch in batches(events):
        journal.write([batch])
    task.apply().get()
    assert journal.waiting()["page_view"] == 0
    values = [msgspec.json.decode(value) for _, value in kafka.messages(topic.topic, 2)]
    assert {value["EventId"] for value in values} == {f"{batch.id}:1", "e1"}


def test_while_kafka_is_away_events_are_counted_and_mirrored_when_it_is_back(
    kafka: Kafka,
    topic: KafkaTopic,
    stopped: None,
    task: Any,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.1)
    first, second = (
        batches([PageView(event_id, "site1.com", "/a", TODAY)])[0] for event_id in ("e1", "e2")
    )
    for batch in (first, second):
        journal.write([batch])
        task.apply().get()
    assert journal.waiting()["page_view"] == 2
    applied = f"{counters.APPLIED.name}|PageView"
    assert journal.redis.hget(counters.KEY, applied) == b"2"
    kafka.signal(signal.SIGCONT)

    def mirrored() -> bool:
        task.apply().get()
        return journal.waiting()["page_view"] == 0

    wait_until(mirrored)
    values = [msgspec.json.decode(value) for _, value in kafka.messages(topic.topic, 2)]
    assert {value["EventId"] for value in values} == {"e1", "e2"}


def test_once_kafka_was_away_nobody_waits_for_it_for_a_while(
    kafka: Kafka, topic: KafkaTopic, stopped: None
) -> None:
    there = Mirror(*topic, {})
    with pytest.raises(Unavailable, match="Kafka unavailable"):
        there.write(EVENTS)
    with pytest.raises(Unavailable, match="it was a moment ago"):
        there.write(EVENTS)
