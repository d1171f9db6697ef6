import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.counting.kafka_consumer import Broken, TopicConsumer
from app.domain.events import PageView
from app.errors import InvalidRequest
from app.journal.redis_journal import RedisJournal
from app.local.processes import free_ports
from app.outputs.archive import Archive
from app.redis import dead_letters
from app.redis.known_names import LOADED_KEY, KnownNames
from app.settings import KafkaTopic, Settings
from app.store import folding, reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database, Session
from app.store.documents import ConsumedOffset, Outgoing, key
from app.store.ledger import Piece
from app.store.offsets import Progress
from app.store.paging import Page
from tests.support.kafka import Kafka
from tests.support.servers import Server, database_answers
from tests.support.waiting import kill_group, running, wait_until

GROUP = "collector"
QUICK = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "300"}
"""The group notices a killed member sooner than by default (45 s)."""

Consuming = Callable[..., AbstractContextManager[TopicConsumer]]


@pytest.fixture(scope="module")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A database that aborts a killed consumer's transaction after a second."""
    home = tmp_path_factory.mktemp("database")
    [port] = free_ports(1)
    quick = "import app.local.database as d; d.IDLE_TRANSACTION_SECONDS = 1; d.main()"
    command = [sys.executable, "-c", quick, "--port", str(port), "--storage-path", str(home)]
    server = Server(command, f"mongodb://127.0.0.1:{port}", home / "log", database_answers)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def topic(kafka: Kafka) -> str:
    name = f"events-{os.getpid()}-{time.monotonic_ns()}"
    kafka.make(name)
    return name


@pytest.fixture
def config(settings: Settings) -> Settings:
    return replace(settings, kafka_config=QUICK)


@pytest.fixture
def consuming(
    config: Settings, database: Database, journal: RedisJournal, kafka: Kafka, topic: str
) -> Consuming:
    """Runs a consumer in a separate thread."""

    @contextmanager
    def run(**changes: Any) -> Iterator[TopicConsumer]:
        stop = threading.Event()
        source = KafkaTopic(kafka.brokers, topic)
        consumer = TopicConsumer(
            replace(config, **changes), database, journal.redis, source, GROUP, stop
        )
        thread = threading.Thread(target=consumer.run)
        thread.start()
        try:
            yield consumer
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    return run


@pytest.fixture
def start(config: Settings, kafka: Kafka, topic: str, tmp_path: Path, journal: RedisJournal) -> Any:
    """Starts consumers as processes: `eventstream consume`, or one that kills itself."""

    def started(*command: str, **environment: str) -> AbstractContextManager[Any]:
        words = command or ("-c", "from app.cli.main import main; main()")
        return running(
            *(sys.executable, *words, "consume", "--kafka", kafka.brokers),
            *("--topic", topic, "--group", GROUP),
            log=tmp_path / "consumer.log",
            REDIS_URL=config.redis_url,
            MONGODB_URL=config.mongodb_url,
            DATA_DIR=str(tmp_path / "var"),
            KAFKA_CONFIG=msgspec.json.encode(QUICK).decode(),
            **environment,
        )

    return started


def view(page: str, **more: object) -> bytes:
    return msgspec.json.encode({"Type": "PageView", "Url": f"site1.com{page}", **more})


def views(database: Database) -> dict[str, int]:
    for kind in ("PageView", "AdImpression", "AdClick"):
        wait_until(lambda kind=kind: folding.fold(database, kind))  # type: ignore[misc]
    return {row["page"]: row["views"] for row in reports.page_views(database, Page()).items}


def offsets(database: Database, topic: str) -> dict[int, int]:
    """The stored offsets of the partitions from which something was counted."""
    rows = database[ConsumedOffset].find({})
    places = {tuple(row["_id"].split()): row["next"] for row in rows}
    return {
        int(partition): offset
        for (of, partition, group), offset in places.items()
        if offset and (of, group) == (topic, GROUP)
    }


