"""The steps in the life of an event; each runs in its own process, which may die in it."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from confluent_kafka import Producer
from pymongo import MongoClient
from redis import Redis

from app.counting import delivery, forget, pipeline
from app.counting.kafka_consumer import TopicConsumer
from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal.journal import Journal
from app.journal.rabbit_journal import RabbitJournal
from app.settings import KafkaTopic, settings
from app.store import documents, folding, ledger, months
from app.store.database import Session
from app.store.documents import key as key_of
from app.web.application import create_app
from tasks import app as tasks
from tasks import base, resources

USER = "u1"
GROUP = "collector"
NOW = datetime.now(UTC)
MONTH = NOW.strftime("%Y-%m")
NEXT_MONTH = (NOW.replace(day=1) + timedelta(days=32)).replace(day=1, hour=2)


def posted(website: str, *, plain: bool) -> list[dict[str, Any]]:
    """What a site posts: three views, two impressions and three hits, each with an id.

    With `plain`, also a view without an id.
    """
    ids: list[dict[str, Any]] = [
        {"Type": "PageView", "Url": f"{website}/ids", "EventId": f"v{n}"} for n in range(3)
    ]
    ids += [
        {
            "Type": "AdImpression",
            "Url": website,
            "EventId": f"i{n}",
            "Meta": {"UserId": f"{USER}.{website}.{n}", "AdId": "1"},
        }
        for n in range(2)
    ]
    ids += [
        {
            "Type": "AdClick",
            "Url": website,
            "EventId": f"c{n}",
            "Meta": {"UserId": f"{USER}.{website}.0", "AdId": "1"},
        }
        for n in range(3)
    ]
    without: list[dict[str, Any]] = [{"Type": "PageView", "Url": f"{website}/plain"}]
    return [*ids, *(without if plain else [])]


def _post(website: str, *, plain: bool = True) -> int:
    with create_app(settings()).test_client() as client:
        return client.post("/events", json=posted(website, plain=plain)).status_code


def _count(queue: str, _website: str, *, folds: bool = True) -> None:
    base.LINGER_SECONDS = 0.0
    wait = 0.0 if folds else float("inf")
    pipeline.FOLD_EVERY_SECONDS = pipeline.FOLD_IDLE_SECONDS = pipeline.FOLD_WITHIN_SECONDS = wait
    if not folds:
        base.WORK_SECONDS = 0.0
    tasks.loader.import_default_modules()
    delivery.LOOK_SECONDS = 0.0
    task = tasks.tasks[f"tasks.{queue}"]
    task.count_waiting(queue)
    task.pipeline.deliver_left(queue)


def _fold(_website: str) -> None:
    for kind in QUEUES.values():
        folding.fold(resources.database(), kind.__name__)


def _end_month(_website: str) -> None:
    for _ in months.portions(resources.database(), MONTH, NEXT_MONTH):
        pass


def _expire(_website: str) -> None:
    while ledger.expire(resources.database(), datetime.now(UTC) + timedelta(days=9)):
        pass  # each call stops after some seconds


def _produce(website: str) -> None:
    """Write what a site posts to a topic with its name: one message with ids, one without."""
    *ids, plain = posted(website, plain=True)
    producer = Producer({"bootstrap.servers": os.environ["KAFKA_BROKER"]})
    for message in (ids, plain):
        producer.produce(website, msgspec.json.encode(message), partition=0)
    assert producer.flush(10) == 0


def _consume(website: str) -> bool:
    stop = threading.Event()
    source = KafkaTopic(os.environ["KAFKA_BROKER"], website)
    consumer = TopicConsumer(
        settings(), resources.database(), resources.redis(), source, GROUP, stop
    )
    threading.Thread(target=_stop_when_counted, args=(website, stop), daemon=True).start()
    consumer.run()
    return True


def _stop_when_counted(topic: str, stop: threading.Event) -> None:
    """Stop a consumer once both messages are counted and delivered; its calls do not count."""
    client: MongoClient[dict[str, Any]] = MongoClient(os.environ["DIRECT_MONGODB_URL"])
    database = client.get_default_database()
    offset = database[documents.ConsumedOffset._get_collection_name()]
    left = database[documents.Outgoing._get_collection_name()]
    while not offset.find_one({"_id": key_of(topic, 0, GROUP), "next": 2}) or left.find_one({}):
        time.sleep(0.05)
    stop.set()


def _forget(website: str) -> None:
    user = f"{USER}.{website}.0"
    forget.forget(
        user,
        None,
        resources.database(),
        resources.archive(),
        resources.redis(),
        datetime.now(UTC),
    )


STEPS: dict[str, Callable[[str], Any]] = {
    "post": _post,
    "post again": partial(_post, plain=False),
    **{f"count {queue}": partial(_count, queue) for queue in QUEUES},
    **{f"apply {queue}": partial(_count, queue, folds=False) for queue in QUEUES},
    "fold": _fold,
    "month end": _end_month,
    "expire": _expire,
    "forget": _forget,
    "produce": _produce,
    "consume": _consume,
}


def hand_out(journal: Journal, redis: Redis) -> None:
    """Let whatever a process took or started to write expire at once."""
    has_rabbit = isinstance(journal, RabbitJournal)
    for queue in QUEUES:
        for state in ("taken", *("writing", "receiving")[: 2 * has_rabbit]):
            key = f"journal:{queue}:{state}"
            begun: Any = redis.zrange(key, 0, -1)
            if begun:
                redis.zadd(key, dict.fromkeys(begun, 0))
    if has_rabbit:
        journal.clean_up()


def remember_nothing() -> None:
    """Make the ledger forget every batch, as if there were no ledger."""

    def entries(batches: Collection[str], session: Session) -> dict[str, ledger.Entry]:
        return {batch: ledger.Entry(batch) for batch in batches}

    def write(changed: Iterable[ledger.Entry], session: Session) -> None:
        pass

    ledger.entries, ledger.write = entries, write


def set_environment(environment: Mapping[str, str]) -> None:
    """Give this process its settings; it was forked from one without any."""
    os.environ |= environment
    settings.cache_clear()
    tasks.conf.broker_url = settings().broker_url


def run(
    step: str, website: str, environment: Mapping[str, str], broken: bool, parent: Connection
) -> None:
    """Run a step once the parent says so, and send what it returns, or None if it has to wait.

    With `broken`, the ledger remembers no batch.
    """
    set_environment(environment)
    if broken:
        remember_nothing()
    parent.recv()
    try:
        parent.send(STEPS[step](website))
    except Unavailable:
        parent.send(None)
