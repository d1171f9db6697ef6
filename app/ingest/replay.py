"""Replays dead letters: tries them again."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from redis import Redis

from app.domain.reader import NOT_JSON, EventReader
from app.ingest.publisher import Publisher
from app.journal.batches import Batch, batches
from app.redis import dead_letters, letter_search
from app.redis.connection import broker_errors
from app.redis.dead_letters import DeadLetter
from app.redis.letter_search import EVERY, Filters


class Replay(NamedTuple):
    """How many events of a letter were accepted, or its remaining errors by field."""

    accepted: int
    errors: dict[str, Any]


class Replayer:
    """Replays the letters in this Redis. Every method raises Unavailable."""

    def __init__(self, reader: EventReader, redis: Redis, publisher: Publisher) -> None:
        self._reader = reader
        self._redis = redis
        self._publisher = publisher

    def replay(self, letter: DeadLetter, corrected: bytes | None = None) -> Replay:
        """Publish a letter's events and drop the letter, or keep the letter and return the errors.

        `corrected` is an event (JSON) to publish instead of the letter's own. If the event
        collides, it needs a new EventId. If a letter is replayed twice it counts once, because it
        is the same batch.
        """
        if corrected is not None and letter.batch_id:
            return Replay(0, {"_schema": ["It holds a batch, which can't be corrected."]})
        if corrected is None and letter.truncated:
            return Replay(0, {"_schema": ["It was not kept completely."]})
        event = bytes(letter.event) if corrected is None else corrected
        used_id = _field_of(letter.event, "EventId")
        if letter.collides and _field_of(event, "EventId") in (None, used_id):
            return Replay(0, {"EventId": ["Send it with an id that no other event has."]})
        if letter.batch_id:
            batch = Batch(letter.batch_id, letter.queue, bytes(letter.batch))
            size = len(msgspec.json.decode(letter.batch, type=list[msgspec.Raw]))
        else:
            events, rejections = self._reader_of(letter, event).read(
                [event], received=letter.time, invalid=letter.invalid
            )
            if rejections:
                return Replay(0, rejections[0].errors)
            batch = batches(events)[0]._replace(id=f"dead-letter-{letter.id}")
            size = 1
        self._publisher.resubmit(batch)
        with broker_errors():
            dead_letters.remove(self._redis, letter.id)
        return Replay(size, {})

    def _reader_of(self, letter: DeadLetter, event: bytes) -> EventReader:
        """The reader for a letter's event. If the event collides, its user id is hashed already."""
        if letter.collides and _field_of(event, "Meta") == _field_of(letter.event, "Meta"):
            return self._reader.of_kept_users()
        return self._reader

    def replay_all(self, filters: Filters = EVERY) -> Iterator[Replay]:
        """Replay each letter that fits and is there now, newest first.

        Refused events stay, because their senders may not write them. An operator can vouch for
        such an event by replaying it alone.
        """
        with broker_errors():
            for stored in letter_search.found(self._redis, filters):
                letter = stored.letter()
                yield Replay(0, letter.reason) if letter.refused else self.replay(letter)


def _field_of(event: bytes, field: str) -> Any:
    """The value of a field of an event (JSON), or None if there is none."""
    try:
        return msgspec.json.decode(event, type=dict[str, Any]).get(field)
    except NOT_JSON:
        return None
