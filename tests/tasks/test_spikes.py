import itertools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgspec
import pytest
from bson import ObjectId

import celeryconfig
from app import logs
from app.counting.pipeline import Pipeline
from app.domain.events import PageView
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import live
from app.redis.live import Counted, Counts
from app.redis.spikes import (
    MAX_A_MINUTE,
    MAX_TO_POST,
    POST_AGAIN_SECONDS,
    POST_SECONDS,
    Spike,
    add_to_post,
    is_any_to_post,
    is_late_to_post,
    latest,
    next_to_post,
)
from app.settings import Settings
from app.store.database import Database
from app.store.documents import Change
from app.store.drops import Drop
from app.store.ledger import Piece
from tasks import spikes
from tasks.spikes import find_drops, find_spikes, spike_webhook
from tests.conftest import SetClock
from tests.support.hours import put_hour
from tests.support.receiver import Receiver


def found(age: float = 0) -> list[Spike]:
    return [Spike("page_view", "site1.com", "/a", 20, 1.0, int(time.time() - age))]


@pytest.fixture
def configure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    def configure(**changes: Any) -> None:
        monkeypatch.setattr(spikes, "settings", lambda: replace(settings, **changes))

    configure()
    return configure


def view_often(journal: RedisJournal, queue: str = "page_view", number: int = 20) -> None:
    minute = int(time.time() // 60)
    by_minute = {("site1.com", "/a", minute - 20): 1, ("site1.com", "/a", minute): number}
    live.record(journal.redis, queue, Counted({}, Counts(), by_minute), time.time())


def test_a_spike_causes_one_log_line_and_one_message_to_viewers(
    journal: RedisJournal, configure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channel = journal.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    channel.subscribe(live.SPIKE_CHANNEL)
    channel.get_message(timeout=1)
    view_often(journal)
    with caplog.at_level(logging.WARNING):
        assert [find_spikes(), find_spikes()] == [1, 0]
    (line,) = caplog.messages
    assert "spike: 20 of page_view" in line
    message = channel.get_message(timeout=1)
    assert msgspec.json.decode(message["data"])["name"] == "/a"
    assert channel.get_message(timeout=0.1) is None
    channel.close()
    assert journal.redis.llen("maintenance") == 0, "there is no webhook"


def test_no_log_shows_the_address_of_the_webhook(
    journal: RedisJournal, configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("DEBUG")
    configure(spike_webhook=f"{receiver.url}/hunter2", spike_webhook_private=True)
    with caplog.at_level(logging.INFO):
        add_to_post(journal.redis, found(), time.time())
        spike_webhook()
    assert receiver.got
    assert "hunter2" not in caplog.text


def test_the_webhook_has_its_own_task(journal: RedisJournal, configure: Any) -> None:
    configure(spike_webhook="http://127.0.0.1:1/")
    view_often(journal)
    find_spikes()
    message = msgspec.json.decode(journal.redis.lindex("maintenance", 0))  # type: ignore[arg-type]
    assert message["headers"]["task"] == "tasks.spike_webhook"


def test_the_settings_decide_what_a_spike_is(journal: RedisJournal, configure: Any) -> None:
    view_often(journal)
    configure(spike_minimum=21)
    assert find_spikes() == 0
    configure(spike_minimum=20)
    assert find_spikes() == 1
    view_often(journal, "ad_click", 4)
    configure(spike_minimum_clicks=5)
    assert find_spikes() == 0
    configure(spike_minimum=100, spike_minimum_clicks=4)
    assert find_spikes() == 1


def test_the_webhook_gets_the_spikes_with_a_signature(
    journal: RedisJournal, configure: Any, receiver: Receiver
) -> None:
    configure(spike_webhook=receiver.url, spike_webhook_secret="secret", spike_webhook_private=True)
    spikes_found = found()
    add_to_post(journal.redis, spikes_found, time.time())
    spike_webhook()
    ((_, headers, body),) = receiver.got
    assert msgspec.json.decode(body) == {"spikes": msgspec.to_builtins(spikes_found)}
    assert headers["X-Eventstream-Signature"].startswith("sha256=")


@pytest.mark.parametrize("status", [500, 429])
def test_a_webhook_that_fails_is_tried_again_later_and_delays_nothing(
    journal: RedisJournal, configure: Any, receiver: Receiver, status: int
) -> None:
    configure(spike_webhook=receiver.url, spike_webhook_private=True)
    receiver.status = status
    now = time.time()
    add_to_post(journal.redis, found(), now)
    spike_webhook()
    spike_webhook()
    assert len(receiver.got) == 1
    assert not is_any_to_post(journal.redis, now + POST_AGAIN_SECONDS - 1)
    assert is_any_to_post(journal.redis, now + POST_AGAIN_SECONDS + 2)
    receiver.status = 200
    body: Any = journal.redis.zrange("spikes:to_post", 0, 0)[0]
    journal.redis.zadd("spikes:to_post", {body: now})
    spike_webhook()
    assert len(receiver.got) == 2
    assert journal.redis.zcard("spikes:to_post") == 0


def test_an_old_spike_is_tried_only_once_more(
    journal: RedisJournal, configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(spike_webhook=receiver.url, spike_webhook_private=True)
    receiver.status = 500
    add_to_post(journal.redis, found(age=POST_SECONDS["spike"] + 1), time.time())
    spike_webhook()
    assert len(receiver.got) == 1
    assert journal.redis.zcard("spikes:to_post") == 0
    assert "spikes are not posted: " in caplog.messages[-1]


def test_only_the_latest_spikes_wait_to_be_posted(journal: RedisJournal) -> None:
    for number in range(MAX_TO_POST + 2):
        spike = msgspec.structs.replace(found()[0], count=number)
        add_to_post(journal.redis, [spike], 1_000 + number)
    assert journal.redis.zcard("spikes:to_post") == MAX_TO_POST
    oldest = next_to_post(journal.redis, 1_002)
    assert oldest is not None
    assert msgspec.json.decode(oldest)["spikes"][0]["count"] == 2


def test_a_webhook_inside_the_network_is_refused_unless_allowed(
    journal: RedisJournal, configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(spike_webhook=receiver.url)
    add_to_post(journal.redis, found(), time.time())
    spike_webhook()
    assert receiver.got == []
    assert "SPIKE_WEBHOOK_PRIVATE" in caplog.messages[-1]


def test_beat_looks_for_spikes_every_few_seconds() -> None:
    entry = celeryconfig.beat_schedule["spikes"]
    assert entry["task"] == find_spikes.name
    assert entry["schedule"] <= 10


def test_an_import_of_old_events_has_no_spike_and_live_views_among_them_still_do(
    journal: RedisJournal, configure: Any, settings: Settings, database: Database
) -> None:
    pipeline = Pipeline(settings, database, journal.redis)
    now = int(time.time() * 1000)
    batches = (str(number) for number in itertools.count())

    def count(page: str, minutes_ago: float, number: int) -> None:
        at = int(now - minutes_ago * 60_000)
        view = PageView(None, "site1.com", page, "2026-11-24", at)
        pipeline.apply({PageView: [Piece(next(batches), [view] * number)]})

    for page in ("/a", "/b"):
        for ago in range(40, 0, -5):
            count(page, ago, 1)
    for days in range(30, 0, -1):
        count("/a", days * 1_440, 500)
        assert find_spikes() == 0
    count("/b", 0, 20)
    assert find_spikes() == 1
    assert [spike.name for spike in latest(journal.redis)] == ["/b"]


ENDED = datetime(2020, 11, 25, 13, tzinfo=UTC)
SEARCHED = ENDED + timedelta(minutes=10)
DROPS = [
    Spike("page_view", "b.com", "", 20, 200.0, int(ENDED.timestamp()) - 3600, kind="drop"),
    Spike("page_view", "a.com", "", 10, 100.0, int(ENDED.timestamp()) - 3600, kind="drop"),
]


@pytest.fixture
def dropped(database: Database) -> None:
    """Two websites that drop in the hour before ENDED."""
    for website, times in (("a.com", 1), ("b.com", 2)):
        for week, number in enumerate((10, 100, 100, 100, 100)):
            began = ENDED - timedelta(weeks=week, hours=1)
            put_hour(database, website, began, number * times)


def search(minutes: float = 0) -> int:
    """Search some minutes after late events were waited for."""
    number: int = find_drops((SEARCHED + timedelta(minutes=minutes)).isoformat())
    return number


@pytest.mark.usefixtures("dropped")
def test_a_drop_is_announced_once_where_spikes_are(
    journal: RedisJournal, configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(spike_webhook=receiver.url, spike_webhook_private=True)
    channel = journal.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    channel.subscribe(live.DROP_CHANNEL)
    channel.get_message(timeout=1)
    assert [search(minutes) for minutes in (-1, 0, 1, 2)] == [0, 0, 0, 2]
    for key in journal.redis.scan_iter("spikes:announced:*"):
        journal.redis.delete(key)  # as after ten minutes
    assert search(13) == 0
    messages = [channel.get_message(timeout=1)["data"] for _ in DROPS]
    channel.close()
    assert [msgspec.json.decode(message, type=Spike) for message in messages] == DROPS
    assert msgspec.json.decode(messages[0])["kind"] == "drop"
    assert latest(journal.redis) == DROPS[::-1]
    spike_webhook()
    ((_, _, body),) = receiver.got
    assert msgspec.json.decode(body) == {"drops": msgspec.to_builtins(DROPS)}
    assert caplog.messages[:2] == [
        "drop: 20 of page_view in the hour from 2020-11-25T12+00:00 for 'b.com', "
        "200.0 on average in that hour of other weeks",
        "drop: 10 of page_view in the hour from 2020-11-25T12+00:00 for 'a.com', "
        "100.0 on average in that hour of other weeks",
    ]


@pytest.mark.usefixtures("dropped")
def test_of_workers_that_search_at_once_only_one_announces_a_drop(
    journal: RedisJournal, configure: Any
) -> None:
    search()
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(search, [2, 2, 2, 2])) == len(DROPS)


@pytest.mark.usefixtures("dropped")
def test_an_hour_is_not_searched_while_its_events_wait(
    journal: RedisJournal, configure: Any
) -> None:
    assert search() == 0
    journal.write([Batch("b1", "ad_click", b"[]")])
    accepted = SEARCHED.timestamp()
    journal.redis.zadd("journal:ad_click:waiting", {"b1": accepted - 1})
    assert search(3) == 0
    journal.redis.zadd("journal:ad_click:waiting", {"b1": accepted})  # later ones
    assert [search(4), search(5), search(6)] == [0, 0, 2]


@pytest.mark.usefixtures("dropped")
def test_an_hour_is_not_searched_while_its_events_are_not_in_the_counts(
    database: Database, configure: Any
) -> None:
    assert search() == 0
    counted = SEARCHED + timedelta(seconds=60)
    for number in (0, 1):
        change = ObjectId.from_datetime(counted + timedelta(seconds=number))
        database[Change].insert_one({"_id": change, "kind": "PageView", "counts": b"{}"})
    assert search(3) == 0
    database[Change].delete_one({"_id": ObjectId.from_datetime(counted)})
    assert search(4) == 2


@pytest.mark.usefixtures("dropped")
def test_the_largest_drops_of_an_hour_are_announced_with_the_number_of_others(
    database: Database, journal: RedisJournal, configure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MAX_A_MINUTE):
        for week in range(1, 5):
            began = ENDED - timedelta(weeks=week, hours=1)
            put_hour(database, f"{number}.com", began, 1_000)
    search()
    assert search(2) == MAX_A_MINUTE
    assert latest(journal.redis)[0].more == 2
    assert caplog.messages[-1] == "2 more drops are not announced"


@pytest.mark.usefixtures("dropped")
def test_nothing_drops_while_the_clocks_disagree(
    configure: Any, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spikes, "LATE", timedelta())
    monkeypatch.setattr(spikes, "WITH_WORKERS_SECONDS", 0.0)
    asked: list[str] = []

    def find(_: Database, hour: str, __: tzinfo) -> list[Drop]:
        asked.append(hour)
        return []

    monkeypatch.setattr(spikes, "find", find)
    set_clock(timedelta(hours=1))
    find_drops()
    assert not asked
    set_clock(timedelta())
    find_drops()
    assert asked


def test_a_drop_is_posted_until_two_hours_after_its_hour_began(journal: RedisJournal) -> None:
    add_to_post(journal.redis, DROPS, 0)
    body = next_to_post(journal.redis, 0)
    assert body is not None
    began = ENDED.timestamp() - 3600
    assert not is_late_to_post(body, began + 7_200)
    assert is_late_to_post(body, began + 7_201)


def test_beat_looks_for_drops_every_minute() -> None:
    entry = celeryconfig.beat_schedule["drops"]
    assert (entry["task"], entry["schedule"]) == (find_drops.name, 60.0)
