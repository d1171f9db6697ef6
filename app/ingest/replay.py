"""Replaying dead letters: trying them again."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from redis import Redis

from app.domain.reader import NOT_JSON, EventReader
from app.ingest.publisher import Publisher
from app.journal.batches import Batch, batches
from app.redis import dead_letters
from app.redis.connection import broker_errors
from app.redis.dead_letters import DeadLetter

PAGE = 100


class Replay(NamedTuple):
    """How many events of a letter were accepted, or what is still wrong with it."""

    accepted: int
    errors: dict[str, Any]


class Replayer:
    """Replays the letters in this Redis. Every method raises Unavailable if Redis is away."""

    def __init__(self, reader: EventReader, redis: Redis, publisher: Publisher) -> None:
        self._reader = reader
        self._redis = redis
        self._publisher = publisher

    def replay(self, letter: DeadLetter, corrected: bytes | None = None) -> Replay:
        """Publish a letter's event and drop the letter, or leave it there and say why.

        `corrected` is an event, as JSON, that is published instead of the letter's own. An event
        that collides needs a new EventId.

        A letter that is replayed twice counts once, because it is the same batch.
        """
        if corrected is not None and letter.batch_id:
            return Replay(0, {"_schema": ["It holds a batch, which can't be corrected."]})
        if corrected is None and letter.truncated:
            return Replay(0, {"_schema": ["It was not kept whole."]})
        event = bytes(letter.event) if corrected is None else corrected
        taken = _said_in(letter.event, "EventId")
        if letter.collides and _said_in(event, "EventId") in (None, taken):
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
        """The reader for a letter's event. Events that collide have a user id as it is kept."""
        if letter.collides and _said_in(event, "Meta") == _said_in(letter.event, "Meta"):
            return self._reader.of_kept_users()
        return self._reader

    def replay_all(self) -> Iterator[Replay]:
        """Replay each letter that is there now, newest first.

        Events that their sender may not write stay: an operator vouches for one by replaying it
        alone.
        """
        before = None
        while True:
            with broker_errors():
                letters = dead_letters.newest(self._redis, PAGE, before)
            if not letters:
                return
            for letter in letters:
                yield Replay(0, letter.reason) if letter.refused else self.replay(letter)
            before = letters[-1].id


def _said_in(event: bytes, field: str) -> Any:
    """The value of a field of an event, as JSON; None if there is none."""
    try:
        return msgspec.json.decode(event, type=dict[str, Any]).get(field)
    except NOT_JSON:
        return None
