"""Dead letters: rejected events and batches that can never be applied, kept for an operator.

Redis keys, both streams whose ids hold the time an entry came in:
- `dead_letters:events`: rejected events, the latest MAX_EVENTS; fields `reason` (JSON), `event`
  (its JSON), `truncated` where that was cut short, `invalid` (a reason) where it is invalid
  traffic, `refused` where its sender may not write it, and `collides` where its EventId is that of
  another event;
- `dead_letters:batches`: failed batches, the latest MAX_BATCHES; fields `reason` (JSON), `queue`,
  `id` and `batch` (the events, JSON).
- `dead_letters:kept:{batch}:{position}`: a letter of this event was kept, for KEPT_ONCE_SECONDS;
- `dead_letters:kafka`: a hash from topic, partition and group to the offset up to which what was
  rejected has been kept.
They are kept for KEPT_SECONDS. Anybody can have events rejected, so these never push out a batch.
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw
from redis import Redis
from redis.client import Pipeline

from app.domain.events import Collision, Rejection
from app.domain.reader import NOT_JSON
from app.domain.wire import as_sent

MAX_EVENTS = 10_000
MAX_BATCHES = 1_000
MAX_EVENT_BYTES = 8_192
AT_ONCE = 500
COLLISION_REASON = "Another event of this website with the same EventId was counted."
KEPT_SECONDS = 7 * 24 * 3600
KEPT_ONCE_SECONDS = 8 * 24 * 3600
"""As long as a batch can come again, and its letters be kept again."""
ID_PATTERN = r"([0-9]{1,19})-([0-9]{1,19})(b?)\Z"
"""What ids look like, as a regular expression; those of batches end in b."""

_EVENTS = "dead_letters:events"
_BATCHES = "dead_letters:batches"
_KAFKA = "dead_letters:kafka"

_KEEP_ONCE = """#!lua
local kept = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
for _, letter in ipairs(cmsgpack.unpack(ARGV[3])) do
    if letter[1] >= kept then redis.call(unpack(letter[2])) end
end
if tonumber(ARGV[2]) > kept then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""

_KEEP_EACH_ONCE = """#!lua flags=allow-oom
for _, letter in ipairs(cmsgpack.unpack(ARGV[2])) do
    if redis.call('SET', 'dead_letters:kept:' .. letter[1], 1, 'NX', 'EX', ARGV[1]) then
        redis.call(unpack(letter[2]))
    end
end
"""


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry: a rejected event, or else a failed batch of a queue.

    `time` is UTC. `event` and `batch` are JSON as it came, a text where it was none or cut short;
    `truncated` means that it is not there in whole, so can't be replayed. `invalid` and `refused`
    are those of a Rejection. An event that `collides` was accepted, and then found to have the
    EventId of another; its user is as it is kept, mostly hashed.
    """

    id: str
    time: datetime
    reason: Any
    event: Raw = Raw(b"null")
    truncated: bool = False
    invalid: str = ""
    refused: bool = False
    collides: bool = False
    queue: str = ""
    batch_id: str = ""
    batch: Raw = Raw(b"[]")


def keeping(rejections: Sequence[Rejection]) -> list[tuple[str | int, ...]]:
    """The Redis commands that keep rejected events."""
    commands: list[tuple[str | int, ...]] = []
    for rejection in rejections:
        event = rejection.event
        truncated = False
        if len(event) > MAX_EVENT_BYTES or not _is_json(event):
            event = msgspec.json.encode(event[:MAX_EVENT_BYTES].decode(errors="replace"))
            truncated = True
        reason = msgspec.json.encode(rejection.errors)
        letter = ["reason", reason.decode(), "event", event.decode()]
        if truncated:
            letter += ["truncated", "true"]
        if rejection.invalid:
            letter += ["invalid", rejection.invalid]
        if rejection.refused:
            letter += ["refused", "true"]
        commands.append(("XADD", _EVENTS, "MAXLEN", MAX_EVENTS, "*", *letter))
    return commands


def keep_once(redis: Redis, place: str, rejections: Sequence[tuple[int, Rejection]]) -> None:
    """Keep rejected events of a topic's partition that a group reads, each with its offset.

    In order of these. Those of a message that comes again have been kept.
    """
    offsets = [offset for offset, _ in rejections]
    commands = keeping([rejection for _, rejection in rejections])
    letters = msgspec.msgpack.encode(list(zip(offsets, commands, strict=True)))
    redis.register_script(_KEEP_ONCE)([_KAFKA], [place, offsets[-1] + 1, letters])


def keep_collisions(redis: Redis, collisions: Sequence[Collision]) -> None:
    """Keep events with the EventId of another event, each once however often this is called."""
    reason = msgspec.json.encode({"EventId": [COLLISION_REASON]}).decode()
    letters = []
    for collision in collisions:
        event = msgspec.json.encode(as_sent(collision.event, collision.event.event_id)).decode()
        words = ["reason", reason, "event", event, "collides", "true"]
        command = ("XADD", _EVENTS, "MAXLEN", MAX_EVENTS, "*", *words)
        letters.append((f"{collision.batch}:{collision.position}", command))
    _keep_each_once(redis, letters)


def keep_event(
    redis: Redis, queue: str, batch_id: str, position: int, event: bytes, reason: str
) -> None:
    """Keep an event of a batch, as JSON, that can't be counted; once however often it is called.

    Its letter is that of a batch of its own, which can be replayed.
    """
    name = f"{batch_id}:{position}"
    words = ["reason", msgspec.json.encode(reason).decode(), "queue", queue, "id", name]
    batch = f"[{event.decode(errors='replace')}]"
    command = ("XADD", _BATCHES, "MAXLEN", MAX_BATCHES, "*", *words, "batch", batch)
    _keep_each_once(redis, [(name, command)])


def _keep_each_once(redis: Redis, letters: Sequence[tuple[str, Sequence[Any]]]) -> None:
    script = redis.register_script(_KEEP_EACH_ONCE)
    for start in range(0, len(letters), AT_ONCE):
        packed = msgspec.msgpack.encode(letters[start : start + AT_ONCE])
        script([], [KEPT_ONCE_SECONDS, packed])


def add_batch(pipe: Pipeline, queue: str, batch_id: str, payload: bytes, reason: str) -> None:
    """Keep a batch of this queue that can't be applied, as part of a pipeline."""
    fields: dict[Any, Any] = {
        "reason": msgspec.json.encode(reason),
        "queue": queue,
        "id": batch_id,
        "batch": payload,
    }
    pipe.xadd(_BATCHES, fields, maxlen=MAX_BATCHES, approximate=False)


