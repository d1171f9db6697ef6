"""Events that were counted and must still reach the archive, the mirror or the dead letters.

The transaction that counts events writes them here. Whoever delivers them deletes them afterwards.
If a process dies in between, another process delivers them: every event arrives at least once.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from app.domain.events import QUEUE_OF, QUEUES, Event
from app.store.counting import Applied, CountedPiece
from app.store.database import Database, Session, deadline
from app.store.documents import Outgoing

FROM_JOURNAL = "journal"
"""The source of events that came over HTTP."""
OUTBOX_SECONDS = 5.0
_DECODE = {
    queue: msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
    for queue, kind in QUEUES.items()
}


class Undelivered(NamedTuple):
    """The counted events of a batch, or with `collides` those whose ids belong to other events."""

    row: str
    queue: str
    piece: CountedPiece
    collides: bool


class Outbox:
    """The undelivered events of one source. Methods without a session raise Unavailable.

    With `keeps_counted` it holds the counted events, for an archive or a mirror. Otherwise it holds
    only collisions.
    """

    def __init__(self, database: Database, source: str, *, keeps_counted: bool) -> None:
        self._database = database
        self._source = source
        self._keeps_counted = keeps_counted

    def leave(self, applied: Mapping[type[Event], Applied], session: Session) -> list[Undelivered]:
        """Write, in a transaction, the events to deliver after it. Returns them."""
        outgoing = []
        for kind, of_kind in applied.items():
            queue = QUEUE_OF[kind]
            for piece in of_kind.counted if self._keeps_counted else ():
                outgoing.append(Undelivered(piece.name, queue, piece, collides=False))
            by_batch: defaultdict[str, dict[int, Event]] = defaultdict(dict)
            for batch, position, event in of_kind.collisions:
                by_batch[batch][position] = event
            for batch, events in by_batch.items():
                piece = CountedPiece(batch, batch, events)
                row = f"{batch} collisions {min(events)}"
                outgoing.append(Undelivered(row, queue, piece, collides=True))
        outgoing = [undelivered for undelivered in outgoing if undelivered.piece.events]
        if outgoing:
            session[Outgoing].insert_many(list(map(self._row, outgoing)), ordered=False)
        return outgoing

    def rows_left(self, queue: str | None = None) -> list[str]:
        """The keys of the rows that are not delivered yet, of one queue or of all queues."""
        of_queue = {} if queue is None else {"queue": queue}
        with deadline(OUTBOX_SECONDS):
            found = self._database[Outgoing].find(
                {"consumer": self._source, **of_queue}, {"_id": 1}
            )
            return [row["_id"] for row in found]

    def read(self, rows: Sequence[str]) -> list[Undelivered]:
        """The contents of these rows, except those that were delivered meanwhile."""
        with deadline(OUTBOX_SECONDS):
            found = self._database[Outgoing].find({"_id": {"$in": list(rows)}})
            return sorted(map(undelivered_in, found), key=attrgetter("queue"))

    def done(self, delivered: Collection[Undelivered]) -> None:
        """Delete these rows, which were delivered."""
        if delivered:
            names = [undelivered.row for undelivered in delivered]
            with deadline(OUTBOX_SECONDS):
                self._database[Outgoing].delete_many({"_id": {"$in": names}})

    def _row(self, undelivered: Undelivered) -> dict[str, Any]:
        piece = undelivered.piece
        return {
            "_id": undelivered.row,
            "consumer": self._source,
            "queue": undelivered.queue,
            "piece": piece.name,
            "batch": piece.batch,
            "positions": msgspec.json.encode(list(piece.events)),
            "events": msgspec.json.encode(list(piece.events.values())),
            "collides": undelivered.collides,
        }


def undelivered_in(row: Mapping[str, Any]) -> Undelivered:
    """The contents of a row of Outgoing. The first release wrote no positions of whole batches."""
    events: Sequence[Event] = _DECODE[row["queue"]](row["events"])
    positions = msgspec.json.decode(row["positions"]) if row.get("positions") else count()
    return Undelivered(
        row["_id"],
        row["queue"],
        CountedPiece(
            row.get("piece", row["_id"]),
            row.get("batch", row["_id"]),
            dict(zip(positions, events, strict=False)),
        ),
        row.get("collides", False),
    )


def queues_left(database: Database) -> set[str]:
    """The queues with events from the journal that are not delivered yet. Raises Unavailable."""
    with deadline(OUTBOX_SECONDS):
        return set(database[Outgoing].distinct("queue", {"consumer": FROM_JOURNAL}))
