"""Batches: events of one kind that are written, taken and counted together."""

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from app.domain.events import QUEUE_OF, Event

MAX_BATCH = 1_000
MAX_BATCH_BYTES = 1024**2
TAKEN_AT_ONCE = 500
TAKEN_BYTES = 512 * 1024
"""Once a worker has taken this many bytes, it takes no further batch."""


class Batch(NamedTuple):
    """Events of one kind, as a JSON list. The Celery task has the same id.

    `due` is set if the events are late: it is their date (`app.journal.shares`).
    """

    id: str
    queue: str
    payload: bytes
    due: float | None = None


Encoded = Mapping[str, Sequence[bytes]]
"""Events as JSON, in order, by queue."""

_encode_lines = msgspec.json.Encoder().encode_lines


def encode(events: Iterable[Event]) -> Encoded:
    """Encode events. See Encoded."""
    by_queue: dict[str, list[Event]] = {}
    for event in events:
        by_queue.setdefault(QUEUE_OF[type(event)], []).append(event)
    # Encoding all of them in one call halves the time. JSON contains no line break.
    return {
        queue: _encode_lines(of_queue).removesuffix(b"\n").split(b"\n")
        for queue, of_queue in by_queue.items()
    }


def batches(events: Iterable[Event]) -> list[Batch]:
    """These events as batches of one kind each: see `batches_of`."""
    return batches_of([encode(events)])


def batches_of(encoded: Iterable[Encoded]) -> list[Batch]:
    """These events as batches of one kind each, in order.

    Each batch has at most MAX_BATCH events and MAX_BATCH_BYTES, or is a single event.
    """
    by_queue: dict[str, list[bytes]] = {}
    for given in encoded:
        for queue, events in given.items():
            by_queue.setdefault(queue, []).extend(events)
    return [
        Batch(os.urandom(16).hex(), queue, b"[" + b",".join(part) + b"]")
        for queue, events in by_queue.items()
        for part in _parts(events)
    ]


def took_all_it_may(taken: Sequence[Batch]) -> bool:
    """Whether a worker took as many batches at once as it may, so that more may be waiting."""
    size = sum(len(batch.payload) for batch in taken)
    return len(taken) >= TAKEN_AT_ONCE or size >= TAKEN_BYTES


def by_queue(taken: Iterable[Batch]) -> Mapping[str, dict[str, bytes]]:
    """The payloads of batches by queue and id."""
    found: dict[str, dict[str, bytes]] = {}
    for batch in taken:
        found.setdefault(batch.queue, {})[batch.id] = batch.payload
    return found


def _parts(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    before = list(itertools.accumulate(map(len, events), initial=0))
    start = 0
    while start < len(events):
        fitting = bisect_right(before, before[start] + MAX_BATCH_BYTES) - 1
        end = min(max(fitting, start + 1), start + MAX_BATCH)
        yield events[start:end]
        start = end
