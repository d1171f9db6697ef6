"""What has been counted already: batches by their id, and events by the id their sender gave."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from mongoengine import Document

from app.domain.events import Event
from app.store.connection import Session, collection, deadline, transaction
from app.store.documents import LEDGER_SECONDS, SEEN_SECONDS, AppliedBatch, SeenEvent

AnyEvent = TypeVar("AnyEvent", bound=Event)


EXPIRED_AT_ONCE = 1_000
EXPIRE_SECONDS = 3.0


def expire(now: datetime) -> int:
    """Drop what is older than it need be known at `now` (with a zone); how many entries.

    Stops after EXPIRE_SECONDS, to go on the next time. No TTL index does this: the embedded
    database would stand still while it looks for what expired. Raises Unavailable where the
    database is away.
    """
    dropped = 0
    until = time.monotonic() + EXPIRE_SECONDS
    for document, seconds in ((SeenEvent, SEEN_SECONDS), (AppliedBatch, LEDGER_SECONDS)):
        expired = {"at": {"$lt": now - timedelta(seconds=seconds)}}
        while time.monotonic() < until:
            with deadline(EXPIRE_SECONDS):
                found = collection(document).find(expired, {"_id": 1}).limit(EXPIRED_AT_ONCE)
                keys = [known["_id"] for known in found]
                if keys:
                    transaction(partial(_delete, document, keys))
            dropped += len(keys)
            if len(keys) < EXPIRED_AT_ONCE:
                break
    return dropped


def _delete(document: type[Document], keys: list[str], session: Session) -> None:
    collection(document).delete_many({"_id": {"$in": keys}}, session=session)


def enter(batch_id: str, session: Session) -> bool:
    """Enter a batch in the ledger; False where it is there already."""
    batches = collection(AppliedBatch)
    if batches.find_one({"_id": batch_id}, session=session):
        return False
    batches.insert_one({"_id": batch_id, "at": datetime.now(UTC)}, session=session)
    return True


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
    if named:
        seen = collection(SeenEvent)
        # Looking first is what keeps a batch that is sent again from failing at every insert.
        query = {"_id": {"$in": list(named)}}
        for known in seen.find(query, {"_id": 1}, session=session):
            del named[known["_id"]]
    if named:
        now = datetime.now(UTC)
        seen.insert_many(
            [{"_id": event_id, "at": now} for event_id in named], ordered=False, session=session
        )
    return fresh + list(named.values())
