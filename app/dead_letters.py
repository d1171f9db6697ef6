"""Dead letters: rejected events and batches that can never be applied, kept for an operator.

Redis key `dead_letters`: a stream, oldest first, of at most MAX_LETTERS entries that are kept for
KEPT_SECONDS. An entry's id holds the time it came in. Its fields: `reason` (JSON), and `event` (one
rejected event, JSON) or `queue`, `id` and `batch` (a failed batch and its events, JSON).
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis import Redis
from redis.client import Pipeline

from app.domain.events import Rejection

MAX_LETTERS = 10_000
MAX_EVENT_BYTES = 8_192
KEPT_SECONDS = 7 * 24 * 3600

ID_PATTERN = r"[0-9]{1,19}-[0-9]{1,19}\Z"
"""What ids look like, as a regular expression."""

_KEY = "dead_letters"


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry: a rejected event, or else a failed batch of a queue.

    `time` is UTC; `truncated` means that it is not there in whole, so can't be replayed.
    """

    id: str
    time: datetime
    reason: Any
    event: Any = None
    truncated: bool = False
    queue: str = ""
    batch_id: str = ""
    batch: list[Any] = []

    def event_as_of_receipt(self) -> Any:
        """The rejected event, with the time it came in where it does not tell its own."""
        if isinstance(self.event, dict) and self.event.get("Timestamp") is None:
            return self.event | {"Timestamp": self.time.isoformat()}
        return self.event


def add_rejections(pipe: Pipeline, rejections: Sequence[Rejection]) -> None:
    """Keep rejected events, as part of a pipeline."""
    for rejection in rejections:
        event = msgspec.json.encode(rejection.event)
        fields = {"reason": msgspec.json.encode(rejection.errors), "event": event}
        if len(event) > MAX_EVENT_BYTES:
            fields["event"] = msgspec.json.encode(event[:MAX_EVENT_BYTES].decode(errors="ignore"))
            fields["truncated"] = b"true"
        _add(pipe, fields)


def add_batch(pipe: Pipeline, queue: str, batch_id: str, payload: bytes, reason: str) -> None:
    """Keep a batch of this queue that can't be applied, as part of a pipeline."""
    reason_json = msgspec.json.encode(reason)
    _add(pipe, {"reason": reason_json, "queue": queue, "id": batch_id, "batch": payload})


def _add(pipe: Pipeline, fields: dict[Any, Any]) -> None:
    pipe.xadd(_KEY, fields, maxlen=MAX_LETTERS, approximate=False)


def expire(redis: Redis) -> None:
    """Drop the letters that have been kept long enough."""
    redis.xtrim(_KEY, minid=int((time.time() - KEPT_SECONDS) * 1000), approximate=False)


def newest(redis: Redis, limit: int, before: str | None = None) -> list[DeadLetter]:
    """At most `limit` letters, newest first, only older ones than the id `before`."""
    found: Any = redis.xrevrange(_KEY, max=f"({before}" if before else "+", count=limit)
    return [_letter(letter_id, fields) for letter_id, fields in found]


def get(redis: Redis, letter_id: str) -> DeadLetter | None:
    """The letter with this id, None where there is none."""
    if not re.match(ID_PATTERN, letter_id):
        return None
    found: Any = redis.xrange(_KEY, min=letter_id, max=letter_id)
    return _letter(*found[0]) if found else None


def remove(redis: Redis, letter_id: str) -> None:
    """Drop the letter with this id, if it is there."""
    redis.xdel(_KEY, letter_id)


def _letter(letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    milliseconds = int(letter_id.split(b"-")[0])
    truncated = b"truncated" in fields
    payload = fields.get(b"batch", b"[]")
    try:
        batch = msgspec.json.decode(payload, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        batch, truncated = [payload.decode(errors="replace")], True
    return DeadLetter(
        id=letter_id.decode(),
        time=datetime.fromtimestamp(milliseconds / 1000, UTC),
        reason=msgspec.json.decode(fields[b"reason"]),
        event=msgspec.json.decode(fields.get(b"event", b"null")),
        truncated=truncated,
        queue=fields.get(b"queue", b"").decode(),
        batch_id=fields.get(b"id", b"").decode(),
        batch=batch,
    )
