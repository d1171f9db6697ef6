"""Dead letters: rejected events and batches that can never be applied, kept for operators.

Redis keys (the first two are streams, whose ids hold the time at which an entry was added):
- `dead_letters:events`: rejected events; fields `reason` (JSON), `event` (its JSON), `truncated` if
  that was cut short, `invalid` (a reason) if it is invalid traffic, `refused` if its sender may not
  write it, and `collides` if its EventId belongs to another event;
- `dead_letters:batches`: failed batches; fields `reason` (JSON), `queue`, `id` and `batch` (the
  events, JSON);
- `dead_letters:kept:{batch}`: the positions of a batch's kept events, until the batch has left the
  journal, for KEPT_ONCE_SECONDS at most;
- `dead_letters:sizes`: a hash from each stream to an upper bound of its memory in bytes;
- `dead_letters:kafka`: a hash from topic, partition and group to the offset up to which rejected
  events have been kept.

Letters are kept for KEPT_SECONDS. Both streams have a limit in letters and one in bytes of memory
(EVENTS, BATCHES), so that the rest of Redis is left to the journal. Beyond the limits the oldest
letters are dropped. Anybody can send events that are rejected, so these never push out a batch. A
failed batch holds accepted events, and operators must notice it: there is an alert for the first
one, and an error in the log if one is dropped because there are too many.
"""

import logging
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from heapq import merge
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw
from redis import Redis

from app.domain import letter_reasons
from app.domain.events import Collision, Refused, Rejection
from app.domain.reader import NOT_JSON
from app.domain.wire import as_sent
from app.redis import counters
from app.redis.commands import Command
from app.redis.scripts import script


class Budget(NamedTuple):
    """How many letters a stream may hold, and how many bytes of memory it may take."""

    letters: int
    bytes: int


EVENTS = Budget(10_000, 32 * 1024**2)
BATCHES = Budget(1_000, 64 * 1024**2)
MAX_EVENT_BYTES = 8_192
MAX_REASON_BYTES = 1_024
"""Both limit the JSON that is kept."""
ESCAPED = 6
"""JSON takes at most this many bytes for one byte of text."""
AT_ONCE = 500
UNPUBLISHED_REASON = "Counted, but not published: it is too large for the topic of KAFKA_PUBLISH."
COLLISION_REASON = "Another event of this website with the same EventId was counted."
KEPT_SECONDS = 7 * 24 * 3600
KEPT_ONCE_SECONDS = 3600
"""If a worker dies, its batch comes again within seconds. After an outage of hours, some letters
may be kept twice, which does no harm."""
ID_PATTERN = r"([0-9]{1,19})-([0-9]{1,19})(b?)\Z"
"""A regular expression for the ids of letters. Those of batches end in b."""

_EVENTS = "dead_letters:events"
_BATCHES = "dead_letters:batches"
_STREAMS = {"events": _EVENTS, "batches": _BATCHES}
KINDS = tuple(_STREAMS)
_SIZES = "dead_letters:sizes"
_KAFKA = "dead_letters:kafka"
_ENTRY_BYTES = 256
"""The most bytes that Redis adds to the words of a letter."""
_READ_AT_ONCE = {"events": 256, "batches": 8}
"""How many letters are read at once: a few MiB at most."""

_KEEP_ONCE = script("run", "keep_letters_once")

_BURY = script("run", "bury", even_if_full=True)

_KEEP_ONCE_EACH = script("run", "keep_each_letter_once", even_if_full=True)