def numbers(redis: Redis) -> dict[str, int]:
    """How many rejected events and failed batches are kept."""
    with redis.pipeline(transaction=False) as pipe:
        pipe.xlen(_EVENTS)
        pipe.xlen(_BATCHES)
        return dict(zip(("events", "batches"), pipe.execute(), strict=True))


def expire(redis: Redis) -> None:
    """Drop the letters that have been kept long enough."""
    for stream in (_EVENTS, _BATCHES):
        redis.xtrim(stream, minid=int((time.time() - KEPT_SECONDS) * 1000), approximate=False)


def newest(redis: Redis, limit: int, before: str | None = None) -> list[DeadLetter]:
    """At most `limit` letters, newest first, only those that come after the id `before`."""
    of_events = of_batches = "+"
    if before is not None:
        number = before.removesuffix("b")
        # Of the same id, the batch comes first.
        of_batches = _before(number)
        of_events = number if before.endswith("b") else of_batches
    letters = []
    for stream, last in ((_EVENTS, of_events), (_BATCHES, of_batches)):
        found: Any = redis.xrevrange(stream, max=last, count=limit)
        letters += [_letter(stream, letter_id, fields) for letter_id, fields in found]
    return sorted(letters, key=_place, reverse=True)[:limit]


def get(redis: Redis, letter_id: str) -> DeadLetter | None:
    """The letter with this id, None where there is none."""
    if not re.match(ID_PATTERN, letter_id):
        return None
    stream, number = _stored(letter_id)
    found: Any = redis.xrange(stream, min=number, max=number)
    return _letter(stream, *found[0]) if found else None


def remove(redis: Redis, letter_id: str) -> None:
    """Drop the letter with this id, if it is there."""
    stream, number = _stored(letter_id)
    redis.xdel(stream, number)


def _stored(letter_id: str) -> tuple[str, str]:
    return (_BATCHES if letter_id.endswith("b") else _EVENTS), letter_id.removesuffix("b")


def _before(number: str) -> str:
    """The latest possible id before this one."""
    milliseconds, sequence = map(int, number.split("-"))
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{2**64 - 1}" if milliseconds else "0-0"


def _place(letter: DeadLetter) -> tuple[int, int, bool]:
    milliseconds, sequence = letter.id.removesuffix("b").split("-")
    return int(milliseconds), int(sequence), letter.id.endswith("b")


def _letter(stream: str, letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    milliseconds = int(letter_id.split(b"-")[0])
    truncated = b"truncated" in fields
    batch = fields.get(b"batch", b"[]")
    if not _is_json(batch):
        batch, truncated = msgspec.json.encode([batch.decode(errors="replace")]), True
    return DeadLetter(
        id=letter_id.decode() + ("b" if stream == _BATCHES else ""),
        time=datetime.fromtimestamp(milliseconds / 1000, UTC),
        reason=msgspec.json.decode(fields[b"reason"]),
        event=Raw(fields.get(b"event", b"null")),
        truncated=truncated,
        invalid=fields.get(b"invalid", b"").decode(),
        refused=b"refused" in fields,
        collides=b"collides" in fields,
        queue=fields.get(b"queue", b"").decode(),
        batch_id=fields.get(b"id", b"").decode(),
        batch=Raw(batch),
    )


def _is_json(text: bytes) -> bool:
    try:
        text.decode()
        msgspec.json.decode(text, type=Raw)
    except NOT_JSON:
        return False
    return True