def test_messages_are_counted_like_posts_and_their_offsets_are_stored(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming
) -> None:
    meta = {"UserId": "u1", "AdId": "34"}
    others = [
        {"Type": kind, "Url": "site1.com", "Meta": meta} for kind in ("AdImpression", "AdClick")
    ]
    kafka.send(topic, view("/a"), msgspec.json.encode(others))
    kafka.send(topic, view("/a") + b"\n" + view("/b"), partition=2)
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 2, 2: 1})
    assert views(database) == {"/a": 2, "/b": 1}
    [everywhere, *_] = reports.impressions(database, Page()).items
    assert (everywhere["impressions"], everywhere["visitors"]) == (1, 1)
    assert [row["hits"] for row in reports.clicks(database, Page()).items] == [1]


def test_an_event_without_a_time_has_the_time_kafka_received_it(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming
) -> None:
    kafka.send(topic, view("/a"))
    earlier = datetime.now(UTC)
    with consuming(archive=True, archive_url="memory://times"):
        wait_until(lambda: offsets(database, topic))
        wait_until(lambda: Archive("memory://times").files("page_view"))
    [name] = Archive("memory://times").files("page_view")
    [[event]] = Archive("memory://times").read(name).values()
    assert event.time is not None
    assert event.time < earlier.timestamp() * 1000


def test_an_event_that_also_came_over_http_counts_once(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming
) -> None:
    posted = PageView("e1", "site1.com", "/a", f"{datetime.now(UTC):%F}")
    Counting(database, ClickRule(3, "user")).apply(PageView, {"b1": [posted]})
    kafka.send(topic, view("/a", EventId="e1"), view("/a", EventId="e2"))
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 2})
    assert views(database) == {"/a": 2}


def test_names_from_kafka_use_no_budget_and_are_known_from_then_on(
    database: Database,
    consuming: Consuming,
    kafka: Kafka,
    topic: str,
    journal: RedisJournal,
    config: Settings,
) -> None:
    journal.redis.set(LOADED_KEY, 1)
    with consuming(max_websites=0, max_pages=0):
        kafka.send(topic, b'{"Type": "PageView", "Url": "a.com/1"}')
        wait_until(lambda: reports.page_views(database, Page()).items)
    assert reports.page_views(database, Page()).items[0]["page"] == "/1"
    known = PageView(None, "a.com", "/1", "2026-11-24")
    names = KnownNames(journal.redis, replace(config, max_websites=0, max_pages=0))
    assert names.within_budgets([known], lambda: "a") == ([known], {})


def test_a_bad_message_becomes_one_dead_letter_with_its_offset_however_often_it_is_read(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming, journal: RedisJournal
) -> None:
    batch = b"[" + view("/a") + b',{"Type":"PageView"}]'
    kafka.send(topic, b"{", batch, b"", b"[" + b" " * 2_100_000 + b"]", partition=1)
    for _ in range(2):
        with consuming():
            wait_until(lambda: offsets(database, topic) == {1: 4})
        database[ConsumedOffset].update_many({}, {"$set": {"next": 0}})
    letters = dead_letters.newest(journal.redis, 10)[::-1]
    place = f"topic {topic}, partition 1, offset"
    assert [letter.reason["Kafka"] for letter in letters] == [
        [f"{place} 0"],
        [f"{place} 1, event 1"],
        [f"{place} 2"],
        [f"{place} 3"],
    ]
    assert letters[1].reason["Url"] == ["Missing data for required field."]
    assert bytes(letters[1].event) == b'{"Type":"PageView"}'


