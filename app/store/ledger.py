"""The record of what was counted: batches by their ids, and events by their senders' ids."""

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
from mongoengine import Document
from pymongo import UpdateOne

from app.domain.event_ids import claim_of, content_of
from app.domain.events import Event
from app.store import clock
from app.store.database import Database, Session, deadline
from app.store.documents import (
    LEDGER_SECONDS,
    SEEN_SECONDS,
    AppliedBatch,
    Claim,
    Expiry,
    Schema,
    SeenEvent,
)

EXPIRED_AT_ONCE = 1_000
EXPIRE_SECONDS = 3.0
SEEN_EVENTS = {"_id": "seen_events"}
"""The document of Schema that holds until when SeenEvent must be looked up."""

_DOCUMENTS = {"batches": AppliedBatch, "claims": Claim, "events": SeenEvent}
_KEPT_SECONDS = {"batches": LEDGER_SECONDS, "claims": SEEN_SECONDS}

PIECE_NAME = re.compile(r"(.+):(\d+)-(\d+)")
"""The name of a piece that is not a whole batch: the batch, the first position, and the one after
the last."""

Span = tuple[int, int]
"""Positions in a batch: the first one, and the one after the last."""


class Piece(NamedTuple):
    """Consecutive events of a batch, often all of them. The first is at position `start`.

    None stands for an event that must not be counted. Reports show the events of `late` pieces
    after all others.
    """

    batch: str
    events: Sequence[Any]
    start: int = 0
    whole: bool = True
    late: bool = False

    @property
    def span(self) -> Span:
        """The positions of its events."""
        return self.start, self.start + len(self.events)

    @property
    def name(self) -> str:
        """The batch's id. If the piece is not the whole batch, the positions follow."""
        return self.batch if self.whole else f"{self.batch}:{self.start}-{self.span[1]}"

    def cut(self, start: int, stop: int) -> "Piece":
        """The part of this piece at these positions of the batch."""
        if (start, stop) == self.span:
            return self
        events = self.events[start - self.start : stop - self.start]
        return self._replace(events=events, start=start, whole=False)

    def to_count(self) -> "list[Piece]":
        """The parts of this piece without the Nones."""
        if all(event is not None for event in self.events):
            return [self]
        runs = groupby(
            range(*self.span), key=lambda place: self.events[place - self.start] is not None
        )
        found = [list(run) for is_event, run in runs if is_event]
        return [self.cut(run[0], run[-1] + 1) for run in found]


@dataclass
class Entry:
    """What the ledger knows about a batch: which positions are done.

    `spans` are None if the whole batch is done.
    """

    batch: str
    is_new: bool = True
    spans: list[Span] | None = field(default_factory=list)

    def missing(self, piece: Piece) -> list[Piece]:
        """The parts of a piece of this batch that are not done."""
        if self.spans is None:
            return []
        missing, at = [], piece.start
        for start, stop in [*sorted(self.spans), (piece.span[1],) * 2]:
            if at < min(start, piece.span[1]):
                missing.append(piece.cut(at, min(start, piece.span[1])))
            at = max(at, stop)
        # An empty piece has no missing positions, but its batch still needs an entry.
        return [piece] if self.is_new and not piece.events else missing

    def add(self, piece: Piece) -> None:
        """Mark the positions of this piece as done."""
        if piece.whole and not self.spans:
            self.spans = None
        elif self.spans is not None:
            self.spans.append(piece.span)

    def document(self) -> dict[str, Any]:
        """The entry's row in the ledger."""
        pieces = {"pieces": msgspec.json.encode(self.spans)} if self.spans else {}
        return {"_id": self.batch, **pieces}


class Claims(NamedTuple):
    """The results of claiming ids, as the indices of the events in the given sequence."""

    new: list[int]
    repeats: list[int]
    collisions: list[int]


def entries(batches: Collection[str], session: Session) -> dict[str, Entry]:
    """The ledger's entries for these batches, by id. Pass entries that change to `write`."""
    found = session[AppliedBatch].find({"_id": {"$in": list(batches)}})
    known = {
        row["_id"]: Entry(
            row["_id"],
            False,
            msgspec.json.decode(row["pieces"], type=list[Span]) if "pieces" in row else None,
        )
        for row in (found if batches else ())
    }
    return {batch: known.get(batch) or Entry(batch) for batch in batches}