logger = logging.getLogger(__name__)


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rejected event, or a failed batch of a queue.

    `time` is in UTC. `summary` is the reason as a text without values, by which letters are
    grouped. `hint` may say what the sender meant (`app.domain.hints`). `event` and `batch` are the
    received JSON, or a text if that was not JSON or had to be cut short. A `truncated` letter is
    not complete and can't be replayed. For `invalid` and `refused` see Rejection. An event that
    `collides` was accepted, but then turned out to have the EventId of another event. Its user id
    is the kept one, usually hashed.
    """

    id: str
    time: datetime
    reason: Any
    summary: str
    hint: str = ""
    event: Raw = Raw(b"null")
    truncated: bool = False
    invalid: str = ""
    refused: bool = False
    collides: bool = False
    queue: str = ""
    batch_id: str = ""
    batch: Raw = Raw(b"[]")


def keeping(rejections: Sequence[Rejection]) -> list[Command]:
    """The commands that keep rejected events, for `app.redis.commands`."""
    commands: list[Command] = []
    added = 0
    for rejection in rejections:
        event = rejection.event
        truncated = len(event) > MAX_EVENT_BYTES or not _is_json(event)
        if truncated:
            event = _as_text(event, MAX_EVENT_BYTES)
        reason = msgspec.json.encode(rejection.errors)
        if len(reason) > MAX_REASON_BYTES:
            reason = _as_text(reason, MAX_REASON_BYTES)
        letter = ["reason", reason.decode(), "event", event.decode()]
        if truncated:
            letter += ["truncated", "true"]
        if rejection.invalid:
            letter += ["invalid", rejection.invalid]
        if rejection.refused:
            letter += ["refused", "true"]
        commands.append(("XADD", _EVENTS, "*", *letter))
        added += len(reason) + len(event) + _ENTRY_BYTES
    return [*commands, _trim("events", EVENTS, added)] if commands else []


def most_bytes(rejection: Rejection) -> int:
    """The most bytes that a rejected event takes, both in this process and in Redis."""
    size = len(rejection.event)
    return max(size, min(ESCAPED * size, MAX_EVENT_BYTES)) + MAX_REASON_BYTES


def keep_once(redis: Redis, place: str, rejections: Sequence[tuple[int, Rejection]]) -> None:
    """Keep rejected events (each with its offset, in order) of a partition that a group reads.

    `place` names both. If a message comes again, its events are not kept again. Raises RedisError.
    """
    offsets = [offset for offset, _ in rejections]
    commands = keeping([rejection for _, rejection in rejections])
    # The last command limits the stream, and gets the last offset.
    letters = msgspec.msgpack.encode(list(zip([*offsets, offsets[-1]], commands, strict=True)))
    redis.register_script(_KEEP_ONCE.text)([_KAFKA], [place, offsets[-1] + 1, letters])


def bury(
    redis: Redis,
    queue: str,
    batch_id: str,
    payload: bytes,
    reason: str,
    with_commands: Sequence[Command] = (),
) -> None:
    """Keep a batch that can't be counted, and run these commands: all or nothing.

    This works even if Redis is full, because the commands remove the batch from the journal. If
    this drops an older batch, it logs an error.
    """
    text = _as_text(reason.encode(errors="replace"), MAX_REASON_BYTES)
    words: list[str | bytes] = ["reason", text, "queue", queue, "id", batch_id, "batch", payload]
    trim = _trim("batches", BATCHES, len(payload) + MAX_REASON_BYTES + _ENTRY_BYTES)
    encode = msgspec.msgpack.encode
    dropped: Any = redis.register_script(_BURY.text)(
        [_BATCHES], [encode(with_commands), encode(trim), *words]
    )
    _report_lost(dropped)


def keep_event(
    redis: Redis, queue: str, batch_id: str, position: int, event: bytes, reason: str
) -> None:
    """Keep an event (JSON) of a batch that can't be counted.

    It is kept once, however often this is called before `forget_kept`. Its letter is a batch with
    only this event, and can be replayed. This works even if Redis is full.
    """
    text = _as_text(reason.encode(errors="replace"), MAX_REASON_BYTES)
    words = ("reason", text.decode(), "queue", queue, "id", f"{batch_id}:{position}")
    batch = f"[{event.decode(errors='replace')}]"
    letter = (position, ("XADD", _BATCHES, "*", *words, "batch", batch))
    trim = _trim("batches", BATCHES, len(event) + MAX_REASON_BYTES + _ENTRY_BYTES)
    _report_lost(_keep_once_each(redis, batch_id, [letter], trim))


def keep_collisions(redis: Redis, collisions: Sequence[Collision]) -> None:
    """Keep accepted events that have the EventId of another event.

    Each is kept once, however often this is called before `forget_kept`. This works even if Redis
    is full.
    """
    _keep_events(redis, collisions, {"EventId": [COLLISION_REASON]}, "collides")


def keep_unpublished(redis: Redis, events: Sequence[Refused]) -> None:
    """Keep events that were counted but that Kafka will never accept. They can't be replayed."""
    _keep_events(redis, events, {"_schema": [UNPUBLISHED_REASON]}, "truncated")