def test_an_event_that_cannot_be_counted_becomes_a_dead_letter_and_all_others_count(
    database: Database,
    kafka: Kafka,
    topic: str,
    consuming: Consuming,
    journal: RedisJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = Counting._page_views

    def fail(self: Counting, events: Sequence[PageView], session: Session) -> Any:
        if any(event.page == "/bad" for event in events):
            raise ValueError("it is bad")
        return count(self, events, session)

    monkeypatch.setattr(Counting, "_page_views", fail)
    several = b"[" + b",".join(map(view, ["/b", "/b", "/bad", "/b"])) + b"]"
    kafka.send(topic, view("/a"), view("/bad"), several, view("/a"))
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 4})
    assert views(database) == {"/a": 2, "/b": 3}
    letters = dead_letters.newest(journal.redis, 10)
    place = f"topic {topic}, partition 0, offset"
    assert [letter.reason for letter in letters] == [
        f"ValueError: it is bad ({place} {offset})" for offset in (2, 1)
    ]
    assert [json.loads(bytes(letter.batch))[0]["page"] for letter in letters] == ["/bad", "/bad"]


def test_another_consumer_counts_only_the_rest_of_a_partly_counted_message(
    database: Database,
    kafka: Kafka,
    topic: str,
    consuming: Consuming,
    config: Settings,
    journal: RedisJournal,
) -> None:
    progress = Progress(database, topic, GROUP)
    progress.read([0])
    progress.begin_pieces(0, 0)
    name = hashlib.blake2b(key(topic, 0, 0, GROUP).encode(), digest_size=16).hexdigest()
    today = f"{datetime.now(UTC):%F}"
    piece = Piece(f"{name}-page_view", [PageView(None, "site1.com", "/a", today)], whole=False)
    Counting(database, ClickRule(3, "user")).apply_pieces({PageView: [piece]})
    kafka.send(topic, b"[" + b",".join(map(view, ["/a", "/b"])) + b"]", view("/c"))
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 2})
    assert views(database) == {"/a": 1, "/b": 1, "/c": 1}


def test_an_event_that_becomes_too_old_does_not_shift_the_pieces_already_counted(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming
) -> None:
    progress = Progress(database, topic, GROUP)
    progress.read([0])
    progress.begin_pieces(0, 0)
    name = hashlib.blake2b(key(topic, 0, 0, GROUP).encode(), digest_size=16).hexdigest()
    today = f"{datetime.now(UTC):%F}"
    counted = [PageView(None, "site1.com", page, today) for page in ("/a", "/b")]
    piece = Piece(f"{name}-page_view", counted, whole=False)
    Counting(database, ClickRule(3, "user")).apply_pieces({PageView: [piece]})
    old = view("/a", Timestamp="2001-01-01T00:00:00Z")
    kafka.send(topic, b"[" + b",".join([old, *map(view, ["/b", "/c", "/d"])]) + b"]")
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 1})
    assert views(database) == {"/a": 1, "/b": 1, "/c": 1, "/d": 1}


def test_a_message_with_the_id_of_another_event_becomes_a_dead_letter(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming, journal: RedisJournal
) -> None:
    kafka.send(topic, view("/a", EventId="e1"), view("/b", EventId="e1"))
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 2} and not database[Outgoing].find_one())
    assert views(database) == {"/a": 1}
    [letter] = dead_letters.newest(journal.redis, 10)
    assert letter.collides


def test_a_consumer_killed_before_its_commit_neither_loses_nor_repeats_events(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming, start: Any
) -> None:
    kafka.send(topic, *[view(f"/{number % 7}") for number in range(100)])
    with start("-m", "tests.support.dying_consumer", "before") as process:
        process.wait(30)
    assert process.returncode == -signal.SIGKILL
    assert offsets(database, topic) == {}
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 100})
    assert sum(views(database).values()) == 100


@pytest.mark.proof
def test_consumers_in_a_group_share_a_topic_and_take_over_from_a_killed_one(
    database: Database, kafka: Kafka, topic: str, start: Any, tmp_path: Path
) -> None:
    def send(number: int) -> None:
        for partition in range(4):
            kafka.send(topic, *[view(f"/{partition}")] * number, partition=partition)

    def shared() -> bool:
        log = (tmp_path / "consumer.log").read_text()
        return "partitions [0, 1] " in log and "partitions [2, 3] " in log

    send(500)
    with start() as first:
        wait_until(lambda: sum(offsets(database, topic).values()) >= 500)
        with start():
            send(500)
            wait_until(shared)
            send(500)
            kill_group(first)
            send(500)
            wait_until(lambda: offsets(database, topic) == dict.fromkeys(range(4), 2_000))
    assert views(database) == {f"/{partition}": 2_000 for partition in range(4)}


