"""Reads the events in messages of a Kafka topic, and groups messages that are counted together."""

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from confluent_kafka import Message

from app.domain.bodies import MAX_BODY_BYTES, MAX_EVENTS, events_in
from app.domain.events import Event, Rejection
from app.domain.reader import EventReader
from app.domain.rules import MAX_AGE_MS, MAX_AHEAD_MS

BYTES_AT_ONCE = 1024 * 1024
"""Once the messages in a chunk are this large together, no further message is added."""


class MessageRead(NamedTuple):
    """The content of a message. From `place`, operators see where a rejection came from."""

    partition: int
    offset: int
    place: str
    value: bytes
    events: Sequence[Event]
    rejections: Sequence[Rejection]

    def events_in_place(self) -> list[Event | None]:
        """The events at their positions in the message, with None for each rejected one."""
        rejected = {bad.position for bad in self.rejections}
        events = iter(self.events)
        number = len(self.events) + len(rejected)
        return [None if place in rejected else next(events) for place in range(number)]


class MessageReader:
    """Reads messages. The value of a message has the form of the body of POST /events."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader

    def read(self, message: Message) -> MessageRead:
        """Read a message. If its value holds no events at all, that is one rejection."""
        value, partition = message.value() or b"", message.partition() or 0
        offset = message.offset() or 0
        place = f"topic {message.topic()}, partition {partition}, offset {offset}"
        events: list[Event] = []
        try:
            raw_events = _events_of(value)
        except ValueError as error:
            rejections = [Rejection(0, value, {"event": [str(error)], "Kafka": [place]})]
        else:
            events, found = self._reader.read(raw_events, received=_received(message))
            rejections = [
                bad._replace(errors=bad.errors | {"Kafka": [f"{place}, event {bad.position}"]})
                for bad in found
            ]
        return MessageRead(partition, offset, place, value, events, rejections)


def chunks(messages: Iterable[MessageRead]) -> Iterator[list[MessageRead]]:
    """Group messages into lists that are counted together."""
    chunk: list[MessageRead] = []
    size = events = 0
    for message in messages:
        chunk.append(message)
        size += len(message.value)
        events += len(message.events)
        if size >= BYTES_AT_ONCE or events >= MAX_EVENTS:
            yield chunk
            chunk, size, events = [], 0, 0
    if chunk:
        yield chunk


def _events_of(value: bytes) -> list[bytes]:
    """The events of a message: one event, an array, or one on each line. Raises ValueError."""
    if len(value) > MAX_BODY_BYTES:
        raise ValueError(f"The message is larger than {MAX_BODY_BYTES} bytes.")
    try:
        return events_in(value)
    except ValueError:
        if b"\n" not in value.strip() or value.lstrip().startswith(b"["):
            raise
        return events_in(value, lines=True)


def _received(message: Message) -> datetime | None:
    """When Kafka got a message (UTC). None if that is not known, or out of range for an event."""
    _, milliseconds = message.timestamp()
    age = time.time() * 1000 - milliseconds
    if -MAX_AHEAD_MS < age < MAX_AGE_MS:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    return None