def _keep_events(
    redis: Redis, events: Sequence[Collision | Refused], errors: Any, flag: str
) -> None:
    reason = msgspec.json.encode(errors).decode()
    for batch_id, of_batch in groupby(events, key=attrgetter("batch")):
        letters = []
        for _, position, event in of_batch:
            sent = msgspec.json.encode(as_sent(event, event.event_id)).decode()
            words = ["reason", reason, "event", sent, flag, "true"]
            if event.invalid:
                words += ["invalid", event.invalid.reason]
            letters.append((position, ("XADD", _EVENTS, "*", *words)))
        for start in range(0, len(letters), AT_ONCE):
            chunk = letters[start : start + AT_ONCE]
            added = sum(len(word) for _, command in chunk for word in command)
            trim = _trim("events", EVENTS, added + _ENTRY_BYTES * len(chunk))
            _keep_once_each(redis, batch_id, chunk, trim)


def forget_kept(redis: Redis, batch_ids: Collection[str]) -> None:
    """Forget which events of these batches were kept. The batches must not come again."""
    if batch_ids:
        redis.delete(*map(_kept, batch_ids))


def _keep_once_each(
    redis: Redis, batch_id: str, letters: Sequence[tuple[int, Command]], trim: Command
) -> int:
    """Keep letters by the positions of their events. Returns how many others were dropped."""
    encode = msgspec.msgpack.encode
    arguments: list[Any] = [KEPT_ONCE_SECONDS, encode(letters), encode(trim)]
    dropped: Any = redis.register_script(_KEEP_ONCE_EACH.text)([_kept(batch_id)], arguments)
    return int(dropped)


def _kept(batch_id: str) -> str:
    return f"dead_letters:kept:{batch_id}"


def _report_lost(dropped: int) -> None:
    if dropped:
        logger.error("%d failed batches are lost: there is no room for more dead letters", dropped)


def _trim(kind: str, budget: Budget, added: int) -> Command:
    series = f"{counters.LETTERS_DROPPED.name}|{kind}"
    return ("TRIM", _STREAMS[kind], series, *budget, added)


def _as_text(raw: bytes, most: int) -> bytes:
    """The beginning of `raw` as a JSON string of at most `most` bytes."""
    text = raw[:most].decode(errors="replace")

    def beginning(length: int) -> bytes:
        return msgspec.json.encode(text[:length])

    lengths = range(len(text) + 1)
    return beginning(bisect_right(lengths, most, key=lambda length: len(beginning(length))) - 1)


def numbers(redis: Redis) -> dict[str, int]:
    """How many rejected events and failed batches are kept."""
    with redis.pipeline(transaction=False) as pipe:
        for stream in _STREAMS.values():
            pipe.xlen(stream)
        return dict(zip(_STREAMS, pipe.execute(), strict=True))


def expire(redis: Redis) -> None:
    """Drop letters older than KEPT_SECONDS by Redis's clock, which also dated them."""
    now, _ = redis.time()
    for stream in _STREAMS.values():
        redis.xtrim(stream, minid=(now - KEPT_SECONDS) * 1000, approximate=False)


class Stored(NamedTuple):
    """A letter as Redis holds it. Letters are ordered by `number` and kind, batches first."""

    number: tuple[int, int]
    is_batch: bool
    fields: dict[bytes, bytes]

    @property
    def id(self) -> str:
        """The id of the letter."""
        return f"{self.number[0]}-{self.number[1]}{'b' if self.is_batch else ''}"

    @property
    def summary(self) -> str:
        """See DeadLetter."""
        return _summary(self.fields[b"reason"])

    def letter(self) -> DeadLetter:
        """The letter itself."""
        fields = self.fields
        truncated = b"truncated" in fields
        batch = fields.get(b"batch", b"[]")
        if not _is_json(batch):
            batch, truncated = msgspec.json.encode([batch.decode(errors="replace")]), True
        return DeadLetter(
            id=self.id,
            time=datetime.fromtimestamp(self.number[0] / 1000, UTC),
            reason=msgspec.json.decode(fields[b"reason"]),
            summary=self.summary,
            event=Raw(fields.get(b"event", b"null")),
            truncated=truncated,
            invalid=fields.get(b"invalid", b"").decode(),
            refused=b"refused" in fields,
            collides=b"collides" in fields,
            queue=fields.get(b"queue", b"").decode(),
            batch_id=fields.get(b"id", b"").decode(),
            batch=Raw(batch),
        )