def test_a_consumer_that_was_presumed_dead_rereads_and_counts_nothing_twice(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming
) -> None:
    kafka.send(topic, *[view("/a")] * 10)
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 10})
        # As if another consumer had counted the next four elsewhere.
        database[ConsumedOffset].update_many({"next": 10}, {"$set": {"next": 14}})
        kafka.send(topic, *[view("/a")] * 10)
        wait_until(lambda: offsets(database, topic) == {0: 20})
    assert views(database) == {"/a": 16}


def test_messages_wait_for_an_unavailable_database(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming, mongodb: Server
) -> None:
    kafka.send(topic, view("/a"))
    with consuming():
        wait_until(lambda: offsets(database, topic) == {0: 1})
        mongodb.kill()
        kafka.send(topic, view("/a"))
        mongodb.start()
        wait_until(lambda: offsets(database, topic) == {0: 2})
    assert views(database) == {"/a": 2}


def test_the_next_consumer_archives_and_mirrors_what_a_killed_one_counted(
    database: Database, kafka: Kafka, topic: str, consuming: Consuming, start: Any, tmp_path: Path
) -> None:
    archive = Archive(f"file://{tmp_path}/archive")
    mirror = KafkaTopic(kafka.brokers, f"mirror-{topic}")
    kafka.make(mirror.topic)
    keeping = {"archive": True, "archive_url": f"file://{tmp_path}/archive"}
    more = {"ARCHIVE": "1", "ARCHIVE_URL": f"file://{tmp_path}/archive"}
    kafka.send(topic, view("/a", EventId="e1"), view("/a", EventId="e1"))
    with start(
        "-m", "tests.support.dying_consumer", "after", KAFKA_PUBLISH="/".join(mirror), **more
    ) as process:
        process.wait(30)
    assert offsets(database, topic) == {0: 2}
    assert archive.files("page_view") == []
    kafka.send(topic, view("/b", EventId="e2"))
    with consuming(**keeping, kafka_publish=mirror):
        wait_until(lambda: offsets(database, topic) == {0: 3} and not database[Outgoing].find_one())
    assert views(database) == {"/a": 1, "/b": 1}
    batches = [archive.read(name) for name in archive.files("page_view")]
    archived = [event.event_id for batch in batches for of in batch.values() for event in of]
    assert archived == ["e1", "e2"]
    values = [msgspec.json.decode(value) for _, value in kafka.messages(mirror.topic, 2)]
    assert sorted(value["EventId"] for value in values) == ["e1", "e2"]


def test_a_topic_that_ends_before_the_counted_offset_is_not_counted_again(
    database: Database, kafka: Kafka, topic: str, config: Settings, journal: RedisJournal
) -> None:
    kafka.send(topic, view("/a"))
    source = KafkaTopic(kafka.brokers, topic)
    row = {"_id": f"{topic} 0 {GROUP}", "next": 500}
    database[ConsumedOffset].insert_one(row)
    stop = threading.Event()
    stopping = threading.Timer(20, stop.set)
    stopping.start()
    with pytest.raises(Broken, match=r"Partition 0 of .* ends at offset 1, but 500 were counted"):
        TopicConsumer(config, database, journal.redis, source, GROUP, stop).run()
    stopping.cancel()
    assert views(database) == {}


def test_the_topic_that_events_are_published_to_is_not_consumed(
    database: Database, journal: RedisJournal, kafka: Kafka, config: Settings
) -> None:
    source = KafkaTopic(kafka.brokers, "mirror")
    with pytest.raises(InvalidRequest, match="events would go in circles"):
        TopicConsumer(
            replace(config, kafka_publish=source),
            *(database, journal.redis, source, GROUP, threading.Event()),
        )
