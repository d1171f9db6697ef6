"""What has been counted already: batches by their id, and events by the id their sender gave."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

from app.domain.events import Event
from app.store.connection import Session, collection
from app.store.documents import AppliedBatch, SeenEvent

AnyEvent = TypeVar("AnyEvent", bound=Event)


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
