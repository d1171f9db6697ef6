"""How far consumer groups have counted Kafka topics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mongoengine import Document
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from app.errors import EventstreamError
from app.store import migrations
from app.store.database import Database, Session, deadline
from app.store.documents import ConsumedOffset, Outgoing, key

OFFSETS_SECONDS = 5.0
DUPLICATE_KEY = 11_000
Offsets = Mapping[int, int]
"""The offset of the first message that is not counted yet, for each partition."""


class Overtaken(EventstreamError):
    """Another consumer of the group has counted these messages. Nothing was changed."""


class BegunInPieces(EventstreamError):
    """Pieces of this message were counted. Nothing was changed: count the rest in pieces too."""


Records = Mapping[type[Document], Sequence[Mapping[str, Any]]]
"""What a database knows about every group and topic: the documents of each collection."""


def known(database: Database) -> Records:
    """What this database knows about every group and topic. Raises Unavailable."""
    with deadline(OFFSETS_SECONDS):
        return {kind: list(database[kind].find({})) for kind in (ConsumedOffset, Outgoing)}


def put(database: Database, rows: Records) -> None:
    """Insert the records of another database into this empty one. Raises Unavailable."""
    with deadline(OFFSETS_SECONDS):
        for kind, of_kind in rows.items():
            if of_kind:
                database[kind].insert_many(of_kind)


class Progress:
    """How far a group has counted a topic.

    Methods without a session raise Unavailable if the database can't be reached.
    """

    def __init__(self, database: Database, topic: str, group: str) -> None:
        self._database = database
        self._topic = topic
        self._group = group

    def read(self, partitions: Iterable[int]) -> dict[int, int]:
        """The next offset of each partition, 0 if the group has counted nothing of it."""
        by_key = {self._key(partition): partition for partition in partitions}
        with deadline(OFFSETS_SECONDS):
            migrations.prepare(self._database)
            offsets = self._database[ConsumedOffset]
            # Create the documents now, so that a transaction only has to update them.
            inserts = [
                UpdateOne({"_id": name}, {"$setOnInsert": {"next": 0}}, upsert=True)
                for name in by_key
            ]
            if inserts:
                try:
                    offsets.bulk_write(inserts, ordered=False)
                except BulkWriteError as error:  # another consumer created them too
                    if any(one["code"] != DUPLICATE_KEY for one in error.details["writeErrors"]):
                        raise
            found = offsets.find({"_id": {"$in": list(by_key)}})
            return {by_key[row["_id"]]: row["next"] for row in found}

    def move(
        self, before: Offsets, after: Offsets, session: Session, *, in_pieces: bool = False
    ) -> None:
        """Move offsets in a transaction. Raises Overtaken unless they are at `before`.

        Raises BegunInPieces if the next message is already being counted in pieces. Set `in_pieces`
        if this transaction counts the rest of them.
        """
        for partition, offset in after.items():
            query: dict[str, Any] = {"_id": self._key(partition), "next": before[partition]}
            if not in_pieces:
                query["in_pieces"] = {"$ne": True}
            moved = session[ConsumedOffset].update_one(
                query, {"$set": {"next": offset, "in_pieces": False}}
            )
            if not moved.matched_count:
                found = session[ConsumedOffset].find_one(
                    {"_id": self._key(partition), "next": before[partition]}
                )
                if found:
                    raise BegunInPieces
                raise Overtaken(f"partition {partition} is no longer at {before[partition]}")

    def begin_pieces(self, partition: int, offset: int) -> None:
        """Record that the next message, at this offset, is counted in pieces from now on.

        Raises Overtaken if the message is not the next one.
        """
        with deadline(OFFSETS_SECONDS):
            noted = self._database[ConsumedOffset].update_one(
                {"_id": self._key(partition), "next": offset}, {"$set": {"in_pieces": True}}
            )
        if not noted.matched_count:
            raise Overtaken(f"partition {partition} is no longer at {offset}")

    def _key(self, partition: int) -> str:
        return key(self._topic, partition, self._group)
