"""How far groups have counted Kafka topics, and what they counted that has yet to go elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from mongoengine import Document
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from app.domain.events import QUEUE_OF, QUEUES, Event
from app.errors import EventstreamError
from app.store import migrations
from app.store.connection import Session, collection, deadline
from app.store.counting import Applied
from app.store.documents import ConsumedOffset, Outgoing, key

OFFSETS_SECONDS = 5.0
DUPLICATE_KEY = 11_000
_DECODE = {
    queue: msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
    for queue, kind in QUEUES.items()
}

Offsets = Mapping[int, int]
"""Of each partition, the offset of the first message that is not counted."""


class Overtaken(EventstreamError):
    """Another consumer of the group has counted these messages: nothing was done."""


class Left(NamedTuple):
    """A batch that counted, and has yet to be archived and mirrored."""

    batch: str
    queue: str
    events: Sequence[Event]


Rows = Mapping[type[Document], Sequence[Mapping[str, Any]]]
"""What is known of every group and topic, as documents of each collection."""


def known() -> Rows:
    """What this database knows of every group and topic. Raises Unavailable."""
    with deadline(OFFSETS_SECONDS):
        return {kind: list(collection(kind).find({})) for kind in (ConsumedOffset, Outgoing)}


def put(rows: Rows) -> None:
    """Put what another database knew into this one, which knows nothing. Raises Unavailable."""
    with deadline(OFFSETS_SECONDS):
        for kind, of_kind in rows.items():
            if of_kind:
                collection(kind).insert_many(of_kind)


def left_in(rows: Rows) -> list[Left]:
    """The batches in rows of Outgoing."""
    return [
        Left(row["_id"], row["queue"], _DECODE[row["queue"]](row["events"]))
        for row in rows[Outgoing]
    ]


class Progress:
    """How far a group has counted a topic.

    Methods without a session raise Unavailable where the database is away.
    """

    def __init__(self, topic: str, group: str) -> None:
        self._topic = topic
        self._group = group
        self._consumer = key(topic, group)

    def read(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offsets of these partitions; 0 where the group has not counted any of it."""
        by_key = {self._key(partition): partition for partition in partitions}
        with deadline(OFFSETS_SECONDS):
            migrations.prepare()
            offsets = collection(ConsumedOffset)
            # There before a transaction looks for them: it then has to update alone.
            begun = [
                UpdateOne({"_id": name}, {"$setOnInsert": {"next": 0}}, upsert=True)
                for name in by_key
            ]
            if begun:
                try:
                    offsets.bulk_write(begun, ordered=False)
                except BulkWriteError as error:  # another consumer was at it too
                    if any(one["code"] != DUPLICATE_KEY for one in error.details["writeErrors"]):
                        raise
            found = offsets.find({"_id": {"$in": list(by_key)}})
            return {by_key[row["_id"]]: row["next"] for row in found}

    def move(self, before: Offsets, after: Offsets, session: Session) -> None:
        """Set offsets, in a transaction. Raises Overtaken unless they are what they were before."""
        for partition, offset in after.items():
            where = {"_id": self._key(partition), "next": before[partition]}
            moved = collection(ConsumedOffset).update_one(
                where, {"$set": {"next": offset}}, session=session
            )
            if not moved.matched_count:
                raise Overtaken(f"partition {partition} is no longer at {before[partition]}")

    def leave(self, applied: Mapping[type[Event], Applied], session: Session) -> None:
        """Note what counted, in a transaction, to be archived and mirrored after it."""
        rows = [
            {
                "_id": batch,
                "consumer": self._consumer,
                "queue": QUEUE_OF[kind],
                "events": msgspec.json.encode(events),
            }
            for kind, of_kind in applied.items()
            for batch, events in of_kind.counted.items()
            if events
        ]
        if rows:
            collection(Outgoing).insert_many(rows, session=session)

    def left(self) -> list[Left]:
        """What consumers of the group noted with `leave`, until `done` with it."""
        with deadline(OFFSETS_SECONDS):
            rows = list(collection(Outgoing).find({"consumer": self._consumer}))
        return left_in({Outgoing: rows})

    def done(self, batches: Iterable[str]) -> None:
        """Forget what has been archived and mirrored."""
        with deadline(OFFSETS_SECONDS):
            collection(Outgoing).delete_many({"_id": {"$in": list(batches)}})

    def _key(self, partition: int) -> str:
        return key(self._topic, partition, self._group)
