"""What has been counted already: batches by their id, and events by the id their sender gave."""

import time
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import msgspec
from mongoengine import Document
from pymongo import UpdateOne

from app.domain.events import Event
from app.store.connection import Session, collection, deadline, transaction
from app.store.documents import LEDGER_SECONDS, SEEN_SECONDS, AppliedBatch, Expiry, SeenEvent

AnyEvent = TypeVar("AnyEvent", bound=Event)

EXPIRED_AT_ONCE = 1_000
EXPIRE_SECONDS = 3.0

_DOCUMENTS = {"batches": AppliedBatch, "events": SeenEvent}
_KEPT_SECONDS = {"batches": LEDGER_SECONDS, "events": SEEN_SECONDS}


def expire(now: datetime) -> int:
    """Drop what is older than it need be known at `now` (with a zone); how many entries.

    Stops after EXPIRE_SECONDS, to go on the next time. No TTL index does this: the embedded
    database would stand still while it looks for what expired. Raises Unavailable where the
    database is away.
    """
    dropped = 0
    until = time.monotonic() + EXPIRE_SECONDS
    while time.monotonic() < until:
        with deadline(EXPIRE_SECONDS * 3):
            found = collection(Expiry).find_one({"at": {"$lt": now}}, sort=[("at", 1)])
            if found is None:
                break
            dropped += transaction(partial(_drop, found))
    return dropped


def _drop(expired: dict[str, object], session: Session) -> int:
    document = _DOCUMENTS[str(expired["of"])]
    keys = msgspec.json.decode(bytes(expired["keys"]))  # type: ignore[call-overload]
    collection(document).delete_many({"_id": {"$in": keys}}, session=session)
    collection(Expiry).delete_one({"_id": expired["_id"]}, session=session)
    return len(keys)


def enter(batch_ids: Collection[str], session: Session) -> set[str]:
    """Enter batches in the ledger; return those that were not there already."""
    fresh = set(batch_ids) - _known(AppliedBatch, batch_ids, session)
    _remember("batches", sorted(fresh), session)
    return fresh


def claim(events: Iterable[AnyEvent], session: Session) -> list[AnyEvent]:
    """The events that have not been seen yet, each claimed so that it will have been.

    An event without an id of its own has never been seen.
    """
    fresh: list[AnyEvent] = []
    named: dict[str, AnyEvent] = {}
    for event in events:
        if event.event_id is None:
            fresh.append(event)
        else:
            named.setdefault(event.event_id, event)
    for event_id in _known(SeenEvent, named, session):
        del named[event_id]
    _remember("events", list(named), session)
    return fresh + list(named.values())


def note_repeats(repeats: Mapping[str, list[int]], session: Session) -> None:
    """Keep with batches that were entered which of their events, by position, were not new."""
    collection(AppliedBatch).bulk_write(
        [
            UpdateOne({"_id": name}, {"$set": {"repeats": msgspec.json.encode(positions)}})
            for name, positions in repeats.items()
        ],
        ordered=False,
        session=session,
    )


def repeats_of(batch_ids: Collection[str], session: Session) -> dict[str, list[int]]:
    """What was kept with `note_repeats`, of those batches that have any."""
    query = {"_id": {"$in": list(batch_ids)}, "repeats": {"$exists": True}}
    return {
        found["_id"]: msgspec.json.decode(found["repeats"])
        for found in collection(AppliedBatch).find(query, session=session)
    }


def _known(document: type[Document], keys: Collection[str], session: Session) -> set[str]:
    # Looking first is what keeps a batch that is sent again from failing at every insert.
    if not keys:
        return set()
    query = {"_id": {"$in": list(keys)}}
    return {known["_id"] for known in collection(document).find(query, {"_id": 1}, session=session)}


def _remember(of: str, keys: list[str], session: Session) -> None:
    if not keys:
        return
    collection(_DOCUMENTS[of]).insert_many(
        [{"_id": name} for name in keys], ordered=False, session=session
    )
    at = datetime.now(UTC) + timedelta(seconds=_KEPT_SECONDS[of])
    collection(Expiry).insert_many(
        [
            {"at": at, "of": of, "keys": msgspec.json.encode(keys[start : start + EXPIRED_AT_ONCE])}
            for start in range(0, len(keys), EXPIRED_AT_ONCE)
        ],
        session=session,
    )
