"""How far groups have counted Kafka topics, and what they counted that has yet to go elsewhere."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import msgspec
from mongoengine import Document
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from app.domain.events import QUEUE_OF, QUEUES, Event
from app.errors import EventstreamError
from app.store import migrations
from app.store.connection import Session, collection, deadline
from app.store.counting import Applied, CountedPiece
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


class BegunInPieces(EventstreamError):
    """Pieces of this message are counted: nothing was done, the rest is to be counted likewise."""


class Left(NamedTuple):
    """What counted of a batch, or collided there, and has yet to be sent on. `row` names it."""

    row: str
    queue: str
    piece: CountedPiece
    collides: bool


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
    """What is in rows of Outgoing."""
    return [
        Left(
            row["_id"],
            row["queue"],
            CountedPiece(
                row.get("piece", row["_id"]),
                row.get("batch", row["_id"]),
                _events(row["queue"], row["events"], row.get("positions")),
            ),
            row.get("collides", False),
        )
        for row in rows[Outgoing]
    ]


def _events(queue: str, events: bytes, positions: bytes | None) -> dict[int, Event]:
    """Events by their positions; without these, as the first release left them, in order."""
    found = _DECODE[queue](events)
    return dict(zip(msgspec.json.decode(positions) if positions else count(), found, strict=False))


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

    def move(
        self, before: Offsets, after: Offsets, session: Session, *, in_pieces: bool = False
    ) -> None:
        """Set offsets, in a transaction. Raises Overtaken unless they are what they were before.

        Raises BegunInPieces where the next message is one of which pieces are counted, unless the
        rest of these is what the transaction counts.
        """
        for partition, offset in after.items():
            where: dict[str, Any] = {"_id": self._key(partition), "next": before[partition]}
            if not in_pieces:
                where["in_pieces"] = {"$ne": True}
            moved = collection(ConsumedOffset).update_one(
                where, {"$set": {"next": offset, "in_pieces": False}}, session=session
            )
            if not moved.matched_count:
                found = collection(ConsumedOffset).find_one(
                    {"_id": self._key(partition), "next": before[partition]}, session=session
                )
                if found:
                    raise BegunInPieces
                raise Overtaken(f"partition {partition} is no longer at {before[partition]}")

    def begin_pieces(self, partition: int, offset: int) -> None:
        """Note that the message at this offset, the next one, is counted in pieces from now on.

        Raises Overtaken where it is not the next one.
        """
        with deadline(OFFSETS_SECONDS):
            noted = collection(ConsumedOffset).update_one(
                {"_id": self._key(partition), "next": offset}, {"$set": {"in_pieces": True}}
            )
        if not noted.matched_count:
            raise Overtaken(f"partition {partition} is no longer at {offset}")

    def leave(
        self, applied: Mapping[type[Event], Applied], session: Session, *, counted: bool
    ) -> list[Left]:
        """Note in a transaction what is to be sent on after it, and return it.

        That is what collided, and with `counted`, for an archive or a mirror, what counted.
        """
        left = []
        for kind, of_kind in applied.items():
            queue = QUEUE_OF[kind]
            for piece in of_kind.counted if counted else ():
                left.append(Left(piece.name, queue, piece, collides=False))
            by_batch: defaultdict[str, dict[int, Event]] = defaultdict(dict)
            for batch, position, event in of_kind.collisions:
                by_batch[batch][position] = event
            for batch, events in by_batch.items():
                piece = CountedPiece(batch, batch, events)
                left.append(Left(f"{batch} collisions", queue, piece, collides=True))
        rows = [
            {
                "_id": one.row,
                "consumer": self._consumer,
                "queue": one.queue,
                "piece": one.piece.name,
                "batch": one.piece.batch,
                "positions": msgspec.json.encode(list(one.piece.events)),
                "events": msgspec.json.encode(list(one.piece.events.values())),
                "collides": one.collides,
            }
            for one in left
            if one.piece.events
        ]
        if rows:
            collection(Outgoing).insert_many(rows, session=session)
        return left

    def left(self) -> list[Left]:
        """What consumers of the group noted with `leave`, until `done` with it."""
        with deadline(OFFSETS_SECONDS):
            rows = list(collection(Outgoing).find({"consumer": self._consumer}))
        return left_in({Outgoing: rows})

    def done(self, left: Left) -> None:
        """Forget what has been sent on."""
        with deadline(OFFSETS_SECONDS):
            collection(Outgoing).delete_one({"_id": left.row})

    def _key(self, partition: int) -> str:
        return key(self._topic, partition, self._group)