def write(changed: Iterable[Entry], session: Session) -> None:
    """Write changed entries."""
    new, known = [], []
    for entry in changed:
        document = entry.document()
        if entry.is_new:
            new.append(document)
        else:
            known.append(UpdateOne({"_id": entry.batch}, {"$set": document}))
    if new:
        _remember("batches", new, session)
    if known:
        session[AppliedBatch].bulk_write(known, ordered=False)


def claim(
    events: Sequence[Event], session: Session, *, with_user: bool, seen_events: bool
) -> Claims:
    """Claim the ids of events in order. The first event with an id claims it.

    An event without an id is always new. `with_user` is passed to `content_of`. With `seen_events`,
    the ids of the first release are looked up too. They are valid for every website, and have no
    content, so an event with such an id is always a repeat.
    """
    keys = {place: claim_of(event) for place, event in enumerate(events) if event.event_id}
    contents: dict[str, str | None] = _claimed(keys.values(), session)
    if seen_events:
        seen = _known(SeenEvent, [events[place].event_id for place in keys], session)
        contents |= {keys[place]: None for place in keys if events[place].event_id in seen}
    claims = Claims([], [], [])
    added = {}
    for place, event in enumerate(events):
        key = keys.get(place)
        if key is None:
            claims.new.append(place)
            continue
        content = content_of(event, with_user=with_user)
        if key not in contents:
            contents[key] = added[key] = content
            claims.new.append(place)
        elif contents[key] in (content, None):
            claims.repeats.append(place)
        else:
            claims.collisions.append(place)
    documents = [{"_id": key, "content": content} for key, content in added.items()]
    _remember("claims", documents, session)
    return claims


def seen_until(database: Database) -> datetime | None:
    """Until when ids that the first release counted must be looked up (UTC), or None.

    Raises pymongo's errors.
    """
    found = database[Schema].find_one(SEEN_EVENTS)
    return found["until"] if found else None


def expire(database: Database, now: datetime) -> int:
    """Drop the entries that have expired at `now` (with a zone). Returns their number.

    It stops after EXPIRE_SECONDS; the next call continues. There is no TTL index, because the
    embedded database stops answering while it looks for expired documents. Raises Unavailable if
    the database can't be reached.
    """
    dropped = 0
    until = time.monotonic() + EXPIRE_SECONDS
    while time.monotonic() < until:
        with deadline(EXPIRE_SECONDS * 3):
            found = database[Expiry].find_one({"at": {"$lt": now}}, sort=[("at", 1)])
            if found is None:
                break
            dropped += database.transaction(partial(_drop, found))
    return dropped


def _drop(expired: dict[str, Any], session: Session) -> int:
    # If another process dropped this expiry meanwhile, the keys may have been claimed again.
    if not session[Expiry].delete_one({"_id": expired["_id"]}).deleted_count:
        return 0
    keys = msgspec.json.decode(expired["keys"])
    document = _DOCUMENTS[expired["of"]]
    session[document].delete_many({"_id": {"$in": keys}})
    return len(keys)


def _claimed(keys: Collection[str], session: Session) -> dict[str, str | None]:
    """The contents of those claims that exist, by key."""
    if not keys:
        return {}
    found = session[Claim].find({"_id": {"$in": list(set(keys))}})
    return {row["_id"]: row["content"] for row in found}


def _known(document: type[Document], keys: Collection[Any], session: Session) -> set[str]:
    query = {"_id": {"$in": list(keys)}}
    return {known["_id"] for known in session[document].find(query, {"_id": 1})}


def _remember(of: str, documents: Sequence[Mapping[str, Any]], session: Session) -> None:
    if not documents:
        return
    session[_DOCUMENTS[of]].insert_many(documents, ordered=False)
    at = clock.latest(session.database) + timedelta(seconds=_KEPT_SECONDS[of])
    keys = [document["_id"] for document in documents]
    session[Expiry].insert_many(
        [
            {"at": at, "of": of, "keys": msgspec.json.encode(keys[start : start + EXPIRED_AT_ONCE])}
            for start in range(0, len(keys), EXPIRED_AT_ONCE)
        ]
    )