def newest(redis: Redis, limit: int, before: str | None = None) -> list[DeadLetter]:
    """At most `limit` letters, newest first, older than the one with the id `before`."""
    return [found.letter() for found in islice(stored(redis, before), limit)]


def stored(redis: Redis, before: str | None = None) -> Iterator[Stored]:
    """All letters, newest first, older than the one with the id `before`.

    They are read in chunks when they are needed, so letters may be added or removed meanwhile.
    """
    of_events = of_batches = "+"
    if before is not None:
        number = before.removesuffix("b")
        # If a batch and an event have the same number, the batch comes first.
        of_batches = _before(number)
        of_events = number if before.endswith("b") else of_batches
    return merge(
        _of_kind(redis, "events", of_events),
        _of_kind(redis, "batches", of_batches),
        key=lambda found: found[:2],
        reverse=True,
    )


def _of_kind(redis: Redis, kind: str, last: str) -> Iterator[Stored]:
    count = 1
    while True:
        # Often only the first few are needed.
        count = min(8 * count, _READ_AT_ONCE[kind])
        found: Any = redis.xrevrange(_STREAMS[kind], max=last, count=count)
        for number, fields in found:
            yield _stored_letter(kind, number, fields)
        if len(found) < count:
            return
        last = _before(found[-1][0].decode())


def _stored_letter(kind: str, number: bytes, fields: dict[bytes, bytes]) -> Stored:
    milliseconds, sequence = map(int, number.split(b"-"))
    return Stored((milliseconds, sequence), kind == "batches", fields)


@lru_cache(maxsize=1_000)
def _summary(reason: bytes) -> str:
    return letter_reasons.summary(msgspec.json.decode(reason))


def get(redis: Redis, letter_id: str) -> DeadLetter | None:
    """The letter with this id, or None if there is none."""
    if not re.match(ID_PATTERN, letter_id):
        return None
    kind, number = _place(letter_id)
    found: Any = redis.xrange(_STREAMS[kind], min=number, max=number)
    return _stored_letter(kind, *found[0]).letter() if found else None


def remove(redis: Redis, letter_id: str) -> bool:
    """Drop the letter with this id. Returns whether it was there."""
    return bool(re.match(ID_PATTERN, letter_id)) and remove_each(redis, [letter_id]) == 1


def remove_each(redis: Redis, letter_ids: Iterable[str]) -> int:
    """Drop the letters with these ids, of which none is misspelt. Returns how many were there."""
    with redis.pipeline(transaction=False) as pipe:
        for kind, number in map(_place, letter_ids):
            pipe.xdel(_STREAMS[kind], number)
        return sum(pipe.execute())


def remove_all(redis: Redis, kinds: Iterable[str] = KINDS) -> int:
    """Drop all letters of these kinds. Returns how many there were."""
    # Trim the streams instead of deleting them, because they remember which ids were used.
    with redis.pipeline(transaction=True) as pipe:
        for kind in kinds:
            pipe.xtrim(_STREAMS[kind], maxlen=0, approximate=False)
        return sum(pipe.execute())


def _place(letter_id: str) -> tuple[str, str]:
    """The kind of a letter, and its id in the stream."""
    return ("batches" if letter_id.endswith("b") else "events"), letter_id.removesuffix("b")


def _before(number: str) -> str:
    """The latest possible id before this one."""
    milliseconds, sequence = map(int, number.split("-"))
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{2**64 - 1}" if milliseconds else "0-0"


def _is_json(text: bytes) -> bool:
    try:
        text.decode()
        msgspec.json.decode(text, type=Raw)
    except NOT_JSON:
        return False
    return True
